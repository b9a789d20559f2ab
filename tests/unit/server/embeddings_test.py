"""Embeddings of a model: the mean of the last hidden states, whatever the padding."""

import jax
import numpy as np

from gptjax.model import activations, inference
from gptjax.server import embeddings
from tests import tiny


def test_the_mean_of_the_last_states(monkeypatch):
    config = tiny.config()
    _, train_step, state = tiny.make_step(config)
    lm = inference.prepare(train_step.model, state.params)
    texts = [[5], [1, 2, 3, 4, 5], [7] * 12]
    vectors = embeddings.make_embed(lm)(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (3, config.model.d_model)
    for ids, vector in zip(texts, vectors, strict=True):
        states_TD = np.asarray(activations.hidden_states(lm, jax.numpy.array([ids]))[-1][0])
        mean_D = states_TD.mean(0)
        np.testing.assert_allclose(vector, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    checks = []
    monkeypatch.setattr(embeddings.work, "check_canceled", lambda: checks.append(1))
    embeddings.make_embed(lm)(texts)
    assert len(checks) == 3, "before each text"
