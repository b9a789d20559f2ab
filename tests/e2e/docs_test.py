"""The commands of README.md and docs/ run: quick ones in this process, all by `make test-docs`.

tests/doc_commands.py says how a page marks them. What a page reads as runs/nano, the run of
getting-started/first-run.md, is a shorter one here.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import doc_commands, short_run
from tests.doc_commands import ROOT, blocks, pages

QUICK = [block for page in pages() for block in blocks(page) if block.kind == "quick"]
TO_RUN = {
    page: to_run
    for page in pages()
    if (to_run := [block for block in blocks(page) if block.kind not in ("parsed", "refused")])
}
SHORT = "--set train.steps=60 --set loop.every_eval=30 --set loop.every_sample=None"


@pytest.fixture(scope="module")
def workspace(text, tmp_path_factory):
    """A directory with a run of `smoke` in the place of runs/nano, with a context as long."""
    directory = tmp_path_factory.mktemp("docs")
    changes = ("model.n_ctx=128", "train.batch_tokens=1024", "train.steps=1", "loop.every_eval=1")
    assert short_run.go(text, directory / "runs" / "nano", *changes) == 0
    return directory


@pytest.fixture(scope="module")
def already_run():
    return set()


@pytest.mark.parametrize("block", QUICK, ids=str)
def test_quick_commands(block, workspace, already_run, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    if block.is_python:
        exec(compile(block.text, str(block), "exec"), {})
    for line in block.lines:
        if line in already_run:
            continue
        called = doc_commands.program(doc_commands.words(line))
        if called is not None:
            module, arguments = called
            assert not importlib.import_module(module).main(arguments), line
            assert capsys.readouterr().out, f"{line} printed nothing"
        else:
            subprocess.run(["bash", "-euc", line], env=environment(), check=True)
        already_run.add(line)


def environment() -> dict[str, str]:
    """Of a user who has activated the virtual environment, in a directory of his own."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb"}


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """`nano`, trained for 60 steps."""
    directory = tmp_path_factory.mktemp("nano")
    bash(f"python -m gptjax.train --config=nano {SHORT}", directory)
    return directory / "runs" / "nano"


def bash(text: str, directory: Path) -> None:
    """Runs commands, and asserts that each ends with exit status 0."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def shorten(block: doc_commands.Block) -> str:
    """The block with its argument added to each of its gptjax commands."""
    text = block.text.replace("\\\n", " ")
    return re.sub(r"^(python -m gptjax.*|gptjax .*)$", rf"\1 {block.argument}", text, flags=re.M)


def test_arguments_are_added_to_each_command():
    text = "python -m pydoc json > x\npython -m gptjax.train --config=nano \\\n    --text=x\n"
    block = doc_commands.Block(ROOT / "README.md", 1, False, "short", "--set a=1", text)
    expected = (
        "python -m pydoc json > x\npython -m gptjax.train --config=nano      --text=x --set a=1\n"
    )
    assert shorten(block) == expected


@pytest.mark.slow
@pytest.mark.parametrize("page", TO_RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run_as_written(page, request, tmp_path):
    to_run = TO_RUN[page]
    if not any(re.search(r"train --config=nano$", block.text, re.M) for block in to_run[:1]):
        shutil.copytree(request.getfixturevalue("nano"), tmp_path / "runs" / "nano")
    program = "".join(block.text for block in to_run if block.is_python)
    for block in (block for block in to_run if not block.is_python):
        bash(shorten(block) if block.kind == "short" else block.text, tmp_path)
    if program:
        (tmp_path / "page.py").write_text(program)
        bash("python page.py", tmp_path)
