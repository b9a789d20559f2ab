"""Generations that share the slots: each gets what it would alone, ends are clean, none starves."""

import queue

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.data.tokenizers import build
from gptjax.model import inference
from gptjax.server import batcher
from gptjax.server.generation import Full, GenerationRequest, Grammar, Piece, RowSampling
from tests import device_memory, tiny

N_CTX = 64
RNG = np.random.default_rng(0)


def make_model() -> inference.InferenceModel:
    return tiny.make_peaked_model(n_ctx=N_CTX, n_vocab=257, attention=(schema.Dense(),))


@pytest.fixture(scope="module")
def lm():
    """Slots are computed as on an accelerator, where the host sees no array of a device."""
    model = make_model()
    with device_memory.simulate():
        yield model


@pytest.fixture
def make(lm):
    """Makes a batcher, which is closed after the test."""
    made = []

    def make(**options):
        made.append(batcher.Batcher(lm, build.ByteTokenizer(), **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(one, text="a question", n=8, **options):
    """Submits; returns a queue of pieces, and the handle."""
    pieces = queue.Queue()
    sampling = options.pop("sampling", RowSampling(temperature=0.8, seed=len(text)))
    request = GenerationRequest(
        prompt=tuple(text.encode()), max_tokens=n, sampling=sampling, **options
    )
    return pieces, one.submit(request, pieces.put, pieces.put)


def wait(pieces):
    """(text, scores, tokens, finish reason) of all pieces."""
    text, scores, n = "", [], 0
    while True:
        piece = pieces.get(timeout=60)
        if isinstance(piece, Exception):
            raise piece
        text, scores, n = text + piece.text, [*scores, *piece.scores], n + piece.n_tokens
        if piece.finish_reason:
            assert pieces.empty()
            return text, scores, n, piece.finish_reason


def test_the_same_request_has_the_same_answer_at_any_load(make):
    texts = [f"question {'x' * int(RNG.integers(30))}{n}" for n in range(64)]
    options = [{"logprobs": n % 3 or None, "n": int(RNG.integers(1, 16))} for n in range(64)]
    alone = make(n_slots=2)
    expected = [wait(ask(alone, t, **o)[0]) for t, o in zip(texts, options, strict=True)]
    for n_at_once in (8, 64):
        one = make(n_slots=2)
        order = RNG.permutation(64)
        found = {}
        for first in range(0, 64, n_at_once):
            asked = {n: ask(one, texts[n], **options[n])[0] for n in order[first:][:n_at_once]}
            found |= {n: wait(pieces) for n, pieces in asked.items()}
        assert [found[n] for n in range(64)] == expected
        assert one.stats().active == one.stats().queued == 0
        assert one.stats().new_tokens == sum(n for _, _, n, _ in expected)


def test_a_generation_ends_at_a_stop_string_an_end_token_or_its_length(make):
    one = make(n_slots=2)
    text, scores, n, reason = wait(ask(one, n=30, logprobs=0)[0])
    ids = [score.token for score in scores]
    assert (n, len(ids), reason) == (30, 30, "length")
    stop = text[5:8]
    assert wait(ask(one, n=30, stops=(stop,))[0])[::3] == (text[: text.index(stop)], "stop")
    short, _, n, reason = wait(ask(one, n=30, end_ids=frozenset({ids[9], 256}))[0])
    assert reason == "stop" and n == ids.index(ids[9])
    assert short == build.ByteTokenizer().decode(ids[:n])


def test_a_generation_that_is_cancelled_frees_its_slot(make):
    one = make(n_slots=1, max_queue=2)
    first, handle = ask(one, n=50)
    first.get(timeout=60)
    waiting, _ = ask(one, "next", n=3)
    last, cancelled = ask(one, "never", n=3)
    with pytest.raises(Full):
        ask(one, "too many")
    cancelled.cancel()
    instead, _ = ask(one, "instead", n=1)  # its place in the queue is free
    handle.cancel()
    handle.on_piece = pytest.fail  # that a step was in progress changes nothing
    handle._give(Piece("x"))
    assert wait(waiting)[2] == 3 and wait(instead)[2] == 1
    assert last.empty() and one.stats().active == 0
    assert wait(ask(one, "after", n=2)[0])[2] == 2


def test_an_idle_engine_takes_as_many_as_it_has_slots_and_places_in_the_queue(make):
    one = make(n_slots=2, max_queue=3)
    for _ in range(3):
        asked = [ask(one, n=20)[0] for _ in range(one.max_generations)]
        with pytest.raises(Full):
            ask(one)
        assert one.max_generations == 5 and all(wait(pieces)[2] == 20 for pieces in asked)


def test_a_short_one_that_comes_later_ends_before_a_long_one(make):
    one = make(n_slots=2)
    ended = []
    done = queue.Queue()

    def note(name):
        def on_piece(piece):
            if piece.finish_reason:
                ended.append(name)
                done.put(name)

        return on_piece

    for name, n in (("long", 50), ("short", 2)):
        request = GenerationRequest(prompt=(1, 2, 3), max_tokens=n)
        one.submit(request, note(name), done.put)
    done.get(timeout=60), done.get(timeout=60)
    assert ended == ["short", "long"]


def test_a_prompt_is_scored_and_a_prefix_is_read_once(make):
    one = make(n_slots=2, chunk=16)
    prompt = "b" * 40
    wait(ask(one, prompt, n=1)[0])
    _, scores, n, reason = wait(ask(one, prompt, n=0, echo=True, logprobs=2)[0])
    assert (n, reason, len(scores)) == (0, "length", 40)
    assert scores[0].logprob is None and all(len(s.alternatives) == 2 for s in scores[1:])
    assert all(s.token == 98 and s.text == "b" for s in scores)
    assert one.stats().cached_tokens == 0
    assert one.stats().new_tokens == 1  # of the first; the second only scored
    assert len(wait(ask(one, prompt, n=2, logprobs=0)[0])[1]) == 2
    assert one.stats().cached_tokens == 32


def test_a_grammar_is_kept_from_the_first_token_on(make):
    one = make(n_slots=2)
    plain = ask(one, "plain", n=12)[0]
    rule = Grammar("regex", "[0-9]{3}-[a-f]{2}")
    text, _, n, reason = wait(ask(one, n=30, grammar=rule, end_ids=frozenset({256}))[0])
    assert len(text) == n == 6 and text[3] == "-" and text[:3].isdigit() and reason == "stop"
    assert wait(plain) == wait(ask(make(n_slots=2), "plain", n=12)[0])
    # The token that ends it, where the request has none, is no part of it.
    for seed in range(4):
        options = {"grammar": Grammar("regex", "[ab]{1,3}"), "sampling": RowSampling(seed=seed)}
        text, _, n, reason = wait(ask(one, n=30, **options)[0])
        assert 1 <= len(text) == n <= 3 and set(text) <= {"a", "b"} and reason == "stop"
    with pytest.raises(ValueError, match="regex: "):
        ask(one, grammar=Grammar("regex", "("))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text": ""}, "the prompt is empty"),
        ({"text": "x" * 65, "n": 1}, "a prompt of 65 tokens .*room for 64"),
        (
            {"text": "x" * 60, "n": 6},
            "a prompt of 60 tokens with max_tokens=6: there is room for 64",
        ),
        ({"n": 0}, "max_tokens is 0"),
        ({"logprobs": 21}, "logprobs=21: give 0 to 20"),
        ({"sampling": RowSampling(logit_bias={257: 1.0})}, "tokens from 0 to 256"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message):
    options = {"text": "a question", "n": 8} | options
    prompt, n = tuple(options.pop("text").encode()), options.pop("n")
    with pytest.raises(ValueError, match=message):
        batcher.check(GenerationRequest(prompt=prompt, max_tokens=n, **options), 257, N_CTX)


def test_the_context_is_used_to_its_end(make):
    assert wait(ask(make(n_slots=2), "x" * 60, n=5)[0])[2:] == (5, "length")


def test_nan_logits_are_an_error_of_their_generation(make):
    with jax.transfer_guard("allow"):
        broken = make_model()
        broken = broken.replace(params=jax.tree.map(lambda x: x * np.nan, broken.params))
    one = batcher.Batcher(broken, build.ByteTokenizer(), n_slots=2)
    for _ in range(2):
        with pytest.raises(inference.NonFiniteLogits):
            wait(ask(one)[0])
    one.close()


def test_what_runs_when_the_batcher_is_closed_ends_with_an_error(make):
    one = make(n_slots=1)
    running, waiting = ask(one, n=50)[0], ask(one, n=50)[0]
    running.get(timeout=60)
    one.close()
    for pieces in (running, waiting):
        with pytest.raises(batcher.Shutdown):
            wait(pieces)
    with pytest.raises(batcher.Shutdown):
        ask(one)


def test_after_an_error_of_the_device_nothing_is_taken(make, monkeypatch):
    one = make(n_slots=1)
    assert one.stats().is_running

    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(one._slots, "generate", fail)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        wait(ask(one)[0])
    one._thread.join()
    assert not one.stats().is_running
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        ask(one)
