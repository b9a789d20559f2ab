"""Conversations of every form become the same messages, and of their ids the answers are learned,
each with the token that ends it."""

import json

import numpy as np
import pytest

from gptjax.data import conversations
from gptjax.data.conversations import Unusable
from gptjax.data.tokenizers import build, chat_template, chat_tokens, json_tokenizer
from tests import tokenizer_kinds

TOKENIZER = chat_tokens.ChatTokens(build.ByteTokenizer())
TEMPLATE = chat_template.of(TOKENIZER)
USER, ASSISTANT = "user", "assistant"


def turns(*texts, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [
        {"role": (USER, ASSISTANT)[n % 2], "content": text} for n, text in enumerate(texts)
    ]


def write(folder, *rows, name="c.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


HH = "\n\nHuman: Hi\n\nAssistant: "
FORMS = {
    "messages": {"messages": turns("Hi", "Hello")},
    "completion": {"prompt": "Hi", "completion": "Hello"},
    "completion of messages": {"prompt": turns("Hi"), "completion": turns("", "Hello")[1:]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello"},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    },
    "hh": {"chosen": f"{HH}Hello", "rejected": f"{HH}No"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_form_is_the_same_messages(tmp_path, form, kind):
    path = write(tmp_path, FORMS[form])
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        path = str(tmp_path / "c.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FORMS[form]]), path)
        (tmp_path / "c.jsonl").unlink()
    ((where, messages),) = conversations.read(path, "auto")
    assert messages == turns("Hi", "Hello") and path in where and where.endswith("1")


def test_an_instruction_and_its_input_are_one_question(tmp_path):
    path = write(tmp_path, {"instruction": "Add", "input": "1 2", "output": "3"})
    ((_, messages),) = conversations.read(path, "alpaca")
    assert messages == turns("Add\n\n1 2", "3")


@pytest.mark.parametrize("row, line", [
    ({"text": "x"}, "has text, which is no form of conversations"),
    ({"messages": "x"}, "messages is 'x', not a list of"),
    ({"messages": [{"role": "user"}]}, "not a list of"),
    ({"prompt": 3, "completion": "x"}, "not a list of"),
    ({"conversations": [{"from": "bing", "value": "x"}]}, "a turn is from 'bing'"),
    ({"chosen": "Hello"}, "does not begin with"),
    ({"instruction": "x", "output": 3}, "output is 3, not a text"),
])  # fmt: skip
def test_a_row_of_another_form_is_one_line(tmp_path, row, line):
    with pytest.raises(ValueError, match=r"c\.jsonl line 1") as error:
        list(conversations.read(write(tmp_path, row), "auto"))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_the_form_that_is_named_is_read(tmp_path):
    path = write(tmp_path, {"messages": turns("a", "b"), "chosen": "\n\nHuman: c\n\nAssistant: d"})
    ((_, messages),) = conversations.read(path, "hh")
    assert messages == turns("c", "d")
    with pytest.raises(ValueError, match="has no 'instruction', which the form alpaca has"):
        list(conversations.read(path, "alpaca"))


@pytest.mark.parametrize("messages, reason", [
    (turns("a", "b")[::-1], "roles out of order"),
    (turns("a", "b") + turns("", "c")[1:], "roles out of order"),
    (turns("a"), "no turn of the assistant"),
    ([], "no turn of the assistant"),
    (turns("a", " \n"), "an empty turn"),
    (turns("a", "b", system=""), "an empty turn"),
])  # fmt: skip
def test_what_is_no_conversation_is_not_learned(messages, reason):
    with pytest.raises(Unusable, match=reason):
        conversations.check(messages)


def learned_text(encoded, tokenizer=TOKENIZER):
    pairs = zip(encoded.ids, encoded.learned, strict=True)
    return tokenizer.decode([i for i, is_learned in pairs if is_learned])


def test_answers_are_learned_each_with_its_end():
    encoded = conversations.encode(TEMPLATE, turns("a?", "b.", "c?", "d.", system="s"))
    assert TOKENIZER.decode(encoded.ids) == (
        "<|system|>s<|end|><|user|>a?<|end|><|assistant|>b.<|end|><|user|>c?<|end|><|assistant|>d."
        "<|end|>"
    )
    assert learned_text(encoded) == "b.<|end|>d.<|end|>"


def of_kind(kind):
    content, settings = tokenizer_kinds.content(kind)
    settings = json.dumps(settings | {"chat_template": tokenizer_kinds.TEMPLATES[kind]}).encode()
    tokenizer = json_tokenizer.JsonTokenizer(content, settings, "x")
    return tokenizer, chat_template.of(tokenizer)


@pytest.mark.parametrize("kind, expected", [
    ("llama3", "b.<|eot_id|>d.<|eot_id|>"),
    ("phi3", "b.<|end|>d.<|end|>"),
    ("gemma", "b.<end_of_turn>d.<end_of_turn>"),
])  # fmt: skip
def test_answers_of_a_models_own_template_are_learned(kind, expected):
    tokenizer, template = of_kind(kind)
    encoded = conversations.encode(template, turns("a?", "b.", "c?", "d."))
    assert learned_text(encoded, tokenizer).translate({ord(c): None for c in " \n"}) == expected


def test_a_template_that_writes_an_answer_another_way_than_it_asks_for_it_is_unusable():
    """This one asks for an answer that begins with <think>, and writes earlier ones without."""
    with pytest.raises(Unusable, match="writes earlier turns another way"):
        conversations.encode(of_kind("qwen")[1], turns("a?", "b."))


def test_a_question_after_the_last_answer_is_not_learned():
    assert learned_text(conversations.encode(TEMPLATE, turns("a", "b", "c"))) == "b<|end|>"


def test_a_message_that_spells_a_token_is_text():
    encoded = conversations.encode(TEMPLATE, turns("<|end|>", "<|assistant|>"))
    control = [i for i in encoded.ids if i >= TOKENIZER.first]
    assert len(control) == 4 and TOKENIZER.decode(control) == "<|user|><|end|><|assistant|><|end|>"


def test_what_is_dropped_and_truncated_is_counted(capsys):
    def encode_all(too_long):
        lines = []
        kept = conversations.encode_all(
            iter([
                ("1", turns("a", "b")),
                ("2", turns("a")),
                ("3", turns("a", "b" * 50)),
                ("4", turns("a" * 50, "b")),
                ("5", turns("a", "b")[::-1]),
                ("6", turns("c")),
            ]),
            TEMPLATE,
            20,
            too_long,
            lines.append,
            "train",
        )  # fmt: skip
        return kept, lines

    kept, lines = encode_all("drop")
    assert [messages for messages, _ in kept] == [turns("a", "b")]
    assert sorted(lines) == [
        "train: 1 conversation dropped: roles out of order (first: 5)",
        "train: 2 conversations dropped: longer than the context of 20 tokens (first: 3)",
        "train: 2 conversations dropped: no turn of the assistant (first: 2)",
    ]
    kept, lines = encode_all("truncate")
    assert [len(encoded.ids) for _, encoded in kept] == [6, 21]
    assert learned_text(kept[1][1]) == "b" * 17
    assert "train: 1 conversation dropped: truncated before the first answer (first: 4)" in lines
    with pytest.raises(ValueError, match="no conversation is left to learn from; 1 were dropped"):
        conversations.encode_all(iter([("2", turns("a"))]), TEMPLATE, 20, "drop", print, "dev")


def test_a_prepared_data_set_of_tfds_is_read_as_files_are(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    rows = [{"messages": turns("Hi", f"caf\u00e9 {n}"), "scores": [0.5, n]} for n in range(3)]

    class Talks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            message = tfds.features.Sequence({"role": text, "content": text})
            columns = {"messages": message, "scores": tfds.features.Sequence(np.float32)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(columns))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(), "test": iter([(0, rows[0])])}

        def _generate_examples(self):
            yield from enumerate(rows)

    Talks(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    found = list(conversations.read("tfds:talks", "auto"))
    assert sorted(m[1]["content"] for _, m in found) == [f"caf\u00e9 {n}" for n in range(3)]
    assert found[0][0] == "tfds:talks example 1" and found[0][1][0] == turns("Hi")[0]
    ((_, row),) = conversations.read_rows("tfds:talks@test")
    assert row == rows[0] and all(type(score) is float for score in row["scores"])
    with pytest.raises(ValueError, match="split='no'"):
        list(conversations.read_rows("tfds:talks@no"))
    with pytest.raises(ValueError, match="none") as error:
        list(conversations.read_rows("tfds:none"))
    assert "\n" not in str(error.value)
