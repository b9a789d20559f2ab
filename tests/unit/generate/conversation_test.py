"""Conversations: each answer is the one to all messages at once, every prompt is well-formed, and
what no longer fits goes turn by turn."""

import itertools
import json
import types

import jax
import numpy as np
import pytest

from gptjax.config import schema
from gptjax.data.tokenizers import build, chat_template, chat_tokens, json_tokenizer
from gptjax.generate import conversation, decode, prefix_cache, streaming
from gptjax.generate.conversation import AnswerOptions, Conversation, Turn
from gptjax.generate.sampling import SamplingParams
from gptjax.model import inference
from tests import tiny, tokenizer_kinds

GREEDY = SamplingParams(temperature=0)
MESSAGES = ["Hello, 世界", "and then?", "  two  spaces\nand a line", "Hello, 世界"]


def make_template(kind):
    content, settings = tokenizer_kinds.content(kind)
    settings = settings | {"chat_template": tokenizer_kinds.TEMPLATES[kind]}
    tokenizer = json_tokenizer.JsonTokenizer(content, json.dumps(settings).encode(), "x")
    return chat_template.of(tokenizer)


# --- with a model ---------------------------------------------------------------------------------


def make_model(n_vocab, attention, n_ctx=256) -> inference.InferenceModel:
    c = tiny.config(n_ctx=n_ctx, n_vocab=n_vocab, n_layers=2, attention=attention)
    _, built, state = tiny.make_step(c)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), state.params
    )
    return inference.prepare(built.model, params)


@pytest.mark.parametrize("kind, attention", [
    ("qwen", (schema.Dense(),)),  # which rewrites earlier answers
    ("phi3", (schema.Banded(window=8), schema.Dense())),  # whose rings cannot be cut back
])  # fmt: skip
def test_each_answer_is_the_one_to_all_messages_at_once(kind, attention):
    """Though only new tokens are computed, and the text of an answer has other ids than those that
    were sampled."""
    template = make_template(kind)
    tokenizer = template._tokenizer
    lm = make_model(tokenizer.n_vocab, attention)
    talk = Conversation(template, tokenizer, lm, AnswerOptions(max_new_tokens=12,
                        sampling_params=GREEDY), "Be\nbrief.")  # fmt: skip
    shares = []
    for message in MESSAGES:
        messages = [*talk.messages, {"role": "user", "content": message}]
        ids = template.encode(messages)
        new = decode.generate(lm, [ids], 12, GREEDY, jax.random.key(0))[0]
        new = list(itertools.takewhile(lambda i: i not in template.end_ids, new))
        text = streaming.StreamingDetokenizer(tokenizer, ids)
        answer = "".join(talk.reply(message))
        assert answer == text.add(new) + text.end()
        assert talk.messages == [*messages, {"role": "assistant", "content": answer}]
        assert talk.n_prompt == len(ids)
        shares.append(talk.n_read / talk.n_prompt)
    assert shares[0] == 1 and talk.turns[0].answer
    if kind == "qwen":  # the text of each turn is read once
        assert max(shares[1:]) < 0.7


# --- without --------------------------------------------------------------------------------------


class Scripted:
    """A PrefixCache whose continuations are given: texts, of which each answer takes the next. A
    text may be a list of ids. It records the prompts."""

    script: list = []
    prompts: list[list[int]] = []
    keys: list = []
    tokenizer: json_tokenizer.JsonTokenizer
    n_read = 0

    def __init__(self, lm):
        pass

    def stream(self, ids, n_tokens, sampling_params, key, ends):
        self.prompts.append(ids)
        self.keys.append(jax.random.key_data(key).tolist())
        text = self.script.pop(0)
        tokens = self.tokenizer.encode(text) if isinstance(text, str) else text
        for token in itertools.islice(tokens, n_tokens):
            if token is None:
                raise inference.NonFiniteLogits
            if token in ends:
                return
            yield token


@pytest.fixture
def scripted(monkeypatch):
    """A function that starts a conversation whose answers are given: (kind, answers, n_ctx,
    options) -> Conversation."""

    def start(answers, kind="qwen", n_ctx=4096, system=None, **options):
        template = make_template(kind)
        Scripted.script, Scripted.prompts, Scripted.keys = list(answers), [], []
        Scripted.tokenizer = template._tokenizer
        monkeypatch.setattr(prefix_cache, "PrefixCache", Scripted)
        config = types.SimpleNamespace(n_ctx=n_ctx)
        lm = types.SimpleNamespace(model=types.SimpleNamespace(config=config))
        return Conversation(template, template._tokenizer, lm, AnswerOptions(**options), system)  # type: ignore

    return start


def prompts() -> list[str]:
    """What the model was given, as text."""
    return [Scripted.tokenizer.decode(ids) for ids in Scripted.prompts]


def chatml(*texts: str) -> str:
    """A conversation in the form of qwen's template, up to the next answer."""
    roles = ["user", "assistant"] * len(texts)
    if texts[0].startswith("system:"):
        roles, texts = ["system", *roles], (texts[0].removeprefix("system:"), *texts[1:])
    turns = zip(roles, texts)  # noqa: B905
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + (
        "<|im_start|>assistant\n<think>\n"
    )


def test_an_answer_comes_in_whole_characters_and_ends_at_the_end_of_the_turn(scripted):
    talk = scripted(["世界 is <|im_end|>", "done"])
    end = Scripted.tokenizer.rust.token_to_id("<|im_end|>")
    Scripted.script[1] = [*Scripted.tokenizer.encode("no"), end, *Scripted.tokenizer.encode("more")]
    pieces = list(talk.reply("a"))
    assert "".join(pieces) == "世界 is <|im_end|>"  # spelled as text: it ends nothing
    assert all(pieces) and pieces[0] == "世" and talk.finish_reason == "stop"
    assert "".join(talk.reply("b")) == "no"
    assert prompts() == [chatml("a"), chatml("a", "世界 is <|im_end|>", "b")]
    assert Scripted.prompts[1].count(end) == 3


def test_an_answer_that_is_cut_ends_its_turn(scripted):
    talk = scripted(["one two three four", "fine"])
    pieces = talk.reply("count")
    said = next(pieces) + next(pieces)
    pieces.close()
    assert talk.turns == [Turn("count", said)] and talk.finish_reason == "cut"
    list(talk.reply("go on"))
    assert prompts()[1] == chatml("count", said, "go on")
    assert talk.finish_reason == "stop" and talk.turns[1] == Turn("go on", "fine")


def test_an_answer_that_is_left_is_closed_by_what_comes_next(scripted):
    for act in (lambda talk: talk.reply("b"), Conversation.retry):
        talk = scripted(["one two three four", "fine"])
        left = talk.reply("a")
        said = next(left)
        assert "".join(act(talk)) == "fine"
        assert list(left) == [] and talk.turns[-1].answer == "fine"
        assert talk.messages[1]["content"] in (said, "fine")
    talk = scripted(["one two three four"])
    left = talk.reply("a")
    next(left)
    talk.reset()
    assert (list(left), talk.turns) == ([], [])


def test_a_message_without_any_answer_is_taken_back(scripted):
    talk = scripted(["yes", [None], []])
    list(talk.reply("a"))
    with pytest.raises(inference.NonFiniteLogits):
        list(talk.reply("b"))
    assert talk.turns == [Turn("a", "yes")] and talk.finish_reason == "cut"
    assert list(talk.reply("c")) == [] and talk.turns[-1] == Turn("c", "")  # the model's own word
    talk.reply("never begun")
    assert len(talk.turns) == 2


def test_length_is_what_the_options_or_the_context_end(scripted):
    talk = scripted(["a b c d e f"], max_new_tokens=3)
    list(talk.reply("a"))
    assert talk.finish_reason == "length" and len(talk.turns[0].answer) < 11
    talk = scripted(["x y" * 500], n_ctx=64)
    list(talk.reply("a"))
    ids = Scripted.prompts[0]
    assert talk.finish_reason == "length"
    assert len(Scripted.tokenizer.encode("x y" * 500)) > 65 - len(ids)


def test_a_stop_string_ends_the_answer(scripted):
    talk = scripted(["one. two"], stops=["."])
    assert "".join(talk.reply("a")) == "one" and talk.finish_reason == "stop"
    with pytest.raises(ValueError, match="an empty stop string"):
        scripted([], stops=[""])


# --- turns ----------------------------------------------------------------------------------------


def test_retry_undo_reset_and_the_system_message(scripted):
    talk = scripted(["1", "2", "3", "4", "5"], system="S")
    list(talk.reply("a"))
    list(talk.reply("b"))
    list(talk.retry())
    assert talk.turns == [Turn("a", "1"), Turn("b", "3")]
    assert talk.undo() == Turn("b", "3")
    talk.system = None
    list(talk.reply("c"))
    talk.reset()
    talk.system = "T"
    list(talk.reply("d"))
    two = chatml("system:S", "a", "1", "b")
    assert prompts() == [chatml("system:S", "a"), two, two, chatml("a", "1", "c"),
                         chatml("system:T", "d")]  # fmt: skip
    assert talk.messages == [{"role": "system", "content": "T"}, {"role": "user", "content": "d"},
                             {"role": "assistant", "content": "5"}]  # fmt: skip
    talk.reset()
    for act in (talk.undo, talk.retry):
        with pytest.raises(ValueError, match="there is no message yet"):
            act()


def test_a_retry_without_text_keeps_the_answer(scripted):
    talk = scripted(["1", [None]])
    list(talk.reply("a"))
    with pytest.raises(inference.NonFiniteLogits):
        list(talk.retry())
    assert talk.turns == [Turn("a", "1")]


def test_random_numbers_are_those_of_the_seed_the_turn_and_the_retry(scripted):
    talk = scripted("12345678", seed=3)
    for act in ("a", "b", None, None):
        list(talk.reply(act) if act else talk.retry())
    talk.undo()
    list(talk.reply("b"))
    first, second, again, third, same = Scripted.keys
    assert first == jax.random.key_data(jax.random.key(3)).tolist()
    assert len({str(key) for key in (first, second, again, third)}) == 4 and same == second
    list(scripted("1", seed=4).reply("a"))
    assert Scripted.keys[0] != first


def test_a_template_that_takes_no_system_message(scripted):
    with pytest.raises(ValueError, match="System role not supported"):
        scripted([], kind="gemma", system="S")
    talk = scripted(["1"], kind="gemma")
    with pytest.raises(ValueError, match="System role not supported"):
        talk.system = "S"
    assert talk.system is None and list(talk.reply("a")) == ["1"]


def test_messages_are_read_back(scripted):
    talk = scripted(["1", "2"], system="S")
    list(talk.reply("a\udce9"))
    messages = talk.messages
    assert messages[1]["content"] == "a\ufffd"  # what UTF-8 cannot carry
    other = scripted(["2"])
    other.messages = messages
    assert other.messages == messages
    list(other.reply("b"))
    assert prompts() == [chatml("system:S", "a\ufffd", "1", "b")]
    for roles in ("assistant", "user", "user user", "user assistant system", "system user",
                  "user assistant user", "system system user assistant", "tool"):  # fmt: skip
        with pytest.raises(ValueError, match=r"the roles .*: give user and assistant in turn"):
            other.messages = [{"role": role, "content": "x"} for role in roles.split()]
    with pytest.raises(ValueError, match="noncharacters"):
        other.messages = [{"role": role, "content": "\ufdd0"} for role in ("user", "assistant")]
    assert len(other.turns) == 2


def test_an_answer_that_no_message_may_be_is_one_all_the_same(scripted):
    talk = scripted(["a\ufdd1b", "2"])
    list(talk.reply("x"))
    assert talk.turns == [Turn("x", "a\ufffdb")] and list(talk.reply("y")) == ["2"]


# --- the context ----------------------------------------------------------------------------------


def test_the_oldest_turns_go_whole_and_the_system_message_stays(scripted):
    answers = [f"answer {i}" for i in range(12)]
    talk = scripted(answers, n_ctx=256, system="S", max_new_tokens=20)
    dropped = []
    for i in range(12):
        list(talk.reply(f"message {i}"))
        dropped.append(talk.n_dropped)
        rest = [word for j in range(talk.n_dropped, i) for word in talk.turns[j]]
        assert prompts()[-1] == chatml("system:S", *rest, f"message {i}")
        assert len(Scripted.prompts[-1]) <= 256 - 20
    assert len(talk.turns) == 12 and dropped[0] == 0 and dropped == sorted(dropped)
    steps = [b - a for a, b in itertools.pairwise(dropped)]
    assert max(steps) > 1 and steps.count(0) > len(steps) / 2  # a quarter of the room at once
    talk.undo()
    assert talk.n_dropped == 0


def test_a_message_that_is_too_long_changes_nothing(scripted):
    talk = scripted(["1", "2"], n_ctx=128, system="S", max_new_tokens=1000)
    list(talk.reply("a"))
    with pytest.raises(ValueError, match=r"it has 1\d\d tokens; the context of 128 has room for "
                       "96 before an answer"):  # fmt: skip
        talk.reply("x y " * 40)
    assert talk.turns == [Turn("a", "1")] and talk.n_dropped == 0
    list(talk.reply("b"))
    assert prompts()[-1] == chatml("system:S", "a", "1", "b")


def test_a_long_message_takes_the_place_of_all_turns(scripted):
    talk = scripted(["1", "2", "3"], n_ctx=128, max_new_tokens=8)
    list(talk.reply("a " * 20))
    list(talk.reply("b " * 20))
    long = "x y " * 22
    list(talk.reply(long))
    assert talk.n_dropped == 2 and prompts()[-1] == chatml(long)
    assert conversation.Turn(long, "3") == talk.turns[-1]


def test_a_model_with_chat_tokens_of_our_own_has_a_conversation(monkeypatch):
    """Of <|user|>question<|end|><|assistant|>answer<|end|>."""
    tokenizer = chat_tokens.ChatTokens(build.ByteTokenizer())
    template = chat_template.of(tokenizer)
    assert template.end_ids == {tokenizer.id("<|end|>"), tokenizer.end_of_text}
    monkeypatch.setattr(prefix_cache, "PrefixCache", Scripted)
    Scripted.prompts, Scripted.keys = [], []
    Scripted.script = [[*b"yes", tokenizer.id("<|end|>"), *b"no"], [*b"fine"]]
    config = types.SimpleNamespace(n_ctx=256)
    lm = types.SimpleNamespace(model=types.SimpleNamespace(config=config))
    talk = Conversation(template, tokenizer, lm)  # type: ignore
    assert ["".join(talk.reply(text)) for text in "ab"] == ["yes", "fine"]
    assert Scripted.prompts[1] == template.encode([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "b"},
    ])  # fmt: skip
