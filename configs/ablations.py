"""From GPT-3 to Llama 3, to Gemma 3 and to gpt-oss, one change at a time, as sweeps.

Each model has one change more than the one before it. Two budgets:

- equal parameters: all models train on the same tokens. The width of the MLP is the one that
  brings the count closest to GPT-3's, so what a change saves, such as key and value heads, goes to
  the MLP. The count leaves out the tables of tokens, positions and output (config/count.py,
  non_embedding_parameters; Kaplan et al. 2001.08361): learned positions that go and an output
  table that comes are not made up for. Reports show the count with the tables, too.
  Of experts all are counted.
- equal FLOPs: the same models, and a model whose training FLOPs per token differ from GPT-3's by
  more than FLOPS_TOLERANCE trains on more or fewer tokens.

Sources of the forms: 2407.21783, 2408.00118, 2503.19786 and their released code, as in families.py.
Initial values stay GPT-3's: those of the other families are not published.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gptjax.config import count, overrides
from gptjax.config.layer import GELU, ClampedSwiGLU, Experts, GeGLU, RMSNorm, SwiGLU
from gptjax.config.model import Model
from gptjax.config.positions import Rotary
from gptjax.config.schema import Banded, Config, Dense
from gptjax.config.sweep import Sweep
from gptjax.configs import ladder, small

FLOPS_TOLERANCE = 0.02  # relative difference of FLOPs per token that is not made up for
HEADS_PER_KV_HEAD = 4  # as Llama 3 8B and Gemma 3 1B
N_EXPERTS, TOP_K = 4, 2  # few, so that those of the CPU size are not narrower than their inputs
PEAK_LR = "train.schedule.peak_lr"


class Change(NamedTuple):
    """What one step changes. name: in tables and pictures."""

    name: str
    apply: Callable[[Model], Model]


def _replace_heads(model: Model, **fields) -> Model:
    return dataclasses.replace(model, heads=dataclasses.replace(model.heads, **fields))


def five_local_layers_to_one(model: Model) -> Model:
    """Gemma 3's layers: five with a window, then one without; RoPE theta 10,000 in the former and
    1,000,000 in the latter. The window is that which the model's banded layers have."""
    (band,) = {pattern for pattern in model.attention if isinstance(pattern, Banded)}
    return dataclasses.replace(
        model, attention=(band,) * 5 + (Dense(),), positions=(Rotary(),) * 5 + (Rotary(theta=1e6),)
    )


TO_BOTH = (
    Change("rotary positions", lambda m: dataclasses.replace(m, positions=(Rotary(),))),
    Change("RMSNorm", lambda m: dataclasses.replace(m, norm_type=RMSNorm())),
    Change("no biases", lambda m: dataclasses.replace(m, biases="none")),
    Change(
        "grouped KV heads", lambda m: _replace_heads(m, n_kv_heads=m.n_heads // HEADS_PER_KV_HEAD)
    ),
)
# Rotary's theta stays 10,000, that of short contexts; Llama 3's 500,000 is for 8,192 tokens.
TO_LLAMA3 = (
    *TO_BOTH,
    Change("SwiGLU", lambda m: dataclasses.replace(m, mlp=SwiGLU(d_ff=m.d_ff))),
    Change("untied output", lambda m: dataclasses.replace(m, tied_output=False)),
    Change("dense attention in all layers", lambda m: dataclasses.replace(m, attention=(Dense(),))),
)
# After the softcaps it is Gemma 2's form: its layers alternate as GPT-3's do.
TO_GEMMA3 = (
    *TO_BOTH,
    Change("GeGLU", lambda m: dataclasses.replace(m, mlp=GeGLU(d_ff=m.d_ff))),
    Change(
        "norms after branches, gain 1 + w",
        lambda m: dataclasses.replace(
            m, norm="both", norm_type=RMSNorm(eps=1e-6, unit_offset=True)
        ),
    ),
    Change(
        "embeddings times sqrt(d_model)",
        lambda m: dataclasses.replace(m, embedding_scale=m.d_model**0.5),
    ),
    Change(
        "softcaps of scores and logits",
        lambda m: dataclasses.replace(_replace_heads(m, softcap=50.0), logits_softcap=30.0),
    ),
    Change(
        "QK-norm for softcaps",
        lambda m: dataclasses.replace(
            _replace_heads(m, softcap=None, qk_norm=True), logits_softcap=None
        ),
    ),
    Change("5 local layers to 1 global", five_local_layers_to_one),
)
# Layers alternate as GPT-3's do; the limit of the clamped SwiGLU is gpt-oss's.
TO_GPT_OSS = (
    *(change for change in TO_BOTH if change.name != "no biases"),
    Change(
        "clamped SwiGLU",
        lambda m: dataclasses.replace(m, mlp=ClampedSwiGLU(d_ff=m.d_ff, limit=7.0)),
    ),
    Change("untied output", lambda m: dataclasses.replace(m, tied_output=False)),
    Change("sinks", lambda m: _replace_heads(m, sinks=True)),
    Change(
        "experts",
        lambda m: dataclasses.replace(
            m, mlp=Experts(n_experts=N_EXPERTS, top_k=TOP_K, expert=m.expert)
        ),
    ),
)


# --- budgets --------------------------------------------------------------------------------------


def cumulative(model: Model, changes: Sequence[Change], multiple: int) -> list[Model]:
    """Returns the model and, for each change, the model with it and all before it, at equal
    parameters."""
    models = itertools.accumulate(changes, lambda m, change: change.apply(m), initial=model)
    return [equal_parameters(changed, model, multiple) for changed in models]


def equal_parameters(model: Model, target: Model, multiple: int) -> Model:
    """Returns the model with the width of its MLP, a multiple of `multiple`, that brings its
    parameters without tables closest to those of `target`."""
    n_target = count.non_embedding_parameters(target)
    if isinstance(model.mlp, Experts):
        multiple = max(1, multiple // model.mlp.n_experts)

    def resize(d_ff: int) -> Model:
        width = None if isinstance(model.mlp, GELU) and d_ff == 4 * model.d_model else d_ff
        mlp = dataclasses.replace(model.expert, d_ff=width)
        if isinstance(model.mlp, Experts):
            mlp = dataclasses.replace(model.mlp, expert=mlp)
        return dataclasses.replace(model, mlp=mlp)

    return min(
        map(resize, range(multiple, 8 * model.d_model, multiple)),
        key=lambda m: abs(count.non_embedding_parameters(m) - n_target),
    )


def equal_flops_tokens(config: Config, model: Model) -> int:
    """Returns the tokens, whole batches, on which `model` trains for the FLOPs of config; those of
    config if its FLOPs per token are within FLOPS_TOLERANCE."""
    share = count.train_flops_per_token(config.model) / count.train_flops_per_token(model)
    if abs(1 / share - 1) <= FLOPS_TOLERANCE:
        return config.train.total_tokens
    batch = config.train.batch_tokens
    return round(config.train.total_tokens * share / batch) * batch


# --- sweeps ---------------------------------------------------------------------------------------


class Size(NamedTuple):
    """A size at which the changes are compared. base: recipe and overrides. peaks: learning rates.
    multiple: of the width of the MLP."""

    recipe: Config
    overrides: tuple[str, ...]
    peaks: tuple[float, ...]
    multiple: int


def _lengths(tokens: int) -> tuple[str, ...]:
    """The learning rate falls to its floor at the end."""
    return (
        f"train.total_tokens={tokens}",
        f"train.schedule.decay_tokens={tokens}",
        f"train.schedule.warmup_tokens={tokens // 10}",
    )


def cpu_size() -> Size:
    """300k parameters without tables; half a minute a run on one CPU core."""
    return Size(
        small.micro(),
        (
            "model.n_layers=6",
            "model.n_ctx=128",
            "model.attention=(Banded(window=16),Dense())",
            "model.init=Init(position=0.01,residual='depth_scaled')",
            "train.batch_tokens=256",
            *_lengths(153_600),
            "loop.every_eval=300",
            "loop.eval_rows=256",
        ),
        (1.5e-3, 3e-3, 6e-3),
        2,
    )


def accelerator_size(name: str) -> Size:
    """A model of 64M parameters, 12 layers of width 512, or GPT-3's of 125M, both on a context of
    2,048; 20 tokens for each parameter without tables. Without --set data.sources=... the text is
    the embedded corpus, which is too small for it."""
    shape, tokens, peaks = {
        "64m": (("model.d_model=512", "model.n_heads=8"), 750_000_000, (5e-4, 1e-3, 2e-3)),
        "125m": ((), 1_700_000_000, (3e-4, 6e-4, 1.2e-3)),
    }[name]
    batch = 2**17
    edits = (*shape, f"train.batch_tokens={batch}", "train.batch_ramp=None")
    length = _lengths(tokens // batch * batch)
    return Size(ladder.CONFIGS["gpt3_small"](), (*edits, *length, "loop.eval_rows=512"), peaks, 32)


def make_sweep(changes: Sequence[Change], family: str, budget: str, size: Size) -> Sweep:
    """Returns the sweep of GPT-3 and all changes. budget: "parameters" or "FLOPs"."""
    base = overrides.override(size.recipe, *size.overrides)
    points: list[tuple[str, ...]] = []
    previous: tuple[str, ...] = ()
    for model in cumulative(base.model, changes, size.multiple):
        edits = overrides.edits(base, dataclasses.replace(base, model=model))
        # the new ones first, since the names of directories begin with them
        own = sorted(edits, key=lambda edit: edit in previous)  # noqa: B023
        previous = edits
        if budget == "FLOPs":
            tokens = equal_flops_tokens(base, model)
            own += _lengths(tokens) if tokens != base.train.total_tokens else ()
        points += [(f"{PEAK_LR}={peak:g}", "seed=0", *own) for peak in size.peaks]
    return Sweep(
        description=f"what did each change from GPT-3 to {family} buy, at equal {budget}?",
        recipe=size.recipe.name,
        overrides=size.overrides,
        points=tuple(points),
        steps=("GPT-3", *(change.name for change in changes)),
    )


SIZES = {
    "": cpu_size,
    "_64m": functools.partial(accelerator_size, "64m"),
    "_125m": functools.partial(accelerator_size, "125m"),
}
FAMILIES = {
    "llama3": (TO_LLAMA3, "Llama 3"),
    "gemma3": (TO_GEMMA3, "Gemma 3"),
    "gpt_oss": (TO_GPT_OSS, "gpt-oss"),
}
BUDGETS = {"": "parameters", "_flops": "FLOPs"}


def _make_family_sweep(family: str, size: str, budget: str) -> Sweep:
    changes, name = FAMILIES[family]
    return make_sweep(changes, name, BUDGETS[budget], SIZES[size]())


SWEEPS = {
    f"gpt3_to_{family}{size}{budget}": functools.partial(_make_family_sweep, family, size, budget)
    for size, family, budget in itertools.product(SIZES, FAMILIES, BUDGETS)
}
