"""The tables of models in docs/papers/ agree with the configs."""

import re
from pathlib import Path

import pytest

from gptjax.config import count
from gptjax.configs import ladder, registry

PAGES = Path(__file__).parents[2] / "docs" / "papers"


def rows(page: str) -> dict[str, dict[str, str]]:
    """Config -> column -> cell, of the page's first table."""
    lines = re.findall(r"^\|(.*)\|$", (PAGES / page).read_text(), re.M)
    header, *body = ([cell.strip() for cell in line.split("|")] for line in lines)
    cells = (row for row in body if row[0].strip("`") in ladder.LADDER)
    return {row[0].strip("`"): dict(zip(header[1:], row[1:], strict=True)) for row in cells}


@pytest.mark.parametrize("page, family", [("gpt1.md", 1), ("gpt2.md", 2), ("gpt3.md", 3)])
def test_models_are_those_of_the_configs(page, family):
    table = rows(page)
    assert list(table) == [name for name in ladder.LADDER if name.startswith(f"gpt{family}")]
    for name, row in table.items():
        config = registry.config(name)
        expected = {
            "layers": config.model.n_layers,
            "heads": config.model.n_heads,
            "width": config.model.d_model,
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
