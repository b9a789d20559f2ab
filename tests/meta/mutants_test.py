"""The runner of wrong programs, on a tree of one function and one test."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests import mutants

LIST = """
def mutant(id, old, new, tiers):
    return {"id": id, "area": "sums", "what": "wrong", "edits": [("sums.py", old, new)], "tiers": tiers}
ALONE, TEST = ["tests/sums_test.py", "-k", "zero"], ["tests/sums_test.py"]
MUTANTS = [
    mutant("minus", "a + b", "a - b", [ALONE, TEST]),
    mutant("swapped", "a + b", "b + a", [TEST]),
    mutant("gone", "a * b", "a", [TEST]),
    mutant("lost", "a + b", "a", [["tests/sums_test.py", "-k", "nothing"]]),
]
"""  # noqa: E501
TESTS = """
import sums
def test_zero(): assert sums.add(0, 0) == 0
def test_two(): assert sums.add(1, 1) == 2
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    root = tmp_path / "tree"
    (root / "tests").mkdir(parents=True)
    (root / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (root / "tests" / "sums_test.py").write_text(TESTS)
    (root / "list.py").write_text(LIST)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return root


def test_each_wrong_edit_comes_to_what_it_is(tree, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    run = [str(tree / "list.py"), f"--out={out}"]
    assert mutants.main(run) == 1
    lines = {line["id"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert {id: (line["result"], line["by"]) for id, line in lines.items()} == {
        "minus": ("noticed", "tests/sums_test.py::test_two"),
        "swapped": ("not noticed", "tests/sums_test.py"),
        "gone": ("does not apply", "sums.py: 0 times 'a * b'"),
        "lost": ("no tests", "tests/sums_test.py -k nothing: exit status 5"),
    }
    said, before = capsys.readouterr().out, out.read_text()
    assert "not noticed: swapped wrong\n" in said and "noticed: 1 of 2, 50.0%" in said
    assert mutants.main([*run, "--only=minus"]) == 0  # nothing is tried again
    assert out.read_text() == before


def test_too_long_counts_as_noticed(tree):
    mutant = {"edits": [("sums.py", "a + b", "b + a")], "tiers": [["tests/sums_test.py"]]}
    assert (
        mutants.try_mutant(tree, mutant, 0.01)["result"] == "hangs"
        and "a + b" in (tree / "sums.py").read_text()
    )


def test_a_test_that_fails_anyway_notices_nothing(tree, tmp_path):
    (tree / "tests" / "sums_test.py").write_text(TESTS.replace("== 2", "== 3"))
    out = tmp_path / "out.jsonl"
    assert mutants.main([str(tree / "list.py"), "--only=swapped", f"--out={out}"]) == 1
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line["result"], line["by"]) == ("fails anyway", "tests/sums_test.py::test_two")


RUNNER = (
    "import pathlib, sys; from tests import mutants; mutants.ROOT = pathlib.Path(sys.argv[1]); "
    "mutants.main(sys.argv[2:])"
)
SLEEPS = """
import os, pathlib, time
def test_zero():
    pathlib.Path(os.environ["MUTANTS_TEST"]).write_text(str(os.getpid()))
    time.sleep(60)
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_run_of_pytest_ends_with_the_runner_that_is_killed(tree, tmp_path):
    (tree / "tests" / "sums_test.py").write_text(SLEEPS)
    command = [
        sys.executable,
        "-c",
        RUNNER,
        str(tree),
        str(tree / "list.py"),
        "--only=swapped",
        f"--out={tmp_path / 'out.jsonl'}",
    ]
    environment = os.environ | {"MUTANTS_TEST": str(tmp_path / "pid"), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, cwd=pathlib.Path(__file__).parents[2], env=environment
    ) as runner:
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
            assert runner.poll() is None
            time.sleep(0.02)
        runner.kill()
    status, end = (
        pathlib.Path(f"/proc/{(tmp_path / 'pid').read_text()}/status"),
        time.monotonic() + 20,
    )
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    assert not status.exists() or "zombie" in status.read_text()
