"""Documents for the experiments of bench/curation.py: clean ones, noise of several kinds made of
them, and near copies at a known similarity."""

import contextlib
import json
import lzma
import random
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import curation as config
from gptjax.curation import engine, parts, pipeline

DOCUMENT_CHARS = 3000
NAMES = ("brown", "moby_dick", "shakespeare", "sotu", "wordnet_glosses")
NOISE = ("mail headers", "tables", "markup", "shuffled words")


def read_documents(folder: Path) -> dict[str, list[str]]:
    """Returns documents of about DOCUMENT_CHARS characters of each text of the folder."""
    documents = {}
    for name in NAMES:
        path = next(folder.glob(f"{name}.*.xz"))
        with lzma.open(path, "rt") as stream:
            content = stream.read()
        if path.suffixes[0] == ".jsonl":
            texts = [json.loads(line)["text"] for line in content.splitlines()]
        else:
            texts = [content]
        documents[name] = [
            text[i : i + DOCUMENT_CHARS]
            for text in texts
            for i in range(0, len(text) - DOCUMENT_CHARS + 1, DOCUMENT_CHARS)
        ]
    return documents


def make_noise(kind: str, text: str, rng: random.Random) -> str:
    """Returns noise of a kind that is made of the words of a text."""
    words = text.split()
    if kind == "shuffled words":
        return " ".join(rng.sample(words, len(words)))
    lines = []
    for i in range(0, len(words), 6):
        some = words[i : i + 6]
        match kind:
            case "mail headers":
                name, domain = ("".join(filter(str.isalpha, word)) for word in (some * 2)[:2])
                field = rng.choice(("From", "To", "Received: from", "Message-ID", "X-Mailer", "Cc"))
                lines.append(
                    f"{field}: <{name}.{rng.randrange(10**6)}@{domain}.com>; {' '.join(some)}"
                )
            case "tables":
                cells = [str(rng.randrange(10**4)) if rng.random() < 0.5 else word for word in some]
                lines.append(" | ".join(cells))
            case "markup":
                tag = rng.choice(("li", "td", "span", "div", "a href='#'"))
                lines.append(
                    f'<{tag} class="c{rng.randrange(100)}">{" ".join(some)}</{tag.split()[0]}>'
                )
    return "\n".join(lines)


def make_near_copy(text: str, share: float, other: Sequence[str], rng: random.Random) -> str:
    """Returns a text with a span of `share` of its words replaced by words of another."""
    words = text.split()
    n = round(share * len(words))
    start = rng.randrange(len(words) - n + 1)
    return " ".join([*words[:start], *(rng.choice(other) for _ in range(n)), *words[start + n :]])


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """Returns the shingles of a text as tuples of words: the plain definition."""
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def run(recipe: config.Curation, out: Path, workers: int = 2) -> list[pipeline.StageTotals]:
    """Runs a recipe without tasks, without progress bars."""
    work = engine.Local(workers, lambda label: contextlib.nullcontext(lambda done: None))
    return pipeline.Pipeline(recipe, out, work, print).run(None, lambda stage: {})


def pages(totals: list[pipeline.StageTotals], corpus: str) -> dict[str, str]:
    """The pages that are left of a data set: id -> text."""
    return {
        page.id: page.text
        for part in totals[-1].outputs
        if part.corpus == corpus
        for page in parts.read_pages(part)
    }
