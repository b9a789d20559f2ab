"""The words that are scrambled: GPT-3 section 3.9.2 took the 10,000 most frequent of Norvig's list that are of the right length."""

import functools
import pathlib
import random

from gptjax.config import parse

SYSTEM = pathlib.Path("/usr/share/dict/words")
NORVIG = "Norvig's list is https://norvig.com/ngrams/count_1w.txt"


def listed(path: str | None, shortest: int, longest: int, n: int, seed: int) -> list[str]:
    """Up to n words of lower-case letters a to z, from `shortest` to `longest` of them, none twice, in the order of the file.

    A line's first word counts, so that frequencies may follow. A list in alphabetical order knows no frequencies: of such a one, words are
    drawn by the seed. ValueError, in one line, if there is no list, or none of it fits."""
    place = pathlib.Path(path).expanduser() if path is not None else SYSTEM
    if not place.is_file():
        where = f"there is no list of words at {place}" if path is None else f"words={path}: there is no such file"
        how = "--set all.words=FILE (evaluate) or --words=FILE (decontaminate)"
        raise ValueError(f"{where}: give a file with a word a line, the most frequent first, with {how}; {NORVIG}")
    fit = [word for word in _words(place) if shortest <= len(word) <= longest]
    if not fit:
        raise ValueError(f"{place} has no word of {shortest} to {longest} letters a to z: give a file with a word a line; {NORVIG}")
    if len(fit) > n and fit == sorted(fit):
        fit = random.Random(f"words {seed}").sample(fit, n)
    return fit[:n]


@functools.lru_cache(maxsize=2)
def _words(place: pathlib.Path) -> tuple[str, ...]:
    firsts = (line.split(maxsplit=1)[0] for line in parse.text_file(place).splitlines() if line.strip())
    return tuple(dict.fromkeys(word for word in firsts if word.isascii() and word.isalpha() and word.islower()))
