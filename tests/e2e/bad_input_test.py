"""What a user can get wrong, through the programs themselves: one clear line, exit status 2,
nothing half-written."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gptjax import sample, train
from gptjax.runtime import lock, run_dir

CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 200)
    return path


REFUSED_AT_ONCE = {
    "unknown config": (
        ["--config=gpt3_smal"],
        "no config is called 'gpt3_smal'; did you mean gpt3_small",
    ),
    "no config": ([], "say which config with --config=NAME: smoke, nano"),
    "unknown field": (
        ["--config=smoke", "--set", "model.n_layer=2"],
        "Model has no field 'n_layer'; did you mean model.n_layers?",
    ),
    "wrong type": (["--config=smoke", "--set", "model.n_layers=two"], "model.n_layers"),
    "heads": (
        ["--config=smoke", "--set", "model.n_heads=5"],
        "n_heads=5 does not divide model.d_model=32; heads that do: 1, 2, 4, 8",
    ),
    "zero": (
        ["--config=smoke", "--set", "model.n_ctx=0"],
        "n_ctx=0: give a whole number from 1 to",
    ),
    "negative": (
        ["--config=smoke", "--set", "train.total_tokens=-5"],
        "total_tokens=-5: give a whole number from 1 to",
    ),
    "batch": (
        ["--config=smoke", "--set", "train.batch_tokens=100"],
        "train.batch_tokens=100 is not a whole number of rows",
    ),
    "microbatch": (
        ["--config=smoke", "--set", "train.microbatch_rows=3"],
        "train.microbatch_rows=3 does not divide the batch of 8 rows",
    ),
    "period": (
        ["--config=smoke", "--set", "model.positions=(Rotary(), Rotary(), Rotary())"],
        "model.positions has 3 encodings for a period of",
    ),
}


@pytest.mark.parametrize("name", REFUSED_AT_ONCE)
def test_refused_before_anything_is_made(name, tmp_path):
    arguments, message = REFUSED_AT_ONCE[name]
    with pytest.raises(ValueError) as refused:
        train.main([*arguments, f"--run_dir={tmp_path / 'run'}"])
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


REFUSED_BY_THE_MESH = {
    "devices": (["mesh.tensor=3"], "needs a multiple of 3 devices, but there are 8"),
    "an idle axis": (
        ["mesh.tensor=2"],
        "mesh.tensor=2, but mesh.sharding=fsdp does not use it; set it to 1, or "
        "sharding=fsdp_tensor",
    ),
    "heads": (
        ["mesh.tensor=4", "mesh.sharding=fsdp_tensor"],
        "mesh.tensor = 4 does not divide model.n_heads = 2; choose one of 1, 2",
    ),
    "width": (
        ["model.d_model=36"],
        "mesh.fsdp = 8 does not divide model.d_model = 36; choose one of 1, 2, 3, 4, 6",
    ),
    "row": (
        ["mesh.context=8", "model.n_ctx=36", "train.batch_tokens=288"],
        "mesh.context = 8 does not divide model.n_ctx = 36",
    ),
    "batch": (
        ["train.batch_tokens=96"],
        "train.batch_tokens=96 is 3 rows, which 8 devices cannot share evenly; give 256",
    ),
    "microbatch": (
        ["train.microbatch_rows=4"],
        "train.microbatch_rows=4: on this mesh it can be 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED_BY_THE_MESH)
def test_refused_before_a_run_directory_is_made(name, tmp_path):
    changes, message = REFUSED_BY_THE_MESH[name]
    with pytest.raises(ValueError) as refused:
        train.main(
            [
                "--config=smoke",
                f"--run_dir={tmp_path / 'run'}",
                *[part for change in changes for part in ("--set", change)],
            ]
        )
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


REFUSED_WITH_DEVICES = {
    "missing text": (["data.sources=Text(path='no/such/file.txt')"], "no/such/file.txt"),
    "vocabulary": (
        ["model.n_vocab=300"],
        "has 257 ids but model.n_vocab=300: --set model.n_vocab=257",
    ),
    "short text": (["model.n_ctx=4096", "train.batch_tokens=32768"], "fewer than one row"),
    "no end of text": (
        ["data.document_attention=mask", "data.tokenizer=Gpt1Bpe(path='no/such')"],
        "no/such",
    ),
}


@pytest.mark.parametrize("name", REFUSED_WITH_DEVICES)
def test_refused_before_a_run_has_begun(name, text, tmp_path):
    changes, message = REFUSED_WITH_DEVICES[name]
    usual = [
        f"data.sources=Text(path='{text}')",
        "data.validation=Tail(fraction=0.1)",
        "model.n_layers=1",
        "train.steps=1",
        "loop.sample_tokens=1",
    ]
    flags = [part for change in (*usual, *changes) for part in ("--set", change)]
    with pytest.raises(ValueError) as refused:
        train.main(["--config=smoke", f"--run_dir={tmp_path / 'run'}", *flags])
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    if name == "vocabulary":  # the corrected command may use the same run directory
        assert (
            train.main(
                [
                    "--config=smoke",
                    f"--run_dir={tmp_path / 'run'}",
                    *[p for c in usual for p in ("--set", c)],
                ]
            )
            == 0
        )


@pytest.mark.parametrize("given", ["", "~nobody-of-this-name/x", "a\0b", "caf\udce9"], ids=range(4))
def test_a_run_directory_that_cannot_be(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match=(
            "an empty path|no home directory of ~nobody|holds a zero byte|must be UTF-8 text; "
            "give another"
        ),
    ):
        train.main(["--config=smoke", f"--run_dir={given}"])
    assert not list(tmp_path.iterdir())


def test_home_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_dir.directory("~/x") == tmp_path / "x"


def test_a_run_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError,
        match=(
            r"cannot write to the run directory .*file/run: Not a directory; make it writable or "
            r"give another"
        ),
    ):
        train.main(["--config=smoke", f"--run_dir={tmp_path / 'file' / 'run'}"])


@pytest.mark.parametrize("name", ["metrics.jsonl", "data.json"])
def test_files_of_another_program_are_left_as_they_are(name, text, tmp_path):
    (tmp_path / name).write_text('{"epoch": 1}\n')
    flags = [
        "--set",
        f"data.sources=Text(path='{text}')",
        "--set",
        "data.validation=Tail(fraction=0.1)",
        "--set",
        "train.steps=1",
    ]
    with pytest.raises(
        ValueError,
        match=(
            f"{tmp_path} has {name} but no config.json: another program's, .*give another "
            "--run_dir, "
            "or move it"
        ),
    ):
        train.main(["--config=smoke", f"--run_dir={tmp_path}", *flags])
    assert {path.name for path in tmp_path.iterdir()} == {name, "text.txt"} and (
        tmp_path / name
    ).read_text() == '{"epoch": 1}\n'


def test_sample_says_what_is_missing(tmp_path):
    with pytest.raises(
        ValueError, match="nothing does not exist: give a run, or a folder of weights"
    ):
        sample.main([f"--model={tmp_path / 'nothing'}"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        sample.main([f"--model={tmp_path}"])


def test_updates_that_are_never_finite_end_the_run(text, tmp_path, capsys):
    flags = [
        "train.schedule.peak_lr=1e30",
        "train.optimizer.clip_norm=None",
        "train.max_nonfinite_steps=3",
        "loop.every_save=1",
        "train.steps=30",
    ]
    flags += [f"data.sources=Text(path='{text}')", "data.validation=Tail(fraction=0.1)"]
    status = train.main(
        [
            "--config=smoke",
            f"--run_dir={tmp_path / 'run'}",
            *[p for f in flags for p in ("--set", f)],
        ]
    )
    said = capsys.readouterr().out
    assert status == 3
    assert (
        "3 updates in a row were not finite" in said
        and "the last good checkpoint is of step" in said
    )
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["skipped_in_row"] == 3


def test_the_program_says_it_in_one_line_with_status_2(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [
        sys.executable,
        "-m",
        "gptjax.train",
        "--config=smoke",
        f"--run_dir={tmp_path / 'run'}",
        "--set",
        "data.sources=Text(path='no')",
    ]
    said = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert (
        said.returncode == 2 and said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
    ), said.stderr


def test_a_run_in_a_bucket_that_is_not_known_or_not_installed(monkeypatch):
    with pytest.raises(
        ValueError,
        match="ftp://x/y: give a directory, or a folder of a bucket that starts with gs://",
    ):
        train.main(["--config=smoke", "--run_dir=ftp://x/y"])
    monkeypatch.setattr(run_dir.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="gs://x/y needs the package gcsfs: pip install -r requirements-cloud.txt"
    ):
        sample.main(["--model=gs://x/y"])


def test_a_directory_that_hosts_do_not_share(tmp_path):
    with lock.hold(tmp_path / "run", "run directory", print):
        owner = lock.owner(tmp_path / "run")
        run_dir.check_shared(tmp_path / "run", owner)
        with pytest.raises(
            ValueError,
            match=(
                "is not the directory that process 0 writes to: give a --run_dir on a file system "
                "that all"
            ),
        ):
            run_dir.check_shared(tmp_path, owner)
