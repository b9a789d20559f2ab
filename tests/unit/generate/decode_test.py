import jax
import numpy as np
import pytest

from gptjax.generate import decode
from gptjax.generate.sampling import SamplingParams
from gptjax.model import gpt, inference
from tests import tiny


@pytest.fixture(scope="module")
def speaker():
    _, built, state = tiny.make_step(tiny.config())
    return built.model, state.params


@pytest.fixture(scope="module")
def reader(speaker):
    return inference.prepare(*speaker)


def greedy_by_hand(model, params, prompt, n):
    """Greedy by the whole forward pass, over the text's last n_ctx tokens; once these are full
    over the last half of them."""
    text, n_ctx = list(prompt), model.config.n_ctx
    hidden = jax.jit(
        lambda view: gpt.logits(
            model.apply({"params": params}, view), params["token_VD"], model.config.n_vocab
        )
    )
    begin = max(0, len(text) - n_ctx)
    for _ in range(n):
        if len(text) - begin > n_ctx:
            begin = len(text) - n_ctx // 2
        view = np.zeros((1, n_ctx), np.int32)
        view[0, : len(text) - begin] = text[begin:]
        text.append(int(np.argmax(hidden(view)[0, len(text) - begin - 1])))
    return text[len(prompt) :]


@pytest.mark.parametrize("at_once", [1, 5, decode.STEPS_PER_CALL])
def test_rows_of_different_lengths_each_get_their_own_continuation_past_the_context(
    speaker, reader, at_once
):
    prompts = [[1], [2, 3, 4, 5, 6], list(range(20))]  # the context is 12
    said = [[], [], []]
    for new in decode.stream(
        reader,
        prompts,
        30,
        SamplingParams(temperature=0),
        jax.random.key(0),
        steps_per_call=at_once,
    ):
        said = [before + more for before, more in zip(said, new, strict=True)]
        assert max(map(len, new)) <= at_once
    assert said == [greedy_by_hand(*speaker, p, 30) for p in prompts]


def test_steps_per_call_do_not_change_samples(reader):
    def said(at_once):
        return [
            row
            for new in decode.stream(
                reader, [[1, 2]], 20, SamplingParams(), jax.random.key(5), steps_per_call=at_once
            )
            for row in new[0]
        ]

    assert said(1) == said(7) == said(decode.STEPS_PER_CALL)


def test_a_row_ended_by_the_caller_stops_and_does_not_affect_others(reader):
    free = decode.generate(reader, [[1], [2]], 10, SamplingParams(temperature=0), jax.random.key(0))
    closed, said = set(), [[], []]
    for new in decode.stream(
        reader,
        [[1], [2]],
        10,
        SamplingParams(temperature=0),
        jax.random.key(0),
        done_rows=closed,
        steps_per_call=1,
    ):
        said = [before + more for before, more in zip(said, new, strict=True)]
        if len(said[0]) == 4:
            closed.add(0)
    assert said == [free[0][:4], free[1]]


def test_programs_are_compiled_once_for_all_lengths(monkeypatch):
    """Prompts of 1 to 40 tokens and up to 60 new ones: buckets of 32 and 64 for the prompt, 64
    and 128 in all."""
    traced = []
    for name in ("prefill", "decode_step"):
        original = getattr(inference, name)

        def counted(*args, name=name, original=original):
            traced.append(name)
            return original(*args)

        monkeypatch.setattr(inference, name, counted)
    _, built, state = tiny.make_step(tiny.config(n_ctx=128, n_layers=2))
    reader = inference.prepare(built.model, state.params)
    for n_prompt, n_new in [
        (1, 60),
        (2, 40),
        (17, 33),
        (32, 31),
        (33, 30),
        (40, 60),
        (33, 90),
        (5, 59),
    ]:
        decode.generate(
            reader, [[3] * n_prompt], n_new, SamplingParams(temperature=0), jax.random.key(0)
        )
    assert sorted(traced) == ["decode_step"] * 2 + ["prefill"] * 3


def test_a_row_stops_at_end_of_text_and_others_go_on(reader):
    free = decode.generate(reader, [[1], [2]], 6, SamplingParams(), jax.random.key(3))
    stop = free[0][2]
    said = decode.generate(
        reader, [[1], [2]], 6, SamplingParams(), jax.random.key(3), end_of_text=stop
    )
    assert said[0] == free[0][: free[0].index(stop)]
    assert said[1] == (free[1][: free[1].index(stop)] if stop in free[1] else free[1])


def test_padded_ids_are_never_generated(speaker):
    model, params = speaker
    loud = params | {"token_VD": params["token_VD"].at[61:].set(100.0)}
    said = decode.generate(
        inference.prepare(model, loud),
        [[1]] * 8,
        8,
        SamplingParams(temperature=5.0),
        jax.random.key(0),
    )
    assert max(map(max, said)) < 61


def test_an_empty_prompt(reader):
    with pytest.raises(ValueError, match="an empty prompt"):
        decode.generate(reader, [[1], []], 3, SamplingParams(), jax.random.key(0))
