"""Word wrap of text in pieces: lines fit, words and layout stay whole, nothing is lost."""

import random
import re

import pytest

from gptjax.report.word_wrap import WordWrapper


def wrap(text: str, width: int, size: int = 1) -> str:
    wrapper = WordWrapper(width)
    pieces = [wrapper.add(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join(pieces) + wrapper.end()


@pytest.mark.parametrize("text, width, expected", [
    ("one two three", 8, "one two\nthree"),
    ("one two three", 7, "one two\nthree"),
    ("one two three", 20, "one two three"),
    ("a\n\n  b c", 20, "a\n\n  b c"),
    ("    indented code", 10, "    indented code"),  # the terminal has broken it before
    ("abcdefghij kl", 4, "abcdefghij\nkl"),
    ("x abcdefghij", 4, "x\nabcdefghij"),
    ("\tb", 8, "    b"),
    ("你好世界吗", 4, "你好\n世界\n吗"),
    ("ab 你好", 4, "ab\n你好"),
    ("ends ", 10, "ends"),
    ("", 10, ""),
])  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 100])
def test_lines(text, width, expected, size):
    assert wrap(text, width, size) == expected


def test_a_terminal_breaks_only_words_that_are_longer_than_a_line():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("abcdefgh  \n", k=rng.randint(0, 90)))
        width = rng.randint(6, 20)
        wrapped = wrap(text, width, rng.randint(1, 9))
        assert wrapped.split() == text.split()
        for line in wrapped.split("\n"):
            for i, word in enumerate(re.finditer(r"\S+", line)):
                is_whole = word.start() // width == (word.end() - 1) // width
                assert is_whole or i == 0, (text, width)
                assert is_whole or word.end() > width


def test_a_word_is_held_back_until_it_ends_or_fills_a_line():
    wrapper = WordWrapper(8)
    assert [wrapper.add(piece) for piece in ("one tw", "o ", "three", "three", "\n")] == [
        *("one", " two", "", "\nthreethr", "ee\n")
    ]
    assert wrapper.end() == ""
