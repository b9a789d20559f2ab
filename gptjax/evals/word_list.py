"""Word list of the scrambling tasks: GPT-3 section 3.9.2 took the 10,000 most frequent words of
suitable length from Norvig's list.
"""

import functools
import pathlib
import random

from gptjax.config import parse

SYSTEM_WORDS = pathlib.Path("/usr/share/dict/words")
NORVIG_HINT = "Norvig's list is https://norvig.com/ngrams/count_1w.txt"


def load_words(path: str | None, min_length: int, max_length: int, n: int, seed: int) -> list[str]:
    """Returns up to n distinct words of `min_length` to `max_length` lower-case letters a to z, in
    the order of the file.

    Only the first word of a line counts, so that frequencies may follow. An alphabetical list has
    no frequencies: from such a list words are sampled with the seed. Raises a one-line ValueError
    if there is no list, or no suitable word in it.
    """
    file = pathlib.Path(path).expanduser() if path is not None else SYSTEM_WORDS
    if not file.is_file():
        problem = (
            f"there is no word list at {file}"
            if path is None
            else f"words={path}: there is no such file"
        )
        hint = "--set all.words=FILE (evaluate) or --words=FILE (decontaminate)"
        raise ValueError(
            f"{problem}: give a file with one word per line, most frequent first, with {hint}; "
            f"{NORVIG_HINT}"
        )
    words = [word for word in _read_words(file) if min_length <= len(word) <= max_length]
    if not words:
        raise ValueError(
            f"{file} has no word of {min_length} to {max_length} letters a to z: give a file with "
            f"one word per line; {NORVIG_HINT}"
        )
    if len(words) > n and words == sorted(words):
        words = random.Random(f"words {seed}").sample(words, n)
    return words[:n]


@functools.lru_cache(maxsize=2)
def _read_words(file: pathlib.Path) -> tuple[str, ...]:
    firsts = (
        line.split(maxsplit=1)[0] for line in parse.read_text(file).splitlines() if line.strip()
    )
    return tuple(
        dict.fromkeys(
            word for word in firsts if word.isascii() and word.isalpha() and word.islower()
        )
    )
