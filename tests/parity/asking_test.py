"""What is asked in rows of forests is the forward pass: the same log-probabilities, for every
pattern, on any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.evals import loglikelihood, tree_batches
from gptjax.evals.loglikelihood import LogLikelihood
from gptjax.evals.tree_batches import Request
from gptjax.model import gpt, inference
from tests import tiny

T = 24  # the context


def drawn(n: int, seed: int = 0) -> list[Request]:
    """Questions of one to four completions, one to five tokens each, of few different ones, so that
    they begin alike; every second context begins with the same ten tokens; a context that is
    another's beginning, the same question twice, one that fills the context."""
    rng = np.random.default_rng(seed)

    def tokens(n, most=61):
        return tuple(rng.integers(0, most, n).tolist())

    shared = tokens(10)
    found = [
        Request(
            (shared if i % 2 else ()) + tokens(rng.integers(1, 8)),
            tuple(tokens(rng.integers(1, 6), 3) for _ in range(1 + i % 4)),
        )
        for i in range(n)
    ]
    return [
        *found,
        found[0],
        Request(shared[:6], ((1,), (1, 2))),
        Request(tokens(1), (tokens(T),)),
        Request(tokens(T), ((5,), (6,))),
    ]


def by_itself(model, params, questions, banned=()) -> list[tuple[LogLikelihood, ...]]:
    """Each completion by a forward pass of its own."""

    texts = [
        (question, completion) for question in questions for completion in question.completions
    ]
    rows_BT = np.zeros((len(texts), T), np.int32)
    for row, (question, completion) in enumerate(texts):
        text = [*question.context, *completion[:-1]]
        rows_BT[row, : len(text)] = text

    @jax.jit
    def log_probabilities(tokens_BT):
        return jax.nn.log_softmax(
            gpt.logits(
                model.apply({"params": params}, tokens_BT), params["token_VD"], model.config.n_vocab
            )
        )

    found = []
    for (question, completion), p_TV in zip(
        texts, np.array(log_probabilities(rows_BT), np.float64), strict=True
    ):
        p_TV = p_TV[len(question.context) - 1 : len(question.context) + len(completion) - 1]
        total = p_TV[np.arange(len(completion)), completion].sum()
        p_TV[0, list(banned)] = -np.inf
        said = p_TV.argmax(axis=1) == completion
        found.append(LogLikelihood(total, len(completion), bool(said.all()), bool(said[-1])))
    return [tuple(found.pop(0) for _ in question.completions) for question in questions]


def assert_same(found, expected):
    assert sorted(found) == list(range(len(expected)))
    for number, answers in enumerate(expected):
        for here, there in zip(found[number], answers, strict=True):
            assert here.log_prob == pytest.approx(there.log_prob, abs=1e-4)
            assert (here.n_tokens, here.is_greedy, here.last_is_greedy) == (
                there.n_tokens,
                there.is_greedy,
                there.last_is_greedy,
            )


PATTERNS = (schema.Dense(),), (schema.Banded(window=3),), tiny.GPT3, tiny.PATTERNS


@pytest.mark.parametrize(
    "attention, norm", [(p, "pre") for p in PATTERNS] + [(tiny.PATTERNS, "post")], ids=str
)
def test_of_every_pattern(attention, norm):
    _, built, state = tiny.make_step(
        tiny.config(attention=attention, norm=norm, n_ctx=T, n_layers=len(attention))
    )
    questions = drawn(30)
    found = dict(
        loglikelihood.loglikelihood(
            inference.prepare(built.model, state.params), questions, built.model.sharding
        )
    )
    assert_same(found, by_itself(built.model, state.params, questions))


@pytest.mark.parametrize(
    "sharding, sizes",
    [("fsdp", {"fsdp": 8}), ("fsdp", {"data": 4, "fsdp": 2}), ("fsdp_tensor", {"tensor": 4})],
)
def test_on_many_devices(sharding, sizes):
    c = tiny.replace_parts(tiny.config(n_ctx=T, n_layers=2), mesh={"sharding": sharding, **sizes})
    _, one, alone = tiny.make_step(tiny.config(n_ctx=T, n_layers=2))
    _, built, state = tiny.make_step(c, 8)
    questions = drawn(30)
    found = dict(
        loglikelihood.loglikelihood(
            inference.prepare(built.model, state.params), questions, built.model.sharding
        )
    )
    assert_same(found, by_itself(one.model, alone.params, questions))


def test_several_programs_rows_and_parts(monkeypatch):
    """Rows of 32 tokens, two at once, logits of 4 to 8 tokens."""
    monkeypatch.setattr(tree_batches, "ROW_TOKENS", 32)
    monkeypatch.setattr(tree_batches, "BATCH_TOKENS", 64)
    monkeypatch.setattr(loglikelihood, "SCORE_TOKENS", (4, 8))
    _, built, state = tiny.make_step(tiny.config(n_ctx=T, n_layers=2))
    reader, questions = inference.prepare(built.model, state.params), drawn(60)
    order, found = zip(*loglikelihood.loglikelihood(reader, questions), strict=True)
    assert list(order) != sorted(order)
    assert_same(
        dict(zip(order, found, strict=True)), by_itself(built.model, state.params, questions)
    )


def test_banned_tokens_are_never_the_argmax():
    _, built, state = tiny.make_step(tiny.config(n_ctx=T, n_layers=2))
    reader = inference.prepare(built.model, state.params)
    asked = [
        Request((7, 8), tuple((i, j) for i in range(61) for j in (0, 1))),
        Request((9,), tuple((i,) for i in range(61))),
    ]
    plain = dict(loglikelihood.loglikelihood(reader, asked))
    (likeliest,) = [i for i, x in enumerate(plain[1]) if x.is_greedy]
    found = dict(loglikelihood.loglikelihood(reader, asked, banned=[likeliest]))
    (second,) = [i for i, x in enumerate(found[1]) if x.is_greedy]
    assert (
        second != likeliest
        and found[1][second].last_is_greedy
        and not found[1][likeliest].last_is_greedy
    )
    assert_same(found, by_itself(built.model, state.params, asked, banned=[likeliest]))


def test_a_banned_token_is_a_rival_of_every_token_but_the_first():
    """Logits 3, 2, 1 of three tokens, of which 0 is banned: then 1 is what is said first, and 0
    is said later."""
    _, built, state = tiny.make_step(tiny.config(d_model=4))
    reader = inference.prepare(
        built.model, state.params | {"token_VD": jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.0]))}
    )
    wanted, first = np.array([0, 1, 2, 0, 1], np.int32), np.array([True, True, True, False, False])
    allowed = np.array([False, True, True, True])
    p_B, said_B = loglikelihood._log_probs(reader, jnp.ones((5, 1, 4)), wanted, first, allowed)
    assert said_B.tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(
        p_B, jax.nn.log_softmax(jnp.array([3.0, 2.0, 1.0, 0.0]))[wanted], atol=1e-6
    )


def test_nan_logits_are_refused():
    _, built, state = tiny.make_step(tiny.config(d_model=4))
    broken = inference.prepare(
        built.model, state.params | {"token_VD": state.params["token_VD"] * jnp.nan}
    )
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        list(loglikelihood.loglikelihood(broken, [Request((1,), ((2,), (3,)))]))


@pytest.mark.parametrize("stride", [None, 7])
def test_whole_texts(stride):
    _, built, state = tiny.make_step(tiny.config(n_ctx=T, n_layers=2))
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 61, n).tolist() for n in (60, 0, 1, T, T + 1)]
    found = dict(
        loglikelihood.loglikelihood_rolling(
            inference.prepare(built.model, state.params), texts, 60, stride=stride
        )
    )
    for number, text in enumerate(texts):
        x, step, questions = [60, *text], stride or T, []
        for start in range(0, len(text), step):
            stop = min(start + step, len(text))
            begin = max(0, stop - T)
            questions += [
                Request(tuple(x[begin : at + 1]), ((x[at + 1],),)) for at in range(start, stop)
            ]
        expected = sum(
            answer.log_prob for (answer,) in by_itself(built.model, state.params, questions)
        )
        assert found[number] == pytest.approx(expected, abs=1e-4)
