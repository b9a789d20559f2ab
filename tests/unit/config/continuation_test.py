"""What a model that begins with other weights may change, and how that is said."""

import dataclasses

import pytest

from gptjax.config import continuation, schema
from gptjax.config.schema import Rotary

SHORT = schema.Model(n_layers=2, n_heads=2, d_model=16, n_vocab=61, n_ctx=512)
LONGER = schema.Init(longer_positions="repeat")
EXPERTS = schema.Experts(n_experts=4, top_k=2, expert=schema.SwiGLU(d_ff=8), balance_loss=0.1)
LLAMA = schema.Llama31Scaling(factor=4, original_context=512)


def changed(**fields):
    return dataclasses.replace(SHORT, **fields)


@pytest.mark.parametrize(
    "old, new, lines",
    [
        (SHORT, SHORT, []),
        (
            SHORT,
            changed(n_ctx=256),
            ["model.n_ctx: 512 -> 256", "learned positions: the first 256 of 512 rows"],
        ),
        (
            SHORT,
            changed(n_ctx=2048, init=LONGER),
            [
                "model.n_ctx: 512 -> 2,048",
                "learned positions: the 512 rows again and again, to 2,048",
            ],
        ),
        (
            changed(positions=(Rotary(),)),
            changed(positions=(Rotary(scaling=LLAMA),), n_ctx=2048),
            [
                "model.n_ctx: 512 -> 2,048",
                f"model.positions: {(Rotary(),)!r} -> {(Rotary(scaling=LLAMA),)!r}",
            ],
        ),
        (
            changed(positions=(Rotary(),)),
            changed(positions=(Rotary(scaling=schema.Llama31Scaling()),)),
            [
                f"model.positions: {(Rotary(),)!r} -> "
                f"{(Rotary(scaling=schema.Llama31Scaling()),)!r}",
                "note: Llama31Scaling.original_context=8,192, but the weights are of a context of "
                "512",
            ],
        ),
        (changed(mlp=EXPERTS), changed(mlp=dataclasses.replace(EXPERTS, capacity=2.0)), []),
    ],
    ids=["same", "shorter", "longer", "rotary", "another original context", "experts"],
)
def test_what_may_change_is_said(old, new, lines):
    continuation.check("runs/short", old, new, larger_vocab=False)
    assert continuation.changes(old, new) == lines


@pytest.mark.parametrize(
    "new, message",
    [
        (changed(n_ctx=2048), "have learned 512 positions, but model.n_ctx=2048: say how they"),
        (changed(positions=(Rotary(),)), r"have positions \(Learned\(\),\), but model.positions="),
        (changed(attention=(schema.Banded(window=8),)), "have attention"),
        (changed(mlp=EXPERTS), r"have mlp GELU\(d_ff=None\), but model.mlp="),
        (changed(n_vocab=62), 'have n_vocab 61, but model.n_vocab=62: .*--set "model.n_vocab=61"'),
    ],
    ids=["learned", "other kind", "pattern", "experts", "vocabulary"],
)
def test_what_may_not_is_refused(new, message):
    with pytest.raises(ValueError, match=f"the weights in runs/short {message}"):
        continuation.check("runs/short", SHORT, new, larger_vocab=False)


def test_the_vocabulary_of_a_folder_may_grow():
    continuation.check("gpt2/", SHORT, changed(n_vocab=62), larger_vocab=True)
    with pytest.raises(ValueError, match="have n_vocab 61, but model.n_vocab=60"):
        continuation.check("gpt2/", SHORT, changed(n_vocab=60), larger_vocab=True)
