"""What the programs share: --help in under half a second, one line for what a user did, a trace for what we did."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.config import command, registry
from gptjax.config.overrides import override

ROOT = Path(__file__).parents[3]
PROGRAMS = sorted(path.stem for path in (ROOT / "gptjax").glob("*.py") if '__name__ == "__main__"' in path.read_text())


def exit_of(main, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as caught:
        command.run(main)
    return caught.value.code


def program(argv):
    """Reads a config and says its name: the smallest program."""
    print(command.resolved(command.parser("toy", "A toy.", "python -m gptjax.toy --config=nano").parse_args(argv)).name)


def test_a_config_is_resolved(monkeypatch, capsys):
    assert exit_of(program, monkeypatch, "--config=nano", "--set", "name=mine", "--set", "seed=3") is None
    assert capsys.readouterr().out == "mine\n"
    args = command.parser("toy", "", "").parse_args(["--config=nano", "--set=seed=3"])
    assert command.resolved(args) == override(registry.config("nano"), "seed=3")


def test_help_ends_with_the_example(monkeypatch, capsys):
    assert exit_of(program, monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert "--config NAME" in said and "--set PATH=VALUE" in said
    assert said.endswith("example:\n  python -m gptjax.toy --config=nano\n")


@pytest.mark.parametrize(
    "argv,said",
    [
        ((), "--config=NAME"),
        (("--config=nanno",), "did you mean nano?"),
        (("--config=nano", "--set=seed"), "path=value"),
        (("--config=nano", "--sett=seed=1"), "--sett=seed=1; python -m gptjax.toy --help"),
        (("--conf=nano",), "--conf=nano"),
        (("--config",), "expected one argument"),
    ],
)
def test_what_a_user_can_cause_is_one_line(argv, said, monkeypatch, capsys):
    assert exit_of(program, monkeypatch, *argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    "error,said",
    [
        (ValueError("two\n  lines"), "error: two lines\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "error: a.txt: No such file or directory\n"),
        (PermissionError(13, "Permission denied"), "error: Permission denied\n"),
        (OSError("disk is full"), "error: disk is full\n"),
        (TimeoutError(), "error: TimeoutError\n"),
    ],
)
def test_errors_with_a_message_are_one_line(error, said, monkeypatch, capsys):
    assert exit_of(raising(error), monkeypatch) == 2
    assert capsys.readouterr().err == said


def test_ctrl_c_is_130(monkeypatch):
    assert exit_of(raising(KeyboardInterrupt()), monkeypatch) == 130


def test_a_status_is_handed_on(monkeypatch):
    assert exit_of(lambda argv: 3, monkeypatch) == 3


@pytest.mark.parametrize("main", [raising(TypeError("bug")), lambda argv: int("a bug"), lambda argv: [].remove("a bug")])
def test_a_bug_keeps_its_trace(main, monkeypatch):
    with pytest.raises((TypeError, ValueError), match="bug|remove"):
        exit_of(main, monkeypatch)


def test_a_value_error_from_a_library_is_a_bug(monkeypatch):
    """jax removes its own frames from a trace, so that the last one left is ours."""
    import jax.numpy as jnp

    with pytest.raises(ValueError, match="squeeze"):
        exit_of(lambda argv: jnp.squeeze(jnp.zeros((2, 3)), axis=0), monkeypatch)


def test_a_reader_that_leaves_is_no_error():
    code = "from gptjax.config import command; command.run(lambda argv: print('x\\n' * 100_000))"
    found = subprocess.run(f'"{sys.executable}" -c "{code}" | head -n 1', shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.stdout == "x\n" and found.stderr == ""


def best_seconds(*argv):
    """Of the processor, the best of three, as the machine may be busy; and what was printed."""

    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        said = subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, said

    return min((once() for _ in range(3)), key=lambda pair: pair[0])


def test_the_schema_comes_without_jax_at_once():
    seconds, said = best_seconds("-c", "import sys, gptjax.config.schema; print('jax' in sys.modules, 'numpy' in sys.modules)")
    assert said.stdout == "False False\n" and seconds < 0.5


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_of_every_program_comes_at_once(name):
    seconds, said = best_seconds("-m", f"gptjax.{name}", "--help")
    assert said.returncode == 0 and said.stdout.startswith(f"usage: python -m gptjax.{name}"), said.stderr
    assert "example:\n" in said.stdout
    assert seconds < 0.5
