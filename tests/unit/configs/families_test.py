"""The families after GPT-3: published sizes, and the shape tree that all counts are made of."""

import functools

import jax
import jax.numpy as jnp
import pytest

from gptjax.config import count, overrides, schema
from gptjax.configs import families, registry
from gptjax.model import gpt
from tests import shape_tree, tiny

PUBLISHED = {  # sums of the released shapes
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_099_328,
    "gemma3_12b": 11_765_788_416,
    "gemma3_27b": 27_009_002_240,
    "phi3_mini": 3_821_079_552,
    "phi3_medium": 13_960_238_080,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
    "smollm2_135m": 134_515_008,
}
POLICY = gpt.ExecutionPolicy(jnp.bfloat16, None, "reference", False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_published_models(name):
    assert count.parameters(registry.config(name).model) == PUBLISHED[name]


@pytest.mark.parametrize("name, billions", [("gpt_oss_20b", 3.61), ("gpt_oss_120b", 5.13)])
def test_active_parameters_are_those_of_the_model_card(name, billions):
    model = registry.config(name).model
    table = model.n_vocab * model.d_model  # of tokens, which the card does not count
    assert round((count.active_parameters(model) - table) / 1e9, 2) == billions


def test_a_token_costs_the_flops_of_its_experts():
    def flops(**changes):
        sizes = {"n_experts": 8, "top_k": 2, "expert": schema.SwiGLU(d_ff=10)} | changes
        config = tiny.config(n_layers=4, mlp=schema.Experts(**sizes))
        return count.forward_flops_per_token(config.model)

    assert flops(top_k=3) - flops() == 4 * 2 * 3 * 16 * 10  # layers, twice, matrices, sizes
    assert flops(n_experts=9) - flops() == 4 * 2 * 16  # the router


def test_phi3_small_has_7_billion():
    assert round(count.parameters(registry.config("phi3_small").model), -7) == 7_390_000_000


@pytest.mark.parametrize("changes", [
    {"biases": "qkv"},
    {"biases": "none"},
    {"norm": "both", "attention": (schema.Dense(),) * 3},
    {"heads": schema.AttentionHeads(n_kv_heads=2, d_head=6, qk_norm=True, sinks=True)},
    {"mlp": schema.ClampedSwiGLU(d_ff=24, limit=7.0), "tied_output": False},
    {"attention": (schema.Dense(),) * 7},
    {"mlp": schema.Experts(n_experts=4, top_k=2, expert=schema.GELU(d_ff=8))},
    {"mlp": schema.Experts(n_experts=4, top_k=2, expert=schema.GeGLU(d_ff=8)), "biases": "none"},
], ids=str)  # fmt: skip
def test_the_shape_tree_of_other_forms(changes):
    model = tiny.config(**{"n_layers": 4} | changes).model
    net = gpt.GPT(model, POLICY)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    leaves = shape_tree.leaves(params)
    assert leaves == shape_tree.expected_leaves(model)
    assert count.padded_parameters(model) == sum(
        functools.reduce(lambda a, b: a * b, shape, 1) for shape in leaves.values()
    )


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_config_goes_through_its_flat_form(name):
    config = registry.config(name)
    assert overrides.unflatten(overrides.flatten(config)) == config


def test_the_stored_config_of_a_gpt_has_no_field_of_families():
    for name in ("gpt1", "gpt2_124m", "gpt3_175b"):
        stored = overrides.flatten(registry.config(name))
        assert not [
            path
            for path in stored
            if path.removeprefix("model.").split(".")[0] in schema.FAMILY_FIELDS
        ]
    changed = overrides.override(registry.config("gpt3_small"), "model.heads.n_kv_heads=4")
    assert overrides.flatten(changed)["model.heads.n_kv_heads"] == 4
    assert "model.heads.d_head" not in overrides.flatten(changed)


@pytest.mark.parametrize("assignment, line", [
    ("model.heads.n_kv_heads=5", "n_kv_heads=5 does not divide model.n_heads=12"),
    ("model.positions=(Rotary(),Rotary(),Rotary())", "has 3 encodings for a period of 2 layers"),
    ("model.positions=(Learned(),Rotary())", "Learned() is added to the embeddings"),
    ("model.positions=Rotary(scaling=LongRope(short_factors=(1.0,),long_factors=(1.0,),"
     "original_context=512))", "LongRope has 1 factors for 32 frequencies"),
    ("model.positions=Rotary(scaling=Llama31Scaling(low_freq_factor=4))", "must be less than"),
    ("model.mlp=SwiGLU()", "SwiGLU needs d_ff"),
    ("model.norm_type=BatchNorm", "there are LayerNorm, RMSNorm"),
])  # fmt: skip
def test_bad_fields_are_one_line(assignment, line):
    with pytest.raises(ValueError) as error:
        overrides.override(registry.config("gpt3_small"), assignment)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("model")


def test_heads_of_an_odd_width_cannot_be_rotated():
    with pytest.raises(ValueError, match="d_head=3 is odd"):
        tiny.config(positions=(schema.Rotary(),), heads=schema.AttentionHeads(d_head=3))
