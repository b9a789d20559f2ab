"""GPT-1's heuristics compare the model's own log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config.classification import ClassificationTask
from gptjax.data.tokenizers import build
from gptjax.model import gpt
from gptjax.training.classification import zero_shot
from gptjax.training.classification.examples import Example
from tests import tiny

MODEL = tiny.config(n_ctx=32, n_vocab=257).model
SENTIMENT = ClassificationTask(
    kind="classification", fields=("a",), label="y", labels=zero_shot.SENTIMENT, metric="accuracy"
)
CHOICE = ClassificationTask(
    kind="choice", fields=("a",), answers=("b",), label="y", labels=("A", "B"), metric="accuracy"
)
OTHER = ClassificationTask(
    kind="classification", fields=("a",), label="y", labels=("no", "yes"), metric="matthews"
)


@pytest.fixture(scope="module")
def asked():
    model = gpt.GPT(MODEL, gpt.ExecutionPolicy(jnp.float32, None, "reference", False))
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    text = build.ByteTokenizer()

    @jax.jit
    def log_probabilities(tokens_BT):
        return jax.nn.log_softmax(
            gpt.logits(
                model.apply({"params": params}, tokens_BT), params["token_VD"], MODEL.n_vocab
            )
        )[0]

    def after(first, second):
        """The log-probability of each byte of `second` after `first`."""
        whole, start = text.encode(first + second), max(1, len(text.encode(first)))
        y_TV = np.asarray(
            log_probabilities(np.array([[*whole, *[0] * (MODEL.n_ctx - len(whole))]], np.int32))
        )
        return y_TV[np.arange(start, len(whole)) - 1, whole[start:]]

    return lambda task, examples: zero_shot.predict(task, examples, model, params, text), after


def test_sentiment_is_positive_or_negative_after_very(asked):
    answered, after = asked
    found = answered(SENTIMENT, [Example(("a film",), (), 1.0, "0")])
    np.testing.assert_allclose(
        found,
        [[after("a film very", f" {word}").sum() for word in ("negative", "positive")]],
        rtol=1e-4,
    )


def test_a_choice_is_the_answer_of_the_highest_mean(asked):
    answered, after = asked
    found = answered(CHOICE, [Example(("who?",), ("he", "all of us"), 0.0, "0")])
    np.testing.assert_allclose(
        found, [[after("who?", f" {answer}").mean() for answer in ("he", "all of us")]], rtol=1e-4
    )


def test_acceptability_is_against_the_median(asked):
    answered, after = asked
    texts = ["one two", "three", "four five six"]
    found = answered(OTHER, [Example((text,), (), 1.0, "0") for text in texts])
    means = np.array([after("", text).mean() for text in texts])
    np.testing.assert_allclose(found[:, 1] - found[:, 0], means - np.median(means), atol=1e-4)


def test_a_task_without_a_heuristic_is_refused(asked):
    task = ClassificationTask(
        kind="similarity", fields=("a", "b"), label="y", labels=("0", "1"), metric="f1"
    )
    with pytest.raises(ValueError, match="no zero-shot heuristic for a task of kind similarity"):
        asked[0](task, [])
