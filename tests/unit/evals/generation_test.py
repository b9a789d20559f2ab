"""What is generated after many prompts, and where it ends."""

import dataclasses

import jax
import numpy as np
import pytest

from gptjax.config import evaluation
from gptjax.data.tokenizers import build
from gptjax.evals import generation
from gptjax.generate import beam, decode, sampling
from gptjax.model import inference
from tests import tiny

TEXT = build.ByteTokenizer()


@pytest.fixture(scope="module")
def reader():
    _, built, state = tiny.make_step(tiny.config(n_ctx=64, n_layers=2, n_vocab=257))
    return inference.prepare(built.model, jax.tree.map(lambda x: 8 * x, state.params))


@pytest.mark.parametrize(
    "method",
    [
        evaluation.Greedy(n_tokens=12, stops=()),
        evaluation.TopK(n_tokens=12, k=3),
        evaluation.Beam(n_tokens=12),
    ],
)
def test_every_prompt_gets_a_text(reader, method, monkeypatch):
    monkeypatch.setattr(generation, "GENERATION_BATCH", 2)
    prompts = [TEXT.encode(text) for text in ("a", "four", "three", "seven of", "x y")]
    found = dict(generation.generate_until(reader, prompts, method, TEXT, jax.random.key(0)))
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
        ((_, whole),) = generation.generate_until(reader, [prompt], plain, TEXT, jax.random.key(0))
        stop = next(whole[i] for i in range(2, len(whole)) if whole[i] not in whole[:2])
        stopped = dataclasses.replace(plain, stops=(stop,))
        ((_, found),) = generation.generate_until(
            reader, [prompt], stopped, TEXT, jax.random.key(0)
        )
        assert found == whole[: whole.index(stop)]


def test_the_best_beam_is_returned(reader):
    prompt = TEXT.encode("four")
    ((best, *_),) = beam.search(reader, [prompt], 6, lambda tokens: tokens[-1] == TEXT.end_of_text)
    ((_, found),) = generation.generate_until(
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
            generation.generate_until(
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
