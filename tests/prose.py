"""Small corpora of real English: the topics of Python's own help."""

import pydoc_data.topics
import random


def read_paragraphs() -> list[str]:
    """Distinct paragraphs of English prose."""
    topics = pydoc_data.topics.topics
    paragraphs = (
        " ".join(paragraph.split())
        for topic in sorted(topics)
        for paragraph in topics[topic].split("\n\n")
    )
    return list(dict.fromkeys(text for text in paragraphs if len(text) > 200))


def make_crawl(paragraphs: list[str]) -> tuple[list[str], list[str]]:
    """60 paragraphs; and a raw crawl: others, some of them twice or nearly so or among the 60, and
    noise."""
    rng = random.Random(0)
    noise = [" | ".join(rng.sample(text.split(), len(text.split()))) for text in paragraphs[60:160]]
    near = [f"{text} And a few words more." for text in paragraphs[50:110]]
    raw = [*paragraphs[60:200], *paragraphs[60:70], *near, *noise]
    rng.shuffle(raw)
    return paragraphs[:60], raw
