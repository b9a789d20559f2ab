"""Each row's settings are its own, and mean what generate/sampling.py and formulas say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generate import sampling
from gptjax.server import row_sampling
from gptjax.server.generation import RowSampling

V = 300
RNG = np.random.default_rng(0)
SAMPLE = jax.jit(row_sampling.sample)
FILTER = jax.jit(row_sampling._filter)


def texts(n, prompts=(), generated=()):
    """Texts of n rows with these tokens."""
    prompts_BV = np.zeros((n, V), bool)
    prompts_BV[:, list(prompts)] = True
    counts_BV = np.zeros((n, V), np.int32)
    for token in generated:
        counts_BV[:, token] += 1
    return row_sampling.Texts(
        jnp.asarray(prompts_BV), jnp.asarray(counts_BV), jnp.full(n, len(generated), jnp.int32)
    )


def params(*rows):
    return row_sampling.row_params(rows, V)


def keep(logits_V, temperature, top_k, top_p):
    """Which tokens are left, by sorting."""
    order = np.argsort(-logits_V)
    x = logits_V[order].astype(np.float64) / temperature
    p = np.exp(x - x[0])
    if top_k:
        p[top_k:] = 0
    p /= p.sum()
    kept = np.zeros(len(p), bool)
    kept[order] = (p > 0) & ((np.cumsum(p) - p < top_p) | (top_p == 1))
    return kept


@pytest.mark.parametrize("top_k", [0, 1, 7, V])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-9])
def test_what_is_excluded_is_what_sorting_excludes(top_k, top_p):
    logits_BV = np.array(3 * RNG.normal(size=(24, V)), np.float32)
    temperatures = np.repeat([1.0, 30.0, 0.2], 8)
    rows = [RowSampling(temperature=float(t), top_k=top_k, top_p=top_p) for t in temperatures]
    found_BV = FILTER(logits_BV, params(*rows))
    # The sampler of one setting for all, of the last rows.
    one = sampling.SamplingParams(temperature=0.2, top_k=top_k or None, top_p=top_p)
    last_BV = jax.jit(sampling.filter_logits, static_argnums=1)(logits_BV[16:], one)
    for y_BV, first in ((found_BV, 0), (last_BV, 16)):
        for y_V, logits_V, t in zip(y_BV, logits_BV[first:], temperatures[first:], strict=True):
            finite = np.isfinite(y_V)
            np.testing.assert_array_equal(finite, keep(logits_V, t, top_k, top_p))
            shifted_V = (logits_V - logits_V.max()) / t
            np.testing.assert_allclose(y_V[finite], shifted_V[finite], rtol=1e-5, atol=1e-5)


def test_equally_likely_tokens_at_the_threshold_are_all_kept():
    logits_BV = jnp.asarray([[2.0, 1.0, 1.0, 1.0, 0.0]])
    for params_ in (sampling.SamplingParams(top_k=2), sampling.SamplingParams(top_p=0.5)):
        kept = np.isfinite(sampling.filter_logits(logits_BV, params_))
        assert kept.tolist() == [[True, True, True, True, False]]


def test_a_row_is_sampled_alone_as_among_others():
    rows = [
        RowSampling(seed=1),
        RowSampling(temperature=0),
        RowSampling(temperature=0.5, top_k=9, seed=2**40 + 1),
        RowSampling(top_p=0.7, presence_penalty=1.5, seed=1),
        RowSampling(min_p=0.1, frequency_penalty=-0.5, seed=2**32),
        RowSampling(repetition_penalty=1.3, logit_bias={5: 4.0, 250: -100.0}, seed=7),
    ]
    logits_BV = jnp.asarray(2 * RNG.normal(size=(len(rows), V)), jnp.float32)
    state = texts(len(rows), prompts=(3, 4, 5), generated=(7, 7, 8))
    together = SAMPLE(logits_BV, params(*rows), state)
    for b, row in enumerate(rows):
        one = jax.tree.map(lambda x: x[b : b + 1], (logits_BV, state))  # noqa: B023
        assert SAMPLE(one[0], params(row), one[1])[0] == together[b]
    assert together[1] == jnp.argmax(logits_BV[1])


def test_seeds_and_positions_give_other_numbers():
    logits_BV = jnp.zeros((1, V))
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63]
    drawn = [
        tuple(
            int(SAMPLE(logits_BV, params(RowSampling(seed=seed)), texts(1, generated=range(n)))[0])
            for n in range(6)
        )
        for seed in seeds
    ]
    assert len(set(drawn)) == len(seeds) and all(len(set(row)) > 3 for row in drawn)


def test_adjustments_are_those_of_their_formulas():
    logits_BV = jnp.asarray(RNG.normal(size=(2, V)), jnp.float32)
    row = RowSampling(
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=2.0,
        logit_bias={10: 3.0, 11: -2.0},
    )
    state = texts(2, prompts=(1, 2), generated=(3, 3, 4))
    found_BV = row_sampling._adjust(logits_BV, params(row, RowSampling()), state)
    expected = np.array(logits_BV)
    expected[0, 10] += 3
    expected[0, 11] -= 2
    for token in (1, 2, 3, 4):
        y = expected[0, token]
        expected[0, token] = y / 2 if y > 0 else y * 2
    expected[0, 3] -= 0.5 + 2 * 0.25
    expected[0, 4] -= 0.5 + 0.25
    np.testing.assert_allclose(found_BV, expected, rtol=1e-6)


def test_min_p_is_relative_to_the_likeliest():
    p_V = np.full(V, 1e-6)
    p_V[:4] = 0.4, 0.21, 0.19, 0.05
    logits_BV = jnp.log(jnp.asarray(p_V / p_V.sum(), jnp.float32))[None]
    kept = [
        int(np.isfinite(row_sampling._filter(logits_BV, params(RowSampling(min_p=p)))).sum())
        for p in (0.0, 0.1, 0.5, 0.55, 1.0)
    ]
    assert kept == [V, 4, 2, 1, 1]


def test_a_grammar_allows_what_it_allows():
    logits_BV = jnp.asarray(RNG.normal(size=(2, V)), jnp.float32)
    allowed_BV = np.zeros((2, V), bool)
    allowed_BV[:, 42] = True
    rows = params(RowSampling(), RowSampling(temperature=0))
    found = SAMPLE(logits_BV, rows, texts(2), jnp.asarray(allowed_BV))
    assert found.tolist() == [42, 42]


def test_nan_logits_are_no_token_and_no_matter_to_others():
    logits_BV = jnp.zeros((2, V)).at[0, 3].set(jnp.nan).at[1, 9].set(9.0)
    rows = params(RowSampling(), RowSampling(temperature=0))
    assert SAMPLE(logits_BV, rows, texts(2)).tolist() == [sampling.NONE, 9]


def test_scores_are_of_the_logits_as_they_are():
    logits_BV = jnp.asarray(RNG.normal(size=(3, V)), jnp.float32)
    scores = row_sampling.score(logits_BV, jnp.array([0, 5, 299]))
    expected = jax.nn.log_softmax(logits_BV)
    np.testing.assert_allclose(
        scores.token_B, [expected[b, t] for b, t in enumerate((0, 5, 299))], 1e-5
    )
    for b in range(3):
        order = np.argsort(-expected[b])[: row_sampling.MAX_LOGPROBS]
        assert scores.ids_BK[b].tolist() == order.tolist()
        np.testing.assert_allclose(scores.logprobs_BK[b], expected[b][order], rtol=1e-5)


def test_every_setting_is_an_array():
    fields = {field.name for field in dataclasses.fields(RowSampling)}
    rows = row_sampling.row_params([RowSampling()] * 3, V)
    assert len(fields) == 9 and all(len(x) == 3 for x in jax.tree.leaves(rows))
