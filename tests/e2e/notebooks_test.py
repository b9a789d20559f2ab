"""The notebooks of examples/: their cells run in order, and their stored outputs are whole and
small."""

import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from gptjax.data.sources import stdlib_corpus
from gptjax.data.sources.document import Document
from tests import tiny

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
MAX_BYTES = 200_000
# What a test changes in the cell tagged "parameters" (papermill's word), for speed.
PARAMETERS = {
    "first_hour.ipynb": {"CONFIG": '"smoke"', "STEPS": "2"},
    "look_inside.ipynb": {"STEPS": "1"},
}


def cells(name: str, kind: str) -> list[dict]:
    notebook = json.loads((FOLDER / name).read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def code(cell: dict, changes: dict[str, str]) -> str:
    source = "".join(cell["source"])
    if "parameters" in cell["metadata"].get("tags", []):
        for name, value in changes.items():
            source, n = re.subn(rf"^{name} = .*$", f"{name} = {value}", source, flags=re.MULTILINE)
            assert n == 1, name
    return source


def test_both_are_here():
    assert NOTEBOOKS == sorted(PARAMETERS)


@pytest.mark.parametrize("name", [
    pytest.param("first_hour.ipynb", marks=pytest.mark.slow), "look_inside.ipynb",
])  # fmt: skip
@pytest.mark.usefixtures("implicit_transfers")
def test_its_cells_run(name, tmp_path, monkeypatch):
    """In one namespace, as a kernel runs them, on a short text in place of Python's own."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    tiny.limit_devices(monkeypatch, 1)
    texts = [
        "".join(f"def f{i}_{n}(x):\n    return x + {n * i}\n\n\n" for n in range(9))
        for i in range(300)
    ]
    corpus = [Document(text, text[:20], 0.0) for text in texts]
    monkeypatch.setattr(stdlib_corpus, "documents", lambda: iter(corpus))
    namespace = {"__name__": "__main__"}
    try:
        for number, cell in enumerate(cells(name, "code"), 1):
            exec(compile(code(cell, PARAMETERS[name]), f"{name}, cell {number}", "exec"), namespace)
    finally:
        plt.close("all")
    assert namespace["model"].config.model.n_vocab == 257


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_outputs_are_stored_and_small(name):
    """A person looks before running: each cell was run once, in order, and none failed."""
    code_cells = cells(name, "code")
    assert [cell["execution_count"] for cell in code_cells] == [*range(1, len(code_cells) + 1)]
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (FOLDER / name).stat().st_size < MAX_BYTES


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_first_cell_installs_where_gptjax_is_missing(name, monkeypatch):
    """Alone in a hosted notebook it finds no gptjax, and calls pip; here it does nothing."""
    first, asked = "".join(cells(name, "code")[0]["source"]), []
    monkeypatch.setattr(subprocess, "run", lambda command, check: asked.append(command))
    exec(first, {})
    assert asked == []
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    exec(first, {})
    assert asked == [[sys.executable, "-m", "pip", "install", "--quiet", ".."]]
