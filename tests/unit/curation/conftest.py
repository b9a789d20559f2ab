"""Small corpora of real English: the topics of Python's own help."""

import json
import pydoc_data.topics

import pytest

PARAGRAPHS = [
    " ".join(paragraph.split())
    for topic in sorted(pydoc_data.topics.topics)
    for paragraph in pydoc_data.topics.topics[topic].split("\n\n")
    if len(paragraph) > 200
]


@pytest.fixture(scope="session")
def paragraphs():
    """Distinct paragraphs of English prose."""
    return list(dict.fromkeys(PARAGRAPHS))


@pytest.fixture
def write_jsonl(tmp_path):
    """Writes texts to tmp_path/NAME and returns the path."""

    def write(name, texts, **fields):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"text": text, "url": f"http://example.org/{name}/{n}"} | fields)
            for n, text in enumerate(texts)
        ]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write
