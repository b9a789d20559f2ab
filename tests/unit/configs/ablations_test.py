"""The steps from GPT-3 to Llama 3, Gemma 3 and gpt-oss: what each changes, and what it leaves
equal."""

import dataclasses

import pytest

from gptjax.config import count, overrides
from gptjax.configs import ablations, families, registry, sweeps
from gptjax.sweeps import tuning
from gptjax.sweeps.points import run_flops
from tests.outcomes import expand

TO_BOTH = [{"positions"}, {"norm_type"}, {"biases"}, {"heads.n_kv_heads"}]
CHANGED = {  # fields of the model in which each step differs from the one before
    "llama3": [*TO_BOTH, {"mlp"}, {"tied_output"}, {"attention"}],
    "gemma3": [
        *TO_BOTH,
        {"mlp"},
        {"norm", "norm_type.eps", "norm_type.unit_offset"},
        {"embedding_scale"},
        {"heads.softcap", "logits_softcap"},
        {"heads.softcap", "heads.qk_norm", "logits_softcap"},
        {"attention", "positions"},
    ],
    "gpt_oss": [
        {"positions"},
        {"norm_type"},
        {"heads.n_kv_heads"},
        {"mlp"},
        {"tied_output"},
        {"heads.sinks"},
        {"mlp"},
    ],
}
NAMES = list(ablations.SWEEPS)
PARAMETERS = [name for name in NAMES if not name.endswith("_flops")]


def steps(name):
    """The points of each step of a sweep."""
    points = expand(registry.sweep(name))
    assert not [point.error for point in points if point.config is None]
    return tuning.group_by_model(points)


def configs(name):
    return [group[0].config for group in steps(name)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_step_changes_what_its_name_says_and_the_width_of_the_mlp_alone(name):
    models = configs(name)
    (changed,) = (fields for family, fields in CHANGED.items() if f"_{family}" in name)
    assert len(models) == len(changed) + 1 == len(registry.sweep(name).steps)
    for before, after, fields in zip(models, models[1:], changed, strict=False):
        paths = {line.partition(":")[0] for line in overrides.diff(before, after)}
        assert paths - {"model.mlp.d_ff"} == {f"model.{field}" for field in fields}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_without_tables_are_equal_to_one_percent(name):
    models = [config.model for config in configs(name)]
    target = count.non_embedding_parameters(models[0])
    for model in models:
        assert count.non_embedding_parameters(model) == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_flops")])
def test_training_flops_are_equal_to_two_percent(name):
    found, plain = configs(name), configs(name.removesuffix("_flops"))
    assert [config.model for config in found] == [config.model for config in plain]
    flops = [run_flops(config) for config in found]
    assert flops == pytest.approx([flops[0]] * len(flops), rel=ablations.FLOPS_TOLERANCE)
    # at equal tokens the last step, another attention pattern, is farther away than that
    assert run_flops(plain[-1]) != pytest.approx(flops[0], rel=ablations.FLOPS_TOLERANCE)
    for config in found:  # the schedule is as long as the run
        tokens = config.train.total_tokens
        assert (config.train.schedule.decay_tokens, config.train.schedule.warmup_tokens) == (
            tokens,
            tokens // 10,
        )


def test_tokens_that_are_adjusted_give_the_flops_of_the_first_model_to_half_a_percent():
    for name in ("gpt3_to_llama3_flops", "gpt3_to_gemma3_flops", "gpt3_to_gpt_oss_flops"):
        first, *_, last = configs(name)
        assert last.train.total_tokens != first.train.total_tokens
        assert run_flops(last) == pytest.approx(run_flops(first), rel=0.005)


@pytest.mark.parametrize("name, family", [
    ("llama3", "llama3_8b"), ("gemma3", "gemma3_1b"), ("gpt_oss", "gpt_oss_20b"),
])  # fmt: skip
def test_the_last_step_has_the_form_of_its_family(name, family):
    """All but the sizes, and the theta and scaling of Llama and gpt-oss."""
    model = configs(f"gpt3_to_{name}")[-1].model
    theirs = families.CONFIGS[family]().model
    if name == "gpt_oss":
        expert = dataclasses.replace(theirs.mlp.expert, d_ff=model.d_ff)
        sizes = {"n_experts": model.mlp.n_experts, "top_k": model.mlp.top_k, "expert": expert}
        mlp = dataclasses.replace(theirs.mlp, **sizes)
    else:
        mlp = dataclasses.replace(theirs.mlp, d_ff=model.d_ff)
    same = dataclasses.replace(
        theirs,
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        d_model=model.d_model,
        n_vocab=model.n_vocab,
        n_ctx=model.n_ctx,
        init=model.init,
        mlp=mlp,
        embedding_scale=model.embedding_scale,
        heads=dataclasses.replace(
            theirs.heads, n_kv_heads=model.n_kv_heads, d_head=None, query_scalar=None
        ),
        attention=model.attention,
        positions=theirs.positions if name == "gemma3" else model.positions,
    )
    assert model == same
    assert list(map(type, model.attention)) == list(map(type, theirs.attention))


def test_every_step_is_tried_at_the_same_learning_rates():
    for name in ("gpt3_to_llama3", "gpt3_to_gemma3_125m"):
        peaks = [[p.config.train.schedule.peak_lr for p in group] for group in steps(name)]
        assert len(peaks[0]) == 3 and peaks == [peaks[0]] * len(peaks)
    assert set(ablations.SWEEPS) < set(sweeps.SWEEPS)
