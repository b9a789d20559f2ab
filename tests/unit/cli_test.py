"""What the programs share: --help in under half a second, one line for what a user did, a trace
for what we did."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gptjax
from gptjax import __main__ as programs
from gptjax import cli
from gptjax.config import data
from gptjax.config.overrides import override
from gptjax.configs import registry

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(
    path.stem
    for path in (ROOT / "gptjax").glob("[!_]*.py")
    if '__name__ == "__main__"' in path.read_text()
)


def exit_of(main, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["program", *argv])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def program(argv):
    """Reads a config and says its name: the smallest program."""
    print(
        cli.resolve_config(
            cli.make_config_parser(
                "toy", "A toy.", "python -m gptjax.toy --config=nano"
            ).parse_args(argv)
        ).name
    )


def test_a_config_is_resolved(monkeypatch, capsys):
    assert (
        exit_of(program, monkeypatch, "--config=nano", "--set", "name=mine", "--set", "seed=3")
        is None
    )
    assert capsys.readouterr().out == "mine\n"
    args = cli.make_config_parser("toy", "", "").parse_args(["--config=nano", "--set=seed=3"])
    assert cli.resolve_config(args) == override(registry.config("nano"), "seed=3")


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
        (
            ("--config=nano", "--sett=seed=1"),
            "--sett=seed=1: did you mean --set?; python -m gptjax.toy --help",
        ),
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
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            "error: a.txt: No such file or directory\n",
        ),
        (PermissionError(13, "Permission denied"), "error: Permission denied\n"),
        (OSError("disk is full"), "error: disk is full\n"),
        (TimeoutError(), "error: TimeoutError\n"),
        (
            FileNotFoundError(2, "No such file", "a\x1b[31m\udce9\n"),
            "error: a\\x1b[31m\\udce9 : No such file\n",
        ),
        (
            ModuleNotFoundError("No module named 'wandb.x'", name="wandb.x"),
            "the package wandb is not installed",
        ),
        (
            ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval"),
            "pip install -r requirements-eval.txt",
        ),
        (
            ImportError("cannot import name 'x' from 'flax'", name="flax"),
            "pip install -r requirements.txt",
        ),
        (
            ImportError("x.so: failed to map segment from shared object", name="resource"),
            "not enough memory (x.so: failed to map",
        ),
        (MemoryError("Unable to allocate 8 EiB"), "not enough memory (Unable to allocate 8 EiB)"),
        (MemoryError(), "not enough memory (MemoryError)"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3 bytes"),
            "not enough memory of the device (RESOURCE_EXHAUSTED",
        ),
        (
            RuntimeError("Unable to initialize backend 'cpu': std::bad_alloc"),
            "not enough memory of the device (Unable to",
        ),
        (
            RuntimeError("can't start new thread"),
            "the machine lets this program start no more threads",
        ),
    ],
)
def test_errors_with_a_message_are_one_line(error, said, monkeypatch, capsys):
    assert exit_of(raising(error), monkeypatch) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1


def test_ctrl_c_is_130(monkeypatch):
    assert exit_of(raising(KeyboardInterrupt()), monkeypatch) == 130


def test_a_status_is_handed_on(monkeypatch):
    assert exit_of(lambda argv: 3, monkeypatch) == 3


BUGS = [
    raising(TypeError("bug")),
    lambda argv: int("a bug"),
    lambda argv: [].remove("a bug"),
    lambda argv: json.loads("a bug"),
    raising(RuntimeError("bug")),
]
BUGS += [raising(ImportError("bug", name="gptjax.x")), raising(ImportError("bug"))]


@pytest.mark.parametrize("main", BUGS, ids=range(len(BUGS)))
def test_a_bug_keeps_its_trace(main, monkeypatch):
    with pytest.raises(
        (TypeError, ValueError, RuntimeError, ImportError), match="bug|remove|Expecting value"
    ):
        exit_of(main, monkeypatch)


def test_a_value_error_from_a_library_is_a_bug(monkeypatch):
    """jax removes its own frames from a trace, so that the last one left is ours."""
    import jax.numpy as jnp

    with pytest.raises(ValueError, match="squeeze"):
        exit_of(lambda argv: jnp.squeeze(jnp.zeros((2, 3)), axis=0), monkeypatch)


def test_a_reader_that_leaves_is_no_error():
    code = "from gptjax import cli; cli.run(lambda argv: print('x\\n' * 100_000))"
    found = subprocess.run(
        f'"{sys.executable}" -c "{code}" | head -n 1',
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout == "x\n" and found.stderr == ""


@pytest.mark.parametrize(
    "ending, status, out, err",
    [
        (">&-", 0, "", ""),
        ("<&- >&- 2>&-", 0, "", ""),
        (">/dev/full", 2, "", "error: standard output: No space left on device\n"),
        (">/dev/full 2>&1", 2, "", ""),
        ("", 0, "caf\\xe9 \\udc80\n", ""),
    ],
)
def test_standard_streams_that_are_closed_full_or_ascii(ending, status, out, err, tmp_path):
    """And a file that is opened meanwhile does not take the number of a closed one."""
    code = (
        f"from gptjax import cli\ndef main(argv):\n    kept = open({str(tmp_path / 'kept')!r}, "
        "'w')\n    kept.write('x')\n"
    )
    code += "    print('caf\\u00e9 \\udc80')\ncli.run(main)"
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "",
        "PYTHONUNBUFFERED": "",
    }
    found = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {ending}', sys.executable, code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.returncode, found.stdout, found.stderr) == (status, out, err)
    assert (tmp_path / "kept").read_text() == "x"


def test_flags_take_dashes_and_underscores():
    parser = cli.make_parser("toy", "", "")
    parser.add_argument("--top_k", type=int)
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("words", nargs="*")
    for words in (["--top-k=3", "--dry-run", "a-b"], ["--top_k", "3", "--dry_run", "a-b"]):
        assert vars(parser.parse_args(words)) == {"top_k": 3, "dry_run": True, "words": ["a-b"]}
    assert parser.parse_args(["--", "--top-k"]).words == ["--top-k"]


def test_every_flag_is_written_with_underscores_and_read_in_one_place():
    for folder in ("gptjax", "launch", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "add_argument"
                ):
                    name = ast.literal_eval(node.args[0])
                    assert "-" not in name.removeprefix("--"), (path, name)
                    kinds = [
                        ast.unparse(keyword.value)
                        for keyword in node.keywords
                        if keyword.arg == "type"
                    ]
                    assert not {"int", "float", "Path", "pathlib.Path"} & {*kinds}, (
                        path,
                        name,
                        "config/parse.py has types with bounds",
                    )


def test_an_unknown_argument_of_many_lines_is_one_line(monkeypatch, capsys):
    assert exit_of(program, monkeypatch, "--config=nano", "--x=a\nb\x1b[31m" + "c" * 50_000) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "\x1b" not in err and len(err) < 3000


def test_gptjax_lists_its_programs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gptjax"])
    monkeypatch.setenv("COLUMNS", "80")
    assert programs.main([]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in shown)
    lines = shown[2 : shown.index("", 2)]
    launchers = ("gke", "k8s", "rehearse", "slurm", "tpu")
    assert [line.split()[0] for line in lines] == [
        *PROGRAMS,
        *(f"launch_{name}" for name in launchers),
    ]
    assert "lm_eval" in PROGRAMS
    assert all(10 < len(line.strip().split("  ", 1)[1].strip()) for line in lines)
    monkeypatch.setenv("COLUMNS", "60")
    assert programs.main(["--help"]) == 0
    assert all(len(line) <= 64 for line in capsys.readouterr().out.splitlines())


def test_gptjax_runs_its_programs(monkeypatch, capsys):
    assert exit_of(programs.main, monkeypatch, "plan", "--config=smoke", "--json") is None
    assert json.loads(capsys.readouterr().out)["name"] == "smoke"
    assert sys.argv == ["program plan", "--config=smoke", "--json"]  # lm_eval's parser reads it
    assert exit_of(programs.main, monkeypatch, "launch-slurm", "--", "--config=nano") == 0
    assert "-m gptjax.train --config=nano" in capsys.readouterr().out
    assert exit_of(programs.main, monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"gptjax {gptjax.__version__}\n"
    assert exit_of(programs.main, monkeypatch, "tain") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no program is called tain; there are ") and "train, " in said


def imports(*argv):
    """(top-level names of what a program imports, how many modules, the finished process)."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line for line in said.stderr.splitlines() if line.startswith("import time:")][1:]
    names = [line.rpartition("|")[2].strip() for line in lines]
    return {name.partition(".")[0] for name in names}, len(names), said


SLOW_IMPORTS = {"jax", "flax", "optax", "orbax", "tensorflow", "torch", "pyarrow", "rich", "grain"}


def test_the_schema_comes_without_jax_at_once():
    packages, n, said = imports("-c", "import gptjax.config.schema")
    assert said.returncode == 0 and not packages & (SLOW_IMPORTS | {"numpy"}) and 20 < n < 250


@pytest.mark.parametrize(
    "name", [name for name in PROGRAMS if name != "lm_eval"]
)  # which needs a package of requirements-eval.txt
def test_help_of_every_program_comes_at_once(name):
    packages, n, said = imports("-m", f"gptjax.{name}", "--help")
    assert said.returncode == 0 and said.stdout.startswith(f"usage: python -m gptjax.{name}"), (
        said.stderr
    )
    assert "example:\n" in said.stdout
    assert not packages & SLOW_IMPORTS and 20 < n < 450, (packages, n)


# --- one's own text -------------------------------------------------------------------------------


def of_text(*argv):
    return cli.resolve_config(cli.make_config_parser("toy", "", "", text=True).parse_args(argv))


ENDS = data.Tail(fraction=0.1)
TEXTS = {
    "book.txt": ("nano-book", ENDS),
    "two": ("nano-two", ENDS),
    "two/*.txt": ("nano-two", ENDS),
    "many.jsonl": ("nano-many", ENDS),
    "lines": ("nano-lines", data.ByDocument()),
    "lines/*.jsonl": ("nano-lines", data.ByDocument()),
    "lines/a.jsonl": ("nano-a", ENDS),
    "./an odd  name.TXT.gz": ("nano-an_odd_name", ENDS),
}


@pytest.mark.parametrize("path", TEXTS)
def test_one_flag_reads_ones_own_text(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for name in (
        "book.txt",
        "two/a.txt",
        "two/b.txt",
        "many.jsonl",
        "lines/a.jsonl",
        "lines/b.jsonl",
        "an odd  name.TXT.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    name, held_out = TEXTS[path]
    config = of_text("--config=nano", f"--text={path}", "--set=seed=3")
    assert config.data.sources == (data.Text(path=path),) and config.seed == 3
    assert config.name == name
    assert config.data.validation == held_out
    assert (
        of_text(
            "--config=nano", f"--text={path}", "--set=data.validation.fraction=0.3"
        ).data.validation.fraction
        == 0.3
    )
    assert of_text("--config=nano", f"--text={path}", "--set=name=mine").name == "mine"


def test_a_text_that_is_not_there_and_two_of_them_are_refused(tmp_path):
    (tmp_path / "train-00000.tokens.npy").touch()
    (tmp_path / "a.txt").write_text("text")
    for argv, match in (
        (("--text=nowhere.txt",), r"nowhere\.txt does not exist"),
        (("--text=",), "an empty path"),
        (
            (f"--text={tmp_path}",),
            r"is tokenized already: give it by --set \"data.sources=Shards\(path='.*'\)\" instead "
            r"of --text",
        ),
        (
            (f"--text={tmp_path}/a.txt", "--set=data.sources=Embedded()"),
            "--text and --set data.sources both say what to read",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            of_text("--config=nano", *argv)


@pytest.mark.parametrize("name", ["shakespeare_char", "gpt1_mini"])
def test_a_recipe_of_a_certain_text_says_how_to_get_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=(
            rf"--config={name} is of a text that is not here .*: "
            r"(get https://|give any).*--text="
        ),
    ) as error:
        of_text(f"--config={name}")
    assert "\n" not in str(error.value)
    (tmp_path / "input.txt").write_text("text")
    assert of_text(f"--config={name}", "--text=input.txt").name == f"{name}-input"
    assert of_text(f"--config={name}", "--set=data.sources=Embedded()").name == name
    assert (
        "../shared"
        not in (ROOT / "configs" / "small.py").read_text()
        + (ROOT / "configs" / "sweeps.py").read_text()
    )
