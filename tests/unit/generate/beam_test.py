"""Beam search against all continuations there are, over a tiny vocabulary."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generate import beam, decode
from gptjax.generate.sampling import SamplingParams
from gptjax.model import gpt, inference
from tests import tiny

V, END, N = 5, 4, 4
# times the initial weights: likelihoods that differ, and depend on more than the last token
LOUD = 20.0


@pytest.fixture(scope="module")
def small():
    _, built, state = tiny.make_step(tiny.config(n_vocab=V, n_layers=2))

    def louder(path, x):
        return (
            LOUD * x
            if "weight" in jax.tree_util.keystr(path[-1:])
            or "token" in jax.tree_util.keystr(path[-1:])
            else x
        )

    params = jax.tree_util.tree_map_with_path(louder, state.params)
    return built.model, params, inference.prepare(built.model, params)


def never(tokens):
    return False


def at_end(tokens):
    return tokens[-1] == END


def all_of(small, prompt, ends, alpha):
    """(score, tokens) of every continuation that `ends` ends within N tokens, or of N tokens
    where it never does; by the forward pass."""
    model, params, _ = small
    paths = np.array(list(itertools.product(range(V), repeat=N)), np.int32)
    rows = np.concatenate([np.repeat([prompt], len(paths), axis=0), paths], axis=1)
    x = jax.jit(lambda t: gpt.logits(model.apply({"params": params}, t), params["token_VD"], V))(
        rows
    )
    logp = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(x))[:, len(prompt) - 1 : -1], paths[..., None], 2
    )[..., 0]
    found = {}
    for path, steps in zip(paths.tolist(), logp, strict=True):
        lengths = [n for n in range(1, N + 1) if ends(tuple(path[:n]))][:1] or (
            [N] if ends is never else []
        )
        for n in lengths:
            found[tuple(path[:n])] = steps[:n].sum() / beam.length_penalty(n, alpha)
    return sorted(((score, tokens) for tokens, score in found.items()), reverse=True)


@pytest.mark.parametrize("ends", [never, at_end])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_an_exhaustive_beam_finds_the_best(small, ends, alpha):
    width = 64
    found = beam.search(small[2], [[1, 2], [3]], N, ends, width, alpha)
    for prompt, hypotheses in zip([[1, 2], [3]], found, strict=True):
        best = all_of(small, prompt, ends, alpha)
        assert [h.tokens for h in hypotheses[:5]] == [tokens for _, tokens in best[:5]]
        np.testing.assert_allclose(
            [h.score for h in hypotheses[:5]], [score for score, _ in best[:5]], atol=1e-4
        )
        assert all(h.is_complete == (ends is at_end) for h in hypotheses)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)


def test_a_beam_of_one_is_greedy(small):
    prompts = [[1], [2, 3, 1], [0, 0]]
    greedy = decode.generate(small[2], prompts, 9, SamplingParams(temperature=0), jax.random.key(0))
    assert [list(h.tokens) for (h,) in beam.search(small[2], prompts, 9, never, width=1)] == greedy


def test_a_beam_finds_what_greedy_misses(small):
    """Among all prompts of two tokens there is one whose likeliest continuation does not begin
    with the likeliest token."""
    _, _, reader = small
    prompts = [list(p) for p in itertools.product(range(V), repeat=2)]
    greedy = beam.search(reader, prompts, N, never, width=1, alpha=0.0)
    wide = beam.search(reader, prompts, N, never, width=3, alpha=0.0)
    better = [i for i in range(len(prompts)) if wide[i][0].score > greedy[i][0].score + 1e-3]
    assert better and all(
        w[0].score >= g[0].score - 1e-5 for w, g in zip(wide, greedy, strict=True)
    )
    for i in better[:3]:
        assert (
            wide[i][0].tokens == all_of(small, prompts[i], never, 0.0)[0][1] != greedy[i][0].tokens
        )


def test_prompts_are_searched_independently(small):
    prompts = [[1], [2, 3, 1], [0, 0]]
    together = beam.search(small[2], prompts, 6, at_end, width=3)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = beam.search(small[2], [prompt], 6, at_end, width=3)
        assert [h.tokens for h in found] == [h.tokens for h in alone]


def test_a_beam_that_can_still_win_is_followed():
    """A text of one token has ended at -1; one under way at -1.5 comes to -0.75 if it is 7 long:
    ((5 + 7) / 6) ** 1 = 2."""
    for alpha, n_tokens, settled in [(1.0, 7, False), (1.0, 3, True), (0.0, 7, True)]:
        group = beam._BeamGroup(n_tokens, at_end, 1, alpha)
        group.advance([[(-1.0, END), (-1.5, 0)]])
        assert [h.tokens for h in group.complete] == [(END,)] and group.done == settled, (
            alpha,
            n_tokens,
        )


def test_twice_the_width_is_considered_since_every_beam_may_end():
    group = beam._BeamGroup(7, lambda tokens: tokens[-1] >= 3, 2, 5.0)
    assert group.advance([[(-0.1, 3), (-0.2, 4), (-0.3, 0), (-0.4, 1), (-0.5, 2)]]) == [0, 0]
    assert [tokens for _, tokens in group.active] == [(0,), (1,)] and not group.done


def test_wu_et_als_length_penalty():
    assert beam.length_penalty(1, 0.6) == 1 and beam.length_penalty(7, 0.0) == 1
    assert beam.length_penalty(7, 0.6) == pytest.approx(2**0.6)


def test_a_longer_text_wins_under_a_larger_alpha(small):
    lengths = [
        len(beam.search(small[2], [[1, 2]], N, at_end, 64, alpha)[0][0].tokens)
        for alpha in (0.0, 5.0)
    ]
    assert lengths[0] < lengths[1]


def test_padded_ids_are_never_generated(small):
    model, params, _ = small
    loud = inference.prepare(model, params | {"token_VD": params["token_VD"].at[V:].set(100.0)})
    (found,) = beam.search(loud, [[1]], 3, never, width=4)
    assert max(token for h in found for token in h.tokens) < V


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"width": 0}, "a beam of width 0 with alpha 0.6: give a width from 1 to 1,024"),
        ({"width": 10**6}, "a beam of width 1000000 with alpha 0.6: give a width from 1 to 1,024"),
        ({"alpha": -1.0}, "with alpha -1.0"),
        ({"alpha": 1e308}, "an alpha from 0 to 10"),
        ({"alpha": float("nan")}, "an alpha from 0 to 10"),
        (
            {"n_tokens": 12},
            ("a prompt of 2 tokens and 12 new ones exceed the model's context of 12"),
        ),
        ({"prompts": [[]]}, "an empty prompt"),
    ],
)
def test_invalid_requests_are_refused(small, wrong, message):
    with pytest.raises(ValueError, match=message):
        beam.search(
            **(
                {"inference_model": small[2], "prompts": [[1, 2]], "n_tokens": 4, "is_end": never}
                | wrong
            )
        )


def test_the_whole_context_is_used(small):
    (found,) = beam.search(
        small[2], [[1, 2]], 11, never, width=2
    )  # 2 + 11 = 13: the last token is not read
    assert len(found[0].tokens) == 11
    assert jnp.isfinite(found[0].score)
