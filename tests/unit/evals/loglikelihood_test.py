"""How questions are laid out, what cannot be asked, and what is written."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from gptjax.config import evaluation
from gptjax.data.tokenizers import build
from gptjax.evals import loglikelihood
from gptjax.evals.loglikelihood import Request
from gptjax.generate import beam, decode, sampling
from gptjax.model import inference
from gptjax.sharding import rules
from tests import tiny

TEXT = build.ByteTokenizer()


@pytest.fixture(scope="module")
def reader():
    _, built, state = tiny.make_step(tiny.config(n_ctx=64, n_layers=2, n_vocab=257))
    return inference.prepare(built.model, jax.tree.map(lambda x: 8 * x, state.params))


def laid_out(questions):
    return list(
        loglikelihood._split_batches(
            loglikelihood._pack_rows(loglikelihood._build_units(questions), rules.UNSHARDED),
            rules.UNSHARDED,
        )
    )


def n_read(questions):
    return sum(
        leaf.n_own
        for _, _, rows in laid_out(questions)
        for units in rows
        for unit in units
        for leaf in unit
    )


def test_a_context_is_scored_once():
    context = tuple(range(100))
    assert n_read([Request(context, ((1,), (2,), (3,)))]) == 100
    assert n_read([Request(context, ((1, 2, 9), (3,), (1, 2, 4), (1, 5)))]) == 100 + 2  # 1, 2
    assert n_read([Request(context + (7,), ((1,),)), Request(context + (8,), ((1,), (2,)))]) == 102


def test_contexts_that_share_little_are_scored_separately():
    shared = tuple(range(40))
    assert n_read([Request(shared + (i,) * 50, ((1,),)) for i in (100, 101)]) == 180


def test_a_long_shared_beginning_is_read_again_where_the_row_would_be_too_long():
    shared = tuple(range(400))
    questions = [Request((*shared, *(1000 + i,) * 50), ((1,),)) for i in range(60)]
    units = loglikelihood._build_units(questions)
    assert all(sum(leaf.n_own for leaf in unit) <= 3 * 450 for unit in units)
    assert n_read(questions) == 400 * len(units) + 50 * 60 and len(units) == 4


def test_there_is_little_padding():
    rng = np.random.default_rng(0)
    questions = [
        Request((i, *rng.integers(0, 9, rng.integers(20, 700)).tolist()), ((1, 2), (3,)))
        for i in range(400)
    ]
    read = sum(n * length for n, length, _ in laid_out(questions))
    assert read < 1.06 * n_read(questions)
    assert len({(n, length) for n, length, _ in laid_out(questions)}) <= 8


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


@pytest.mark.parametrize(
    "method",
    [
        evaluation.Greedy(n_tokens=12, stops=()),
        evaluation.TopK(n_tokens=12, k=3),
        evaluation.Beam(n_tokens=12),
    ],
)
def test_every_prompt_gets_a_text(reader, method, monkeypatch):
    monkeypatch.setattr(loglikelihood, "GENERATION_BATCH", 2)
    prompts = [TEXT.encode(text) for text in ("a", "four", "three", "seven of", "x y")]
    found = dict(loglikelihood.generate_until(reader, prompts, method, TEXT, jax.random.key(0)))
    assert sorted(found) == list(range(5)) and len(set(found.values())) > 1
    if isinstance(method, evaluation.Greedy):
        said = decode.generate(
            reader,
            prompts,
            12,
            sampling.SamplingParams(temperature=0),
            jax.random.key(0),
            TEXT.end_of_text,
        )
        assert found == {i: TEXT.decode(tokens) for i, tokens in enumerate(said)}


def test_generation_ends_before_a_stop(reader):
    prompt = TEXT.encode("seven of")
    for plain in (
        evaluation.Greedy(n_tokens=12, stops=()),
        evaluation.Beam(n_tokens=12, width=1, alpha=0, stops=()),
    ):
        ((_, whole),) = loglikelihood.generate_until(
            reader, [prompt], plain, TEXT, jax.random.key(0)
        )
        stop = next(whole[i] for i in range(2, len(whole)) if whole[i] not in whole[:2])
        stopped = dataclasses.replace(plain, stops=(stop,))
        ((_, found),) = loglikelihood.generate_until(
            reader, [prompt], stopped, TEXT, jax.random.key(0)
        )
        assert found == whole[: whole.index(stop)]


def test_the_best_beam_is_returned(reader):
    prompt = TEXT.encode("four")
    ((best, *_),) = beam.search(reader, [prompt], 6, lambda tokens: tokens[-1] == TEXT.end_of_text)
    ((_, found),) = loglikelihood.generate_until(
        reader, [prompt], evaluation.Beam(n_tokens=6, stops=()), TEXT, jax.random.key(0)
    )
    assert found == TEXT.decode([token for token in best.tokens if token != TEXT.end_of_text])


METHODS = [
    evaluation.Greedy(n_tokens=14, stops=()),
    evaluation.TopK(n_tokens=14),
    evaluation.Beam(n_tokens=14, width=2, stops=()),
]


@pytest.mark.parametrize("method", METHODS)
def test_nan_logits_are_refused_even_late_or_in_one_text(reader, method):
    def write(prompts, **broken):
        return dict(
            loglikelihood.generate_until(
                reader.replace(params=reader.params | broken),
                prompts,
                method,
                TEXT,
                jax.random.key(0),
            )
        )

    long, short = [1] * 30, [2] * 3
    late = {
        "position_TD": reader.params["position_TD"].at[40].set(np.nan)
    }  # where the long one's eleventh new token is read
    assert len(write([long, short])) == 2 and len(write([short], **late)) == 1
    token_VD = reader.params["token_VD"]
    broken = [([short], {"token_VD": token_VD * bad}) for bad in (np.nan, np.inf)]
    for prompts, params in [
        *broken,
        ([short], {"token_VD": token_VD.at[5].set(np.nan)}),
        ([long], late),
        ([short, long], late),
    ]:
        with pytest.raises(
            inference.NonFiniteLogits, match="^the model's logits are NaN or infinite"
        ):
            write(prompts, **params)
