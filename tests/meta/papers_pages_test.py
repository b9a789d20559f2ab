"""The tables of models in docs/papers/ agree with the configs."""

import re
from pathlib import Path

import pytest

from gptjax.config import count
from gptjax.configs import families, ladder, registry

PAGES = Path(__file__).parents[2] / "docs" / "papers"


def rows(page: str) -> dict[str, dict[str, str]]:
    """Config -> column -> cell, of the page's first table."""
    lines = re.findall(r"^\|(.*)\|$", (PAGES / page).read_text(), re.M)
    header, *body = ([cell.strip() for cell in line.split("|")] for line in lines)
    models = {**ladder.LADDER, **families.FAMILIES}
    cells = (row for row in body if row[0].strip("`") in models)
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in cells}


MODELS = {
    f"gpt{n}.md": [name for name in ladder.LADDER if name.startswith(f"gpt{n}")] for n in (1, 2, 3)
} | {"families.md": list(families.FAMILIES)}


@pytest.mark.parametrize("page", MODELS)
def test_models_are_those_of_the_configs(page):
    table = rows(page)
    assert list(table) == MODELS[page]
    for name, row in table.items():
        config = registry.config(name)
        expected = {
            "layers": config.model.n_layers,
            "heads": config.model.n_heads,
            "KV heads": config.model.n_kv_heads,
            "width": config.model.d_model,
            "head": config.model.d_head,
            "MLP": config.model.d_ff,
            "vocabulary": config.model.n_vocab,
            "context": config.model.n_ctx,
            "batch (tokens)": config.train.batch_tokens,
            "parameters": count.parameters(config.model),
            "without embeddings": count.non_embedding_parameters(config.model),
        }
        assert {k: row[k] for k in expected if k in row} == {
            k: f"{v:,}" for k, v in expected.items() if k in row
        }
        if "peak rate" in row:
            assert float(row["peak rate"].replace("&#8209;", "-")) == config.train.schedule.peak_lr
