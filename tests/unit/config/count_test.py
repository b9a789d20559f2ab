"""Counts against brute force, against the papers, and against the model that is really built."""

from dataclasses import replace

import pytest

from gptjax.config import count
from gptjax.config.attention import BlockSparse
from gptjax.config.schema import Banded, Compute, Config, Dense, Dropout, Fixed, Model, Strided
from gptjax.configs import registry

PATTERNS = [
    Dense(),
    Banded(window=1),
    Banded(window=5),
    Banded(window=99),
    Strided(stride=1),
    Strided(stride=4),
    Strided(stride=99),
]
PATTERNS += [
    Fixed(block=4, summary=1),
    Fixed(block=4, summary=4),
    Fixed(block=7, summary=2),
    Fixed(block=99, summary=3),
]


def sees(pattern, q, k) -> bool:
    match pattern:
        case Dense():
            return k <= q
        case Banded(window=w):
            return k <= q and q - k < w
        case Strided(stride=s):
            return k <= q and (q - k < s or (q - k) % s == 0)
        case Fixed(block=b, summary=c):
            return k <= q and (q // b == k // b or k % b >= b - c)
    raise AssertionError(pattern)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("n_ctx", [1, 4, 7, 23, 32])
def test_keys_seen_are_the_pairs_of_the_definition(pattern, n_ctx):
    assert count.attention_pairs(pattern, n_ctx) == sum(
        sees(pattern, q, k) for q in range(n_ctx) for k in range(n_ctx)
    )


@pytest.mark.parametrize("n_ctx", [1, 9, 64, 70])
@pytest.mark.parametrize("block, local_blocks, stride", [(8, 2, 3), (4, 1, 2), (16, 9, 4)])
def test_block_sparse_pairs_are_those_of_the_average_head(block, local_blocks, stride, n_ctx):
    def is_seen(q, k, head):
        is_local = q // block - k // block < local_blocks
        return k <= q and (is_local or (k // block + head + 1) % stride == 0)

    heads, positions = range(stride), range(n_ctx)
    total = sum(is_seen(q, k, head) for q in positions for k in positions for head in heads)
    pattern = BlockSparse(block=block, local_blocks=local_blocks, stride=stride)
    assert count.attention_pairs(pattern, n_ctx) == round(total / stride)


@pytest.mark.parametrize(
    "name,parameters",
    [
        ("gpt1", 116_534_784),
        ("gpt2_124m", 124_439_808),
        ("gpt2_355m", 354_823_168),
        ("gpt2_774m", 774_030_080),
        ("gpt2_1558m", 1_557_611_200),
        ("gpt3_small", 125_226_240),
        ("gpt3_medium", 355_871_744),
        ("gpt3_large", 760_300_032),
        ("gpt3_xl", 1_315_723_264),
        ("gpt3_2b7", 2_651_553_280),
        ("gpt3_6b7", 6_658_404_352),
        ("gpt3_13b", 12_853_386_240),
        ("gpt3_175b", 174_604_259_328),
    ],
)
def test_parameters_are_exact(name, parameters):
    model = registry.config(name).model
    assert count.parameters(model) == parameters
    assert count.padded_parameters(model) - parameters == (-model.n_vocab % 128) * model.d_model
    assert (
        count.state_bytes(model)
        == 3 * count.gradient_bytes(model)
        == 12 * count.padded_parameters(model)
    )


def test_gpt1_has_85_million_non_embedding_parameters():
    assert count.non_embedding_parameters(registry.config("gpt1").model) == 85_054_464


def test_banded_layers_cost_less_by_what_they_do_not_see():
    model = registry.config("gpt3_small").model
    dense, banded = count.layer_flops(model, Dense()), count.layer_flops(model, Banded(window=256))
    unseen = sum(q + 1 - min(q + 1, 256) for q in range(2048))
    assert dense - banded == pytest.approx(4 * 768 * unseen / 2048)
    assert count.forward_flops_per_token(model) == pytest.approx(
        6 * (dense + banded) + 2 * 768 * 50257
    )
    assert count.train_flops_per_token(model) == 3 * count.forward_flops_per_token(model)


def test_tiny_model_by_hand():
    """One layer, width 2, three tokens, five ids: weights 48, pairs 1 + 2 + 3."""
    model = Model(n_layers=1, n_heads=1, d_model=2, n_vocab=5, n_ctx=3)
    assert count.parameters(model) == 5 * 2 + 3 * 2 + 48 + 26 + 4
    assert count.forward_flops_per_token(model) == 2 * 48 + 4 * 2 * 2 + 2 * 2 * 5


@pytest.mark.parametrize("name", [n for n in registry.config_names() if n.startswith("gpt3")])
def test_pf_days_are_those_of_table_d1(name):
    config = registry.config(name)
    printed = registry.paper_figures(name)[1]
    assert float(f"{count.paper_pf_days(config.model, config.train.total_tokens):.3g}") == printed


def test_pf_days_of_ours_count_attention_at_its_cost():
    config = registry.config("gpt3_175b")
    tokens = config.train.total_tokens
    assert count.pf_days(config.model, tokens) == pytest.approx(
        count.train_flops_per_token(config.model) * 300e9 / 8.64e19
    )
    assert (
        1 < count.pf_days(config.model, tokens) / count.paper_pf_days(config.model, tokens) < 1.05
    )


def small(remat, n_ctx=128, dropout=0.0, pattern=Dense()) -> Config:  # noqa: B008
    config = registry.config("smoke")
    drop = Dropout(embedding=dropout, attention=dropout, residual=dropout)
    model = replace(
        config.model,
        n_layers=3,
        n_heads=4,
        d_model=128,
        n_ctx=n_ctx,
        attention=(pattern,),
        dropout=drop,
    )
    return replace(
        config,
        model=model,
        train=replace(config.train, batch_tokens=4 * n_ctx),
        compute=Compute(
            remat=remat, dtype="float32", scan_layers=True, attention_kernel="reference"
        ),  # what the estimates are of
    )


def gradient(config: Config, rows: int):
    """The jitted gradient of the loss of the real model, and shapes of its arguments."""
    import jax
    import jax.numpy as jnp

    from gptjax.model import gpt
    from gptjax.training import loss

    net = gpt.GPT(config.model, gpt.execution_policy(config.compute, "cpu"))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    tokens = jax.ShapeDtypeStruct((rows, config.model.n_ctx), jnp.int32)

    def total(params, tokens):
        x_BTD = net.apply(params, tokens, None, True, rngs={"dropout": jax.random.key(1)})
        return loss.cross_entropy_reference(
            x_BTD,
            params["params"]["token_VD"],
            tokens,
            jnp.ones(tokens.shape),
            config.model.n_vocab,
        )

    return jax.jit(jax.grad(total)), (params, tokens)


def dot_flops(jaxpr) -> int:
    """FLOPs of every matmul in a jaxpr and the jaxprs inside it."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            size = 2 * eqn.outvars[0].aval.size
            for d in contract:
                size *= eqn.invars[0].aval.shape[d]
            total += size
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    total += dot_flops(inner if hasattr(inner, "eqns") else inner.jaxpr)
    return total


@pytest.mark.parametrize("remat", ["none", "full", "attention", "qkv+mid+up", "attention+mid"])
def test_flops_are_those_of_the_model_that_is_built(remat):
    """The reference attention multiplies all n_ctx x n_ctx pairs, so causal pairs are swapped
    for those; the padded logits too."""
    config = small(remat)
    model, rows = config.model, 2
    step, arguments = gradient(
        replace(config, compute=replace(config.compute, scan_layers=False)), rows
    )  # a scan's body counts once
    found = dot_flops(step.trace(*arguments).jaxpr.jaxpr) / (rows * model.n_ctx)
    pairs_more = (
        4
        * model.d_model
        * (model.n_ctx - count.attention_pairs(Dense(), model.n_ctx) / model.n_ctx)
        * model.n_layers
    )
    passes = 3 if remat == "none" else 3.5 if "attention" in remat else 4
    padding = 3 * 2 * model.d_model * (model.n_vocab_padded - model.n_vocab)
    assert found == pytest.approx(
        count.hardware_flops_per_token(config) + passes * pairs_more + padding
    )


@pytest.mark.parametrize(
    "remat,dropout,least,most",  # what jax 0.10.2 and 0.12.0 allot
    [
        ("none", 0.0, 0.77, 0.88),
        ("none", 0.1, 0.84, 0.94),
        ("full", 0.0, 1.0, 1.15),
        ("qkv+mid+up", 0.0, 1.25, 1.4),
    ],
)
def test_activations_are_near_what_xla_allots(remat, dropout, least, most):
    config = small(remat, 256, dropout)
    step, arguments = gradient(config, rows=8)
    allotted = step.lower(*arguments).compile().memory_analysis()
    assert allotted is not None
    ratio = count.activation_bytes(config, 8) / allotted.temp_size_in_bytes
    assert least < ratio < most


def test_activations_by_policy_and_type():
    sizes = [
        count.activation_bytes(small(remat), 4)
        for remat in ("none", "qkv+mid+up", "attention", "full")
    ]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    half = count.activation_bytes(small("full"), 4, "bfloat16")
    assert half < sizes[-1]
    auto = replace(small("full"), compute=Compute(remat="full"))
    assert count.activation_bytes(auto, 4) == sizes[-1]
    assert (
        count.activation_bytes(replace(auto, compute=Compute(remat="full", dtype="bfloat16")), 4)
        == half
    )


def test_memory_in_use_counts_like_a_smaller_device():
    model, gradients = (
        registry.config("gpt3_small").model,
        count.gradient_bytes(registry.config("gpt3_small").model),
    )
    assert (
        count.activation_budget(model, 70 * 2**30, 20 * 2**30, 4)
        == count.activation_budget(model, 50 * 2**30, 0, 4)
        < 50 * 2**30 - 2 * gradients // 4
    )
    assert count.activation_budget(model, 2**30, 2**30, 1) == -2 * gradients


@pytest.mark.parametrize("name", ["smoke", "gpt3_small", "gpt3_175b"])
def test_microbatch_rows_fit_the_budget(name):
    config = registry.config(name)
    for free, shards in ((10 * 2**30, 1), (70 * 2**30, 8)):
        rows = count.microbatch_rows(config, free, shards)
        assert rows % shards == 0
        spare = 2 * count.LOSS_CHUNK_BYTES
        assert rows == shards or count.activation_bytes(config, rows // shards) <= free
        assert count.activation_bytes(config, rows // shards + 1) > free - spare
    assert count.microbatch_rows(config, 0, 4) == 4
