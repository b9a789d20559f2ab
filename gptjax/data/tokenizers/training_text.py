"""The sample of a text that a tokenizer is trained on: spread evenly over all of it, and as long as
wanted."""

from collections.abc import Iterable

# Characters that a tokenizer is trained on. Training 4,096 SentencePiece pieces takes about 3 s on
# 2 cores.
SAMPLE_CHARS = 12_000_000
PART_CHARS = 4_000  # characters handed to the trainer at a time


def golden_ratio_hash(number: int) -> int:
    """Returns a position in 0 ... 2^64 - 1 for a number.

    Successive numbers fill this range evenly, with no period that could coincide with one of the
    text, such as two alternating languages: multiples of the golden ratio (Knuth, The Art of
    Computer Programming 3, section 6.4).
    """
    return number * 0x9E3779B97F4A7C15 % 2**64


def sample_evenly(texts: Iterable[str], max_chars: int) -> list[str]:
    """Returns parts of PART_CHARS characters, spread evenly over `texts`: at most `max_chars`
    characters together, and at least nine tenths of that if the texts have as many."""
    parts: list[tuple[int, str]] = []
    number, limit, size = 0, 2**64, 0
    for text in texts:
        for start in range(0, len(text), PART_CHARS):
            if golden_ratio_hash(number) < limit:
                parts.append((number, text[start : start + PART_CHARS]))
                size += len(parts[-1][1])
                while size > max_chars and len(parts) > 1:
                    limit = limit * 19 // 20
                    parts = [(n, part) for n, part in parts if golden_ratio_hash(n) < limit]
                    size = sum(len(part) for _, part in parts)
            number += 1
    return [part for _, part in parts]


def resize(parts: list[str], size: int) -> list[str]:
    """Returns `parts` repeated until they have `size` characters; of the last repetition only some,
    spread evenly."""
    total = max(1, sum(map(len, parts)))
    times, rest = divmod(size, total)
    extra = sorted(sorted(range(len(parts)), key=golden_ratio_hash)[: len(parts) * rest // total])
    return parts * times + [parts[n] for n in extra]
