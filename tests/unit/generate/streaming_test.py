"""Text as it comes is the text at once, however its tokens are divided; stop strings end it
wherever they fall."""

import random
import re

import jax
import pytest

from gptjax.data.tokenizers import build, sentencepiece_tokenizer
from gptjax.generate import streaming
from gptjax.generate.sampling import SamplingParams
from gptjax.model import inference
from tests import tiny

TEXT = "na\u00efve \u20ac5 \U0001f600\U0001f468\u200d\U0001f469 plain \ufffd end\n"
BYTES = build.ByteTokenizer()


@pytest.fixture(scope="module")
def sentencepiece():
    return sentencepiece_tokenizer.train(
        ["plain words of a small text, and more of them " + c for c in "abcdefghij" * 20], 300
    )


def told(tokens, ids, divided, stops=()):
    """What is shown at each step, and at the end."""
    row, ids = streaming.StreamingDetokenizer(tokens, tokens.encode("x \u00e9"), stops), list(ids)
    shown = []
    for n in divided:
        shown.append(row.add(ids[:n]))
        ids = ids[n:]
    return [*shown, row.add(ids), row.end()]


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("seed", range(5))
def test_whole_characters_only_and_nothing_lost(kind, seed, sentencepiece):
    tokens, draw = BYTES if kind == "bytes" else sentencepiece, random.Random(seed)
    ids = tokens.encode(TEXT)
    shown = told(
        tokens, ids, [1] * len(ids) if seed == 0 else [draw.randint(0, 3) for _ in range(40)]
    )
    assert "".join(shown) == TEXT
    assert sum(part.count("\ufffd") for part in shown) == 1  # the one that the text has


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_invalid_utf8_is_shown_as_the_tokenizer_decodes_it(kind, sentencepiece):
    tokens, draw = BYTES if kind == "bytes" else sentencepiece, random.Random(0)
    first = 0 if kind == "bytes" else sentencepiece.processor.piece_to_id("<0x00>")
    for _ in range(30):
        ids = [
            first + draw.choice([0x41, 0x80, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0xC3])
            for _ in range(draw.randint(1, 12))
        ]
        assert (
            "".join(told(tokens, ids, [1] * len(ids)))
            == tokens.decode([*tokens.encode("x"), *ids])[1:]
        ), ids


def test_a_character_appears_with_its_last_byte():
    assert told(BYTES, "a\u20acb".encode(), [1, 1, 1, 1]) == ["a", "", "", "\u20ac", "b", ""]
    assert told(BYTES, b"a\xe2\x82", [3]) == ["a", "", "\ufffd"]


def test_a_stop_string_ends_the_text_before_it_and_its_beginning_is_held_back():
    assert told(BYTES, b"one. two", [1] * 8, ["o."]) == [
        "",
        "on",
        "e",
        ".",
        " ",
        "t",
        "w",
        "",
        "",
        "o",
    ]
    assert told(BYTES, b"ab--cd", [1] * 6, ["--"]) == ["a", "b", "", "", "", "", "", ""]
    assert told(BYTES, b"ab--cd", [6], ["--"]) == ["ab", "", ""]
    assert told(BYTES, b"aab", [1] * 3, ["ab"]) == [
        "",
        "a",
        "",
        "",
        "",
    ]  # the second a may begin it too
    assert told(BYTES, b"abcx", [4], ["cx", "b"]) == [
        "a",
        "",
        "",
    ]  # the first in the text, not in the list


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_are_found_like_str_find(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices("ab\u20ac", k=30))
    stops = ["".join(draw.choices("ab\u20ac", k=draw.randint(1, 4))) for _ in range(2)]
    found = [text.find(stop) for stop in stops if stop in text]
    expected = text[: min(found)] if found else text
    ids = text.encode()
    assert "".join(told(BYTES, ids, [draw.randint(0, 4) for _ in range(20)], stops)) == expected


class Letters:
    """61 ids, as many letters."""

    n_vocab, end_of_text, start_of_text, unknown, digest = 61, None, 0, 0, ""
    text_prefix = ()

    def encode(self, text):
        return [ord(c) - 60 for c in text]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(chr(60 + i) for i in ids)


class Spaced(Letters):
    """Words with a space after each, lower-cased, punctuation apart, newlines dropped, as
    GPT-1's; what it lacks is <unk>."""

    symbols, start_of_text = ["<unk>", *(c + " " for c in "q:.aw-"), "the ", "\n "], 8

    def __init__(self):
        self.n_vocab = len(self.symbols)

    def encode(self, text):
        words = re.findall(r"the\b|\S", text.lower())
        return [
            self.symbols.index(word + " ") if word + " " in self.symbols else 0 for word in words
        ]

    def decode(self, ids):
        return "".join(self.symbols[i] for i in ids)


@pytest.mark.parametrize(
    "stop, written",
    [
        ("Q:", "q :"),
        ("q", "q"),
        (".", "."),
        ("The", "the"),
        (" the", (" the")),
        ("the ", "the "),
        ("-.", ("- .")),
        ("\n", "\n"),
        (" ", " "),
    ],
)
def test_a_stop_string_is_in_the_tokenizers_form(stop, written):
    assert streaming.normalize_stops(Spaced(), [stop]) == [written]
    told = streaming.StreamingDetokenizer(Spaced(), [1], [stop])
    shown = told.add(Spaced().encode(f"a {stop} w") if stop != "\n" else [4, 8, 5])
    assert told.is_stopped and "w" not in shown


@pytest.mark.parametrize("stop", ["\u4e94", "Zebra", "\n\n", "\ud800", "q\u4e94"])
def test_a_stop_that_the_tokenizer_cannot_write_is_one_line(stop):
    with pytest.raises(ValueError, match="tokenizer cannot write the stop string") as error:
        streaming.normalize_stops(Spaced(), ["q", stop])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_stops_of_a_reversible_tokenizer_are_themselves(kind, sentencepiece):
    tokens = BYTES if kind == "bytes" else sentencepiece
    stops = ["Q:", "\n", "\n\n", " ", "\u2581", "\u4e94", "\ufffd", "<|endoftext|>"]
    assert streaming.normalize_stops(tokens, stops) == stops


@pytest.mark.parametrize("at_once", [1, 16])
def test_a_stream_stops_row_by_row_and_not_at_what_the_prompt_says(at_once):
    _, built, state = tiny.make_step(tiny.config())
    reader, tokens = inference.prepare(built.model, state.params), Letters()
    prompts = [tokens.encode("ABC"), tokens.encode("DEFG")]

    def said(stops):
        parts = streaming.stream(
            reader,
            tokens,
            prompts,
            20,
            SamplingParams(temperature=0.5),
            jax.random.key(0),
            stops,
            at_once,
        )
        return ["".join(row) for row in zip(*parts, strict=True)]

    free = said(())
    stop = free[0][5:7]
    assert said([stop]) == [text[: text.index(stop)] if stop in text else text for text in free]
    assert said(["ABC", "Q" * 9]) == free  # held back at most, and the prompt's own
    with pytest.raises(ValueError, match="an empty stop string"):
        said([""])
