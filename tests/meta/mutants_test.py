"""The list of faults, and the runner on a tree of one function and one test."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from tests import mutants

LIST = """
[sums.minus]
fault = "subtracts"
file = "gptjax/sums.py"
old = 'a + b'
new = 'a - b'
tests = ["tests/sums_test.py::test_zero", "tests/sums_test.py::test_two"]

[sums.swapped]
fault = "adds the other way around"
file = "gptjax/sums.py"
old = 'a + b'
new = 'b + a'
tests = ["tests/sums_test.py"]

[sums.near]
fault = "doubles what it need not"
file = "gptjax/sums.py"
old = 'a + b'
new = 'a + b if b else 2 * a'
tests = ["tests/sums_test.py"]

[products.gone]
fault = "does not multiply"
file = "gptjax/sums.py"
old = 'a * b'
new = 'a'
tests = ["tests/sums_test.py"]

[products.lost]
fault = "names no test"
file = "gptjax/sums.py"
old = 'a + b'
new = 'a'
tests = ["tests/sums_test.py", "-k", "nothing"]
"""
TESTS = """
from gptjax import sums
def test_zero(): assert sums.add(0, 0) == 0
def test_two(): assert sums.add(1, 1) == 2
"""
NEAR = """
from gptjax import sums
def test_one(): assert sums.add(1, 0) == 1
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    root = tmp_path / "tree"
    for folder in ("gptjax", "tests/unit"):
        (root / folder).mkdir(parents=True)
    (root / "gptjax" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (root / "tests" / "sums_test.py").write_text(TESTS)
    (root / "tests" / "unit" / "near_test.py").write_text(NEAR)
    (root / "tests" / "mutants.toml").write_text(LIST)
    (root / "conftest.py").write_text("")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return root


def results(out):
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {line["name"]: (line["result"], line["by"]) for line in lines}


def test_every_fault_of_the_list_applies_and_its_tests_exist():
    faults = mutants.load((mutants.ROOT / "tests" / "mutants.toml").read_text())
    assert len({mutant.name for mutant in faults}) == len(faults) > 300
    troubles = []
    for mutant in faults:
        try:
            mutants.apply(mutants.ROOT, mutant)
        except ValueError as error:
            troubles.append(f"{mutant.name}: {error}")
        if any(mutants.pattern(edit.old).fullmatch(edit.new) for edit in mutant.edits):
            troubles.append(f"{mutant.name}: the code is the same")
        for test in mutant.tests:
            file, _, name = test.partition("[")[0].partition("::")
            path = mutants.ROOT / file
            if not path.exists() or name and f"def {name}(" not in path.read_text():
                troubles.append(f"{mutant.name}: there is no {test}")
    assert not troubles, "\n".join(["mend tests/mutants.toml:", *troubles])


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("f(a, b)", "f(\n    a,\n    b,\n)"),
        ("f(a, b)", "f(a, b)"),
        ("x < y", "x\n    < y"),
        ("if x:\n    return", "if x:\n        return"),
    ],
)
def test_line_breaks_and_trailing_commas_do_not_matter(code, text):
    assert mutants.pattern(code).fullmatch(text)


@pytest.mark.parametrize("text", ["f(aa, b)", "gf(a, b)", "f(a, c)"])
def test_other_code_does_not_match(text):
    assert not mutants.pattern("f(a, b)").search(text)


def test_new_lines_are_indented_as_the_old_code(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    for i in x:\n        g(i)\n")
    edit = mutants.Edit("a.py", "g(i)", "if i:\n    h(i)")
    mutant = mutants.Mutant("area", "name", "fault", (edit,), ())
    assert mutants.apply(tmp_path, mutant)["a.py"].endswith("        if i:\n            h(i)\n")
    broken = mutants.Mutant("area", "name", "fault", (mutants.Edit("a.py", "g(i)", "if"),), ())
    with pytest.raises(ValueError, match="does not parse"):
        mutants.apply(tmp_path, broken)


def test_each_fault_comes_to_what_it_is(tree, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert mutants.main([f"--out={out}", "--tests=folder"]) == 1
    assert results(out) == {
        "minus": ("killed", "tests/sums_test.py::test_two"),
        "swapped": ("survived", "tests/unit"),
        "near": ("killed", "tests/unit/near_test.py::test_one"),
        "gone": ("not applicable", "gptjax/sums.py has 0 times: a * b"),
        "lost": ("no tests", "tests/sums_test.py -k nothing: status 5"),
    }
    shown, before = capsys.readouterr().out, out.read_text()
    assert "survived: swapped: adds the other way around (tests/unit)\n" in shown
    assert "killed: 2 of 3, 66.7%" in shown
    assert mutants.main([f"--out={out}", "minus"]) == 0  # nothing is run again
    assert out.read_text() == before


def test_a_copy_has_links_to_folders(tree, tmp_path):
    (tree / "gptjax" / "near").symlink_to("../tests/unit")
    copy = mutants.copy_tree(tmp_path / "copy")
    assert (copy / "gptjax" / "near" / "near_test.py").read_text() == NEAR


def test_too_long_counts_as_killed(tree, tmp_path):
    mutant = mutants.load(LIST)[0]
    assert mutants.Copy(tree, set()).run(mutant, "named", 0.01)["result"] == "timed out"
    assert "a + b" in (tree / "gptjax" / "sums.py").read_text()


def test_a_test_that_fails_anyway_kills_nothing(tree, tmp_path):
    (tree / "tests" / "sums_test.py").write_text(TESTS.replace("== 2", "== 3"))
    out = tmp_path / "out.jsonl"
    assert mutants.main(["swapped", f"--out={out}"]) == 1
    assert results(out) == {"swapped": ("fails anyway", "tests/sums_test.py::test_two")}


RUNNER = (
    "import pathlib, sys; from tests import mutants; "
    "mutants.ROOT = pathlib.Path(sys.argv[1]); mutants.main(sys.argv[2:])"
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
    pid = tmp_path / "pid"
    command = [sys.executable, "-c", RUNNER, str(tree), "swapped", f"--out={tmp_path / 'out'}"]
    environment = os.environ | {"MUTANTS_TEST": str(pid), "TMPDIR": str(tmp_path)}
    project = pathlib.Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=project, env=environment) as runner:
        while not (pid.exists() and pid.read_text()):
            assert runner.poll() is None
            time.sleep(0.02)
        runner.kill()
    status, end = pathlib.Path(f"/proc/{pid.read_text()}/status"), time.monotonic() + 20
    while status.exists() and "zombie" not in status.read_text() and time.monotonic() < end:
        time.sleep(0.02)
    assert not status.exists() or "zombie" in status.read_text()
