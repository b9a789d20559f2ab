"""A kept KV cache: each continuation is the one without it, and no more is read than must be."""

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.generate import decode, prefix_cache, sampling
from gptjax.generate.sampling import SamplingParams
from gptjax.model import inference
from tests import tiny

N_CTX, GREEDY, KEY = 96, SamplingParams(temperature=0), jax.random.key(0)
RNG = np.random.default_rng(0)
A, B, C = (RNG.integers(0, 61, n).tolist() for n in (20, 5, 40))
KINDS = {
    "dense": (schema.Dense(),),
    "a ring that is full": (schema.Banded(window=3), schema.Dense()),
    "a ring that grows": (schema.Banded(window=40), schema.Dense()),
}


def make_model(attention) -> inference.InferenceModel:
    return tiny.make_peaked_model(n_ctx=N_CTX, attention=attention, n_layers=2)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param, make_model(KINDS[request.param])


def test_every_continuation_is_that_of_the_whole_text(kind):
    """Texts that go on, are cut back, changed in the middle, repeated, shortened or others; and the
    number of tokens that are read for each."""
    name, lm = kind
    kept = prefix_cache.PrefixCache(lm)
    n_read = []

    def check(ids, n):
        found = list(kept.stream(ids, n, GREEDY, KEY))
        n = min(n, N_CTX + 1 - len(ids))  # where decode.generate would go on with half of the text
        assert found == decode.generate(lm, [ids], n, GREEDY, KEY)[0], (len(n_read), name)
        n_read.append(kept.n_read)
        return found

    first = [*A, *check(A, 6)]
    second = [*first, *B]
    check(second, 30)  # beyond the first capacity, of 32
    check([*second[:15], *B], 4)  # changed in the middle
    check([*second[:15], *B], 4)  # repeated: the token before the answer is read anew
    check(A[:2], 3)
    check(C, 8)
    check([*C, *B], N_CTX)  # to the end of the context
    expected = {
        "dense": [20, 6, 5, 1, 1, 40, 5],
        "a ring that is full": [20, 6, 20, 20, 2, 40, 45],
        "a ring that grows": [20, 6, 20, 1, 1, 40, 45],
    }
    assert n_read == expected[name]


@pytest.fixture(scope="module")
def dense():
    return make_model(KINDS["dense"])


def test_samples_are_those_of_decode(dense):
    kept, params = prefix_cache.PrefixCache(dense), SamplingParams(temperature=0.7, top_k=20)
    for ids in (A, [*A, *B]):
        key = jax.random.key(len(ids))
        expected = decode.generate(dense, [ids], 9, params, key)[0]
        assert list(kept.stream(ids, 9, params, key)) == expected


def test_a_caller_that_stops_anywhere_leaves_a_cache_that_is_right(dense):
    """So does an exception in the middle of a step."""
    kept = prefix_cache.PrefixCache(dense)
    expected = decode.generate(dense, [A], 9, GREEDY, KEY)[0]
    for n in (1, 4):
        stream = kept.stream(A, 9, GREEDY, KEY)
        assert [next(stream) for _ in range(n)] == expected[:n]
        stream.close()
        ids = [*A, *expected[:n], *B]
        assert (
            list(kept.stream(ids, 3, GREEDY, KEY))
            == decode.generate(dense, [ids], 3, GREEDY, KEY)[0]
        )


@pytest.mark.parametrize("name", ["decode_steps", "first_tokens"])
def test_an_exception_in_a_step_forgets_the_cache(dense, name, monkeypatch):
    kept = prefix_cache.PrefixCache(dense)
    expected = list(kept.stream(A, 5, GREEDY, KEY))
    if name == "first_tokens":
        kept.forget()

    def interrupted(*args, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decode, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(kept.stream(A, 5, GREEDY, KEY))
    assert list(kept.stream(A, 5, GREEDY, KEY)) == expected and kept.n_read == len(A)


def test_it_ends_before_an_end_and_at_the_context(dense):
    kept = prefix_cache.PrefixCache(dense)
    free = list(kept.stream(A, 9, GREEDY, KEY))
    end = free[4]
    assert list(kept.stream(A, 9, GREEDY, KEY, {end})) == free[: free.index(end)]
    full = RNG.integers(0, 61, N_CTX).tolist()
    assert len(list(kept.stream(full, 9, GREEDY, KEY))) == 1
    for ids in ([], [*full, 1]):
        with pytest.raises(ValueError, match=f"a text of {len(ids)} tokens: give 1 to 96"):
            next(kept.stream(ids, 1, GREEDY, KEY))


def test_logits_that_are_nan_are_an_error_and_are_not_kept(dense, monkeypatch):
    kept = prefix_cache.PrefixCache(dense)
    expected = list(kept.stream(A, 2, GREEDY, KEY))
    with monkeypatch.context() as patch:
        patch.setattr(prefix_cache.PrefixCache, "_decode", lambda *args: sampling.NONE)
        with pytest.raises(inference.NonFiniteLogits):
            list(kept.stream(A, 2, GREEDY, KEY))
    assert list(kept.stream(A, 2, GREEDY, KEY)) == expected and kept.n_read == len(A)


def test_common_prefix_length():
    for a, b, n in (([], [1], 0), ([1, 2], [1, 3], 1), ([1, 2], [1, 2], 2), ([1], [1, 2], 1)):
        assert prefix_cache.common_prefix_length(a, b) == n
