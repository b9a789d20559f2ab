import json

import pytest

from tests import prose


@pytest.fixture(scope="session")
def paragraphs():
    """Distinct paragraphs of English prose."""
    return prose.read_paragraphs()


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
