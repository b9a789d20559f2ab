"""Requests that are refused, and none."""

import re

import jax
import pytest

from gptjax.evals import loglikelihood
from gptjax.evals.tree_batches import Request
from gptjax.model import inference
from tests import tiny


@pytest.fixture(scope="module")
def reader():
    _, built, state = tiny.make_step(tiny.config(n_ctx=64, n_layers=2, n_vocab=257))
    return inference.prepare(built.model, jax.tree.map(lambda x: 8 * x, state.params))


@pytest.mark.parametrize(
    "question, message",
    [
        (Request((), ((1,),)), "request 1 has an empty context"),
        (Request((1,), ()), "request 1 has an empty context, no completion"),
        (
            Request((1,), ((1,), ())),
            "request 1 has an empty context, no completion or an empty one",
        ),
        (
            Request((1,) * 60, ((1,), (2,) * 6)),
            "request 1: a context of 60 tokens and its completion are 66 tokens, and the model "
            "reads 64",
        ),
    ],
)
def test_invalid_requests_are_refused(reader, question, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        next(loglikelihood.loglikelihood(reader, [Request((1,) * 60, ((1,) * 5,)), question]))


def test_no_requests_give_no_results(reader):
    assert list(loglikelihood.loglikelihood(reader, [])) == []
