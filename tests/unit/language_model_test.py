"""The model of the Python API: each answer is that of an independent computation."""

import dataclasses
import functools
import json
import math
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import evaluate, sample
from gptjax.config import schema
from gptjax.data.tokenizers import build
from gptjax.language_model import LanguageModel
from gptjax.model import gpt, inference, layers
from gptjax.model.attention import patterns
from gptjax.report import console
from gptjax.sharding import device_mesh, rules
from gptjax.training import state, step
from gptjax.weights import open_model
from tests import tiny

N_CTX = 24
KINDS = {
    "every pattern": {"attention": tiny.PATTERNS},
    "gpt1": {"norm": "post", "attention": (schema.Dense(),), "n_layers": 2},
    "one layer": {"attention": (schema.Dense(),), "n_layers": 1},
}
TEXT = "the first, the second and the third"


@functools.cache
def model(kind: str = "every pattern") -> LanguageModel:
    """A random model of bytes (config.name is its kind), whose logits are far from uniform."""
    c = tiny.config(n_vocab=257, n_ctx=N_CTX, **{"n_layers": 4} | KINDS[kind])
    c = dataclasses.replace(c, name=kind)
    mesh = device_mesh.make_mesh(c.mesh, jax.devices()[:1])
    train_step = step.build(c, "cpu", mesh, None)
    shapes = state.abstract_state(c, train_step.model, train_step.tx, mesh).params
    rng = np.random.default_rng(0)

    def draw(path, x):
        """Around 1 for the gains of layer norms, else around 0."""
        y = 0.3 * rng.normal(size=x.shape).astype(np.float32) + float(path[-1].key == "gain_D")
        return jax.device_put(y.astype(np.float32), x.sharding)

    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return LanguageModel("random", c, build.ByteTokenizer(), mesh, train_step, params)


@functools.cache
def jitted_forward(kind: str):
    """The model that is trained, compiled for (B, N_CTX) tokens."""
    module = model(kind).train_step.model.clone(sharding=rules.UNSHARDED)

    def apply(params, tokens_BT):
        return gpt.logits(module.apply({"params": params}, tokens_BT), params["token_VD"], 257)

    return jax.jit(apply)


def forward(m: LanguageModel, tokens) -> np.ndarray:
    """(B, T, V) logits by the model that is trained. Rows are filled up to N_CTX: what comes after
    a token changes nothing of it, and one program does for all."""
    tokens_BT = np.asarray(tokens, np.int32)
    length = tokens_BT.shape[1]
    tokens_BT = np.pad(tokens_BT, ((0, 0), (0, N_CTX - length)))
    return np.asarray(jitted_forward(m.config.name)(m.params, tokens_BT))[:, :length, :257]


def log_probs(m: LanguageModel, tokens) -> np.ndarray:
    """(T, V) of one text, in float64."""
    y_TV = forward(m, [tokens])[0].astype(np.float64)
    return (
        y_TV
        - np.log(np.exp(y_TV - y_TV.max(1, keepdims=True)).sum(1, keepdims=True))
        - y_TV.max(1, keepdims=True)
    )


@pytest.fixture
def rows():
    return np.random.default_rng(1).integers(0, 257, (2, N_CTX - 3))


class PrefixedBytes(build.ByteTokenizer):
    """Bytes, with an id before every prompt, as Llama 3 and Gemma have it."""

    text_prefix = (7,)


def test_what_stands_before_a_prompt_is_read_first():
    m = dataclasses.replace(model("one layer"), tokenizer=PrefixedBytes())
    ids = [7, *b"abc"]
    expected = log_probs(m, [*ids, *b"de"])[3:5][range(2), list(b"de")].sum()
    assert m.loglikelihood("abc", "de").log_prob == pytest.approx(expected, rel=1e-4)
    (first, *_) = log_probs(m, ids)[-1:].argmax(1)
    written = m.generate("abc", max_new_tokens=1, temperature=0)
    assert written == m.tokenizer.decode([int(first)])


# --- inside -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["every pattern", "gpt1"])
def test_logits_are_those_of_the_model_that_is_trained(kind, rows):
    m = model(kind)
    y_BTV = m.logits(rows)
    assert y_BTV.shape == (2, N_CTX - 3, 257) and y_BTV.dtype == jnp.float32
    np.testing.assert_allclose(y_BTV, forward(m, rows), atol=1e-5, rtol=0)
    assert forward(m, rows).std() > 1
    for one in (rows[1].tolist(), tuple(rows[1]), jnp.asarray(rows[1]), rows[1].astype(np.uint16)):
        np.testing.assert_allclose(m.logits(one), forward(m, rows)[1], atol=1e-5, rtol=0)


def block_of(m, layer):
    """The module and the parameters of a layer."""
    lm = m.inference_model
    params = gpt.layer_params(m.config.model, lm.params, layer)
    return inference.block(lm, layer), params


@pytest.mark.parametrize("kind", ["every pattern", "gpt1"])
def test_hidden_states_lead_from_the_embeddings_to_the_logits(kind, rows):
    m = model(kind)
    n, p = m.config.model.n_layers, m.params
    states = m.hidden_states(rows)
    assert states.shape == (n + 1, 2, N_CTX - 3, 16)
    np.testing.assert_array_equal(
        states[0], p["token_VD"][rows] + p["position_TD"][None, : rows.shape[1]]
    )
    np.testing.assert_allclose(
        jnp.einsum("BTD,VD->BTV", states[-1], p["token_VD"][:257]), m.logits(rows), atol=1e-4
    )
    np.testing.assert_allclose(m.hidden_states(rows[0]), states[:, 0], atol=1e-5)
    if (
        kind == "gpt1"
    ):  # layer norm is the last that a layer does, so that its mean over the width is the bias's
        return
    block, params = block_of(m, n - 1)
    x_BTD = block.apply(
        {"params": params}, states[n - 1], None, False
    )  # before the final layer norm
    norm = layers.LayerNorm(parent=None).apply({"params": p["norm"]}, x_BTD)
    np.testing.assert_allclose(norm, states[-1], atol=1e-4)
    assert not np.allclose(x_BTD, states[-1], atol=0.1)


@pytest.mark.parametrize("layer", range(4))
def test_attention_weights_are_those_of_the_layer_in_its_pattern(layer, rows):
    """Times the values, through the output projection, they are what the layer's attention adds by
    its kernel."""
    m = model()
    pattern = m.config.model.attention[layer]
    w_BNTS = m.attention_weights(rows, layer)
    T = rows.shape[1]
    assert w_BNTS.shape == (2, 4, T, T) and w_BNTS.dtype == jnp.float32
    np.testing.assert_allclose(w_BNTS.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(w_BNTS > 0), np.broadcast_to(patterns.mask(pattern, T, T), w_BNTS.shape)
    )
    np.testing.assert_array_equal(m.attention_weights(rows, layer - 4), w_BNTS)
    np.testing.assert_allclose(m.attention_weights(rows[1], layer), w_BNTS[1], atol=1e-6)

    assert m.train_step.model.execution_policy.kernel == "blocks"
    block, params = block_of(m, layer)
    _, captured = block.apply(
        {"params": params}, m.hidden_states(rows)[layer], None, False,
        capture_intermediates=lambda m, _: type(m) in (layers.Attention, layers.QKVProjection),
        mutable=["intermediates"],
    )  # fmt: skip
    captured = captured["intermediates"]["attention"]
    v_BTNH = captured["qkv"]["__call__"][0][2]
    out = params["attention"]["out"]
    o_BTD = (
        jnp.einsum("BNTS,BSNH,DNH->BTD", w_BNTS, v_BTNH, out["weight_DNH"])
        + out["bias_D"][None, None]
    )
    np.testing.assert_allclose(o_BTD, captured["__call__"][0], atol=1e-4)


@pytest.mark.parametrize("ask", ["logits", "hidden_states", "attention_weights"])
@pytest.mark.parametrize("tokens, line", [
    ([], r"tokens of shape \(0,\): give at least one token"),
    ([[[1]]], r"tokens of shape \(1, 1, 1\): give \(T,\) or \(B, T\)"),
    (3, r"tokens of shape \(\)"),
    ([[1, 2], [3]], "rows of several lengths; give ids"),
    ([1.0, 2.0], "tokens of type float64: give ids, as model.tokenizer.encode"),
    ("ab", "tokens of type <U2: give ids"),
    (["a", "b"], "tokens of type <U1: give ids"),
    ([True], "tokens of type bool"),
    ([257], "token 257 is none of the model's ids, 0 to 256"),
    ([5, -1], "token -1 is none of"),
    ([0] * (N_CTX + 1), "25 tokens are more than the model's context of 24"),
])  # fmt: skip
def test_tokens_that_are_none_are_one_line(ask, tokens, line):
    layer = (0,) if ask == "attention_weights" else ()
    with pytest.raises(ValueError, match=line) as error:
        getattr(model(), ask)(tokens, *layer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layer", [4, -5, 1.0, "0", True])
def test_a_layer_that_there_is_not_is_one_line(layer):
    with pytest.raises(ValueError, match=r"^layer=.*: give a whole number from -4 to 3$"):
        model().attention_weights([1], layer)


# --- text ---------------------------------------------------------------------------------------


def test_greedy_text_is_the_likeliest_token_again_and_again():
    m = model()
    ids = [*b"the "]
    while len(ids) < 16 and (token := int(forward(m, [ids])[0, -1].argmax())) != 256:
        ids.append(token)
    assert len(ids) > 8
    text = m.generate("the ", max_new_tokens=12, temperature=0)
    assert text == m.tokenizer.decode(ids).removeprefix("the ")


@pytest.mark.parametrize("one_token", [{"top_k": 1}, {"top_p": 1e-6}])
def test_sampling_among_one_token_is_greedy(one_token):
    m = model("one layer")
    greedy = m.generate("the ", max_new_tokens=12, temperature=0)
    assert m.generate("the ", max_new_tokens=12, **one_token) == greedy
    assert m.generate("the ", max_new_tokens=12) != greedy


def test_pieces_are_the_text_and_stop_ends_it():
    m = model("one layer")
    options = {"max_new_tokens": 16, "seed": 52}
    text = m.generate("the ", **options)
    assert text[-1] == "\ufffd"  # the last piece: bytes that are held back until the text ends
    pieces = list(m.generate("the ", **options, stream=True))
    assert "".join(pieces) == text and len(pieces) > 2
    several = m.generate(["the ", "a"], **options)
    assert (
        len(several) == 2
        and [
            "".join(row)
            for row in zip(*m.generate(["the ", "a"], **options, stream=True), strict=True)
        ]
        == several
    )
    assert (
        m.generate("the ", max_new_tokens=16, seed=4)
        != text
        != m.generate("the ", **options, temperature=3.0)
    )
    stop = next(c for c in text[2:] if c.isascii())
    before = text[: text.index(stop)]
    assert m.generate("the ", **options, stop=stop) == before
    assert m.generate("the ", **options, stop=["never seen", stop]) == before
    assert 3 * stop not in text and m.generate("the ", **options, stop=3 * stop) == text


def test_an_empty_prompt_begins_as_texts_do():
    m = model()
    first = log_probs(m, [256])[0]
    text = m.generate("", max_new_tokens=1, temperature=0)
    assert text == ("" if first.argmax() == 256 else m.tokenizer.decode([int(first.argmax())]))


@pytest.fixture
def sampled(text_run, text_model, one_device, monkeypatch):
    """What python -m gptjax.sample shows of the run: texts, each after its prompt."""
    monkeypatch.setattr(open_model, "open_model", lambda *args, **options: text_model)

    def run(*flags: str) -> list[str]:
        pieces, texts = [], []
        monkeypatch.setattr(console.Console, "write", lambda self, text: pieces.append(text))
        monkeypatch.setattr(
            console.Console, "print_samples", lambda self, shown, titles=None: texts.extend(shown)
        )
        sample.main([f"--model={text_run[1]}", "--prompt=7 and", *flags])
        return ["".join(pieces)] if pieces else texts

    return run


@pytest.mark.parametrize("flags, options", [
    ([], {}),
    (["--temperature=0.7", "--top_k=9", "--seed=5"], {"temperature": 0.7, "top_k": 9, "seed": 5}),
    pytest.param(["--top_p=0.5", "--stop=a"], {"top_p": 0.5, "stop": "a"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_text_is_that_of_the_program_with_the_same_options(flags, options, text_model, sampled):
    m = text_model
    alone = m.generate("7 and", max_new_tokens=12, **options)
    assert sampled("--max_new_tokens=12", *flags) == ["7 and" + alone]
    both = m.generate(["7 and"] * 2, max_new_tokens=12, **options)
    assert sampled("--max_new_tokens=12", "--num_samples=2", *flags) == [
        "7 and" + text for text in both
    ]


def test_a_beam_search_is_the_programs(text_model, sampled):
    """Of several prompts in their own order, not that of their lengths."""
    m, options = text_model, {"max_new_tokens": 6, "num_beams": 3, "stop": " "}
    flags = "--max_new_tokens=6", "--num_beams=3", "--stop= ", "--length_penalty=3"
    (best, _) = sampled(*flags, "--num_samples=2")
    text = m.generate("7 and", **options, length_penalty=3)
    assert "7 and" + text == best
    assert len(m.generate("7 and", **options)) < len(text)
    pair = m.generate(["the", "7 and"], **options, length_penalty=3)
    assert pair == [m.generate("the", **options, length_penalty=3), text] and pair[0] != text


@pytest.mark.parametrize("options, line", [
    ({"max_new_tokens": 0}, "max_new_tokens=0: give a whole number from 1 to 1,000,000"),
    ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
    ({"temperature": -1}, "temperature=-1"),
    ({"temperature": float("nan")}, "temperature=nan"),
    ({"top_k": 0}, "top_k=0"),
    ({"top_p": 0}, "top_p=0"),
    ({"seed": -1}, "seed=-1: give a whole number from 0 to 4,294,967,295"),
    ({"stop": ""}, "an empty stop string"),
    ({"num_beams": 0}, "width=0"),
    ({"num_beams": 2, "length_penalty": -1}, "alpha=-1"),
    ({"num_beams": 2, "temperature": 0.5}, "num_beams=2 searches for the likeliest text"),
    ({"num_beams": 2, "stream": True}, "num_beams=2 searches"),
    ({"num_beams": 2, "max_new_tokens": 30}, "exceed the model's context of 24"),
])  # fmt: skip
def test_options_that_cannot_be_are_one_line_before_anything_is_written(options, line):
    with pytest.raises(ValueError, match=line) as error:
        model().generate("the ", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prompt", [[], [True], 3, None, b"x"])
def test_a_prompt_that_is_no_text_is_one_line(prompt):
    with pytest.raises(ValueError, match="^prompt=.*: give a text, or a list of at least one$"):
        model().generate(prompt)


def test_log_likelihoods_are_sums_of_the_logits_log_softmax():
    m = model()
    pairs = [("the cat", " sat"), ("the ", "dog"), ("", "a"), ("the cat", " s")]
    answers = m.loglikelihood(*map(list, zip(*pairs, strict=True)))
    for (context, completion), answer in zip(pairs, answers, strict=True):
        ids = [*(context + completion).encode()]
        n = len(ids) - len(context.rstrip())
        p_TV = log_probs(m, [256, *ids][:-1] if not context else ids[:-1])[-n:]
        targets = ids[-n:]
        assert answer.n_tokens == n
        assert answer.log_prob == pytest.approx(sum(p_TV[range(n), targets]), abs=1e-4)
        assert answer.is_greedy == (p_TV.argmax(1) == targets).all()
        assert m.loglikelihood(context, completion).log_prob == pytest.approx(
            answer.log_prob, abs=1e-5
        )
    same = m.loglikelihood("the cat", [" sat", " s"])
    assert [x.n_tokens for x in same] == [4, 2]
    assert same[1].log_prob == pytest.approx(answers[3].log_prob, abs=1e-5)
    first = {c: int(log_probs(m, [ord(c)])[-1].argmax()) for c in string.ascii_letters}
    c = next(
        c for c in first if 32 < first[c] < 127
    )  # after which the likeliest byte can be written
    assert m.loglikelihood(c, chr(first[c])).is_greedy
    assert not m.loglikelihood(c, chr(first[c] - 1 if first[c] > 33 else 34)).is_greedy


@pytest.mark.parametrize("context, completion, line", [
    ("a", "", "the completion '' has no tokens"),
    ("a" * 24, "bc", "a context of 24 tokens and its completion are 26 tokens"),
    (["a", "b"], ["c"], "2 contexts and 1 completions: give as many of both"),
    ("a", 3, "completion=3: give a text"),
    (["a", None], ["b", "c"], "context=.*: give a text"),
    ("a", [], r"completion=\[\]"),
])  # fmt: skip
def test_pairs_that_cannot_be_scored_are_one_line(context, completion, line):
    with pytest.raises(ValueError, match=line) as error:
        model().loglikelihood(context, completion)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stride", [None, 7])
def test_a_texts_score_is_the_sum_over_windows(stride):
    m, text = model(), TEXT + " \u00e9"
    ids, width = [256, *text.encode()], stride or N_CTX
    nats = 0.0
    for start in range(0, len(ids) - 1, width):
        stop = min(start + width, len(ids) - 1)
        p_TV = log_probs(m, ids[max(0, stop - N_CTX) : stop])[start - stop :]
        nats += sum(p_TV[range(stop - start), ids[start + 1 : stop + 1]])
    score, short = m.score([text, "a"], stride=stride)
    n = len(text.encode())
    assert score.log_likelihood == pytest.approx(nats, abs=1e-3)
    assert (score.n_tokens, score.n_bytes, n) == (n, n, 38)
    assert score.loss == -score.log_likelihood / n and score.perplexity == math.exp(score.loss)
    assert score.bits_per_byte == pytest.approx(score.loss / np.log(2))
    assert short.log_likelihood == pytest.approx(log_probs(m, [256])[0, ord("a")], abs=1e-4)
    assert m.score(text, stride=stride).log_likelihood == pytest.approx(
        score.log_likelihood, abs=1e-4
    )


@pytest.mark.parametrize("text, options, line", [
    ("", {}, "the text '' has no tokens"),
    (["a", ""], {}, "the text '' has no tokens"),
    ("a", {"stride": 25}, "stride=25: give a whole number from 1 to 24"),
    (3, {}, "text=3: give a text"),
])  # fmt: skip
def test_a_text_that_cannot_be_scored_is_one_line(text, options, line):
    with pytest.raises(ValueError, match=line):
        model().score(text, **options)


def test_scores_are_evaluates(text_run, text_model, one_device, tmp_path):
    text, run = text_run
    (tmp_path / "part.txt").write_text(text.read_text()[:300])
    evaluate.main(
        [f"--model={run}", f"--text={tmp_path / 'part.txt'}", f"--out={tmp_path / 'out'}"]
    )
    (file,) = (tmp_path / "out").glob("text-*.json")
    record = json.loads(file.read_text())
    record = record.get("record", record)
    score = text_model.score(text.read_text()[:300])
    assert (-score.log_likelihood, score.loss, score.bits_per_byte) == (
        record["nats"], record["loss"], record["bits_per_byte"],
    )  # fmt: skip


# --- the model itself ---------------------------------------------------------------------------


def test_other_parameters_make_another_model():
    m = model()
    zeros = dataclasses.replace(m, params=jax.tree.map(jnp.zeros_like, m.params))
    assert np.ptp(zeros.logits([1, 2])) == 0 and np.ptp(m.logits([1, 2])) > 1
    assert zeros.score("ab").loss == pytest.approx(np.log(257), abs=1e-5)


@pytest.mark.parametrize("kind, ask", [
    ("one layer", lambda m: m.generate("a")),
    ("every pattern", lambda m: m.loglikelihood("a", "b")),
    ("every pattern", lambda m: m.score("a")),
])  # fmt: skip
def test_a_model_of_nan_says_so(kind, ask):
    m = model(kind)
    broken = dataclasses.replace(m, params=jax.tree.map(lambda x: x * float("nan"), m.params))
    with pytest.raises(inference.NonFiniteLogits):
        ask(broken)
