"""What the loop learns from text: its samples, where a prompt has no tokens."""

import types

import jax

from gptjax.config import schema
from gptjax.training import pretraining
from tests import tiny
from tests.unit.generate.streaming_test import Spaced


def test_a_sample_whose_prompt_has_no_tokens_begins_as_texts_do_and_one_of_nan_ends_no_run():
    tokens = Spaced()
    assert tokens.encode("\n") == []
    _, built, state = tiny.make_step(tiny.config(n_vocab=tokens.n_vocab, n_layers=2))
    config = types.SimpleNamespace(loop=schema.Loop(sample_tokens=4))  # whose prompt is a newline
    session = types.SimpleNamespace(
        dataset=types.SimpleNamespace(tokenizer=tokens), config=config, step=built
    )
    said = pretraining.sample_text(session, state, 1)
    assert said.startswith("\n ") and len(said) > 4
    broken = state.replace(params=jax.tree.map(lambda x: x * float("nan"), state.params))
    assert pretraining.sample_text(session, broken, 1).startswith(
        "no sample: the model's logits are NaN or infinite"
    )
