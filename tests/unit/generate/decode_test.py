import jax
import numpy as np
import pytest

from gptjax.generate import decode
from gptjax.generate.choose import Sampling
from gptjax.model import gpt
from tests import tiny


@pytest.fixture(scope="module")
def speaker():
    _, built, state = tiny.machine(tiny.config())
    return built.model, state.params


def greedy_by_hand(model, params, prompt, n):
    text, hidden = list(prompt), jax.jit(lambda view: model.apply({"params": params}, view))
    for _ in range(n):
        view = np.array([text[-model.config.n_ctx :]], np.int32)
        y = gpt.logits(hidden(view), params["token_VD"], model.config.n_vocab)
        text.append(int(np.argmax(y[0, -1])))
    return text[len(prompt) :]


def test_prompts_of_different_lengths_each_get_their_own_continuation(speaker):
    prompts = [[1], [2, 3, 4, 5, 6], list(range(20))]  # the last is longer than the context of 12
    said = decode.continuations(*speaker, prompts, 6, Sampling(temperature=0), jax.random.key(0))
    assert said == [greedy_by_hand(*speaker, p, 6) for p in prompts]


def test_a_row_stops_at_end_of_text_and_others_go_on(speaker):
    free = decode.continuations(*speaker, [[1], [2]], 6, Sampling(), jax.random.key(3))
    stop = free[0][2]
    said = decode.continuations(*speaker, [[1], [2]], 6, Sampling(), jax.random.key(3), end_of_text=stop)
    assert said[0] == free[0][: free[0].index(stop)]
    assert said[1] == (free[1][: free[1].index(stop)] if stop in free[1] else free[1])


def test_padded_ids_are_never_said(speaker):
    model, params = speaker
    loud = params | {"token_VD": params["token_VD"].at[61:].set(100.0)}
    said = decode.continuations(model, loud, [[1]] * 8, 8, Sampling(temperature=5.0), jax.random.key(0))
    assert max(map(max, said)) < 61


def test_an_empty_prompt():
    with pytest.raises(ValueError, match="an empty prompt"):
        decode.continuations(None, None, [[1], []], 3, Sampling(), jax.random.key(0))
