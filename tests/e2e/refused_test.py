"""Runs that are refused: each refusal is one line and leaves every byte of the directory as it
was."""

import json
import os
import random
import shutil

import pytest

from gptjax import convert, evaluate, finetune, sample, train
from gptjax.runtime import lock
from tests.short_run import bytes_of, edited, go

pytestmark = pytest.mark.usefixtures("brief")


def damage_all(directory):
    for step in (4, 8, 9):
        (directory / "checkpoints" / str(step) / "files.json").write_text("{")


def of_another_program(directory):
    for name in ("checkpoints", "tensorboard", "data"):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / "metrics.jsonl").unlink()
    (directory / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')


def of_another_step(directory):
    shutil.rmtree(directory / "checkpoints" / "9")
    shutil.copytree(directory / "checkpoints" / "8", directory / "checkpoints" / "9")


def another_seed(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"seed": 5}))


LOST = "put it back, give another --run_dir, or --new_record continues from the checkpoints alone"
CHANGED = "metrics.jsonl is not as it was when step 9 was saved: "
REFUSED = {  # what happened to the directory; what is asked for; flags; what is said
    "seed": (
        None,
        ["seed=1"],
        [],
        (
            "holds a run of another config (seed: 0 -> 1); give another --run_dir, or the config "
            "that started it"
        ),
    ),
    "length": (
        None,
        ["train.total_tokens=4096"],
        [],
        ("train.total_tokens: 2304 -> 4096); give another --run_dir, or --tokens=N changes its"),
    ),
    "shorter than done": (
        None,
        [],
        ["--tokens=1024"],
        ("--tokens=1,024, but 2,304 tokens are done; give more, or another --run_dir"),
    ),
    "two lengths": (
        None,
        ["train.total_tokens=3000"],
        ["--tokens=3072"],
        ("--set gives others (train.total_tokens=3,000, decay_"),
    ),
    "a decay": (
        None,
        ["train.schedule.decay_tokens=3072"],
        ["--tokens=3072"],
        ("2,304, decay_tokens=10,240), and --set gives others "),
    ),
    "too many steps": (
        None,
        ["train.steps=10"],
        [],
        ("train.steps=10 is more than the 9 steps that train.total_tokens=2,304 gives; raise"),
    ),
    "microbatch": (
        None,
        ["train.microbatch_rows=4"],
        [],
        ("train.microbatch_rows=4: on this mesh it can be 8"),
    ),
    "mesh": (None, ["mesh.fsdp=3"], [], "needs 3 devices, but there are 8"),
    "no record": (
        lambda d: (d / "metrics.jsonl").unlink(),
        [],
        [],
        (f"(the newest of step 9) but metrics.jsonl is missing: {LOST}"),
    ),
    "empty record": (
        edited("metrics.jsonl", lambda b: b""),
        [],
        [],
        (f"but metrics.jsonl is empty or not a file: {LOST}"),
    ),
    "no config": (
        lambda d: (d / "config.json").unlink(),
        [],
        [],
        (f"but config.json is missing: {LOST}"),
    ),
    "no config, another seed": (
        lambda d: (d / "config.json").unlink(),
        ["seed=5"],
        ["--new_record"],
        ("step 9 in .* (seed: 0 -> 5)"),
    ),
    "empty config": (
        edited("config.json", lambda b: b""),
        [],
        [],
        (f"but config.json is empty or not a file: {LOST}"),
    ),
    "another's config": (
        another_seed,
        ["seed=5"],
        [],
        ("the checkpoint of step 9 in .* is of another config (seed: 0 -> 5)"),
    ),
    "another program's config": (
        of_another_program,
        [],
        [],
        ("config.json is not a run's: give another --run_dir"),
    ),
    "another step's checkpoint": (
        of_another_step,
        [],
        [],
        ("9 is of step 8: a folder was renamed or copied; name it 8 again, or"),
    ),
    "half a config": (
        edited("config.json", lambda b: b[: len(b) // 2]),
        [],
        [],
        ("config.json is not JSON: "),
    ),
    "config of bytes": (
        edited("config.json", lambda b: b"\xff" + b),
        [],
        [],
        ("config.json is not UTF-8 text: byte 0xff at offset 0"),
    ),
    "half a record": (
        edited("metrics.jsonl", lambda b: b[: len(b) // 2]),
        [],
        [],
        (f"{CHANGED}the line of step 5 is not where"),
    ),
    "a digit": (
        edited("metrics.jsonl", lambda b: b.replace(b'"loss": 5.', (b'"loss": 4.'), 1)),
        [],
        [],
        (f"{CHANGED}some lines were"),
    ),
    "a line": (
        edited("metrics.jsonl", lambda b: b.split(b"\n", 1)[1]),
        [],
        [],
        (f"{CHANGED}the line of step 1 is not where it should be"),
    ),
    "a byte": (
        edited("metrics.jsonl", lambda b: b[:9] + b"\xff" + b[9:]),
        [],
        [],
        (f"{CHANGED}line 1, is not a record of a step"),
    ),
    "all damaged": (
        damage_all,
        [],
        [],
        ("every checkpoint in .* is damaged (9, 8, 4: its metadata is unreadable"),
    ),
    "no checkpoints": (
        lambda d: shutil.rmtree(d / "checkpoints"),
        [],
        [],
        ("has a record of 9 steps and no checkpoint: put checkpoints/"),
    ),
    "a folder": (
        lambda d: [(d / "metrics.jsonl").unlink(), (d / "metrics.jsonl").mkdir()],
        [],
        [],
        ("metrics.jsonl is empty or not a file"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line_and_changes_no_byte(text, copied, name):
    happened, changes, flags, message = REFUSED[name]
    if happened:
        happened(copied)
    before = bytes_of(copied)
    with pytest.raises(ValueError) as refused:
        go(text, copied, *changes, flags=flags)
    said = str(refused.value)
    assert "\n" not in said and len(said) < 500, said
    assert all(part in said for part in message.split(".*")), said
    assert bytes_of(copied) == before


@pytest.mark.parametrize(
    "tokenizer, n_vocab", [("Bytes()", 257), ("SentencePiece(n_pieces=300)", 300)]
)
def test_other_text_is_refused_and_changes_no_byte(tmp_path, passed, tokenizer, n_vocab):
    """Not even what was prepared of it stays."""
    text, draw = tmp_path / "text.txt", random.Random(0)
    text.write_text(
        words := " ".join(
            "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(3000)
        )
    )
    spoken = (f"data.tokenizer={tokenizer}", f"model.n_vocab={n_vocab}")
    passed(1)
    assert go(text, tmp_path / "run", *spoken) == 0
    before = bytes_of(tmp_path / "run")
    text.write_text(f"{words} and so on, he said, without end")
    with pytest.raises(
        ValueError,
        match=(
            "the data of .* have changed since it began: give back what it read, or another "
            "--run_dir"
        ),
    ):
        go(text, tmp_path / "run", *spoken)
    assert bytes_of(tmp_path / "run") == before


def test_a_second_program_is_refused_by_the_name_of_the_first(text, copied, capsys):
    with lock.hold(copied, "run directory", print):
        before = bytes_of(copied)
        with pytest.raises(
            ValueError,
            match=(
                f"run is in use: process {os.getpid()} on .* works there; wait until it ends, "
                "stop it, or"
            ),
        ):
            go(text, copied)
        assert bytes_of(copied) == before
    assert not (copied / "gptjax.lock").exists()
    assert go(text, copied) == 0 and not (copied / "gptjax.lock").exists()


@pytest.mark.parametrize(
    "change, length",
    [
        ("train.total_tokens=2304", "train.total_tokens=2,304, decay_tokens=10,240"),
        ("train.schedule.decay_tokens=3072", "train.total_tokens=10,240, decay_tokens=3,072"),
        (
            "train.schedule=Linear(peak_lr=1e-3, warmup_tokens=9, decay_tokens=3000)",
            ("train.total_tokens=10,240, decay_tokens=3,000"),
        ),
    ],
)
def test_two_lengths_of_a_new_run_are_refused(text, tmp_path, change, length):
    """A decay that is given for one of them, and scaled to the other, is of neither."""
    with pytest.raises(ValueError) as refused:
        train.main(
            [
                "--config=smoke",
                f"--text={text}",
                f"--run_dir={tmp_path / 'run'}",
                "--tokens=3072",
                "--set",
                change,
            ]
        )
    assert f"and --set changes them, too (to {length}); give one of the two" in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "read",
    [
        lambda run: sample.main([f"--model={run}", "--max_new_tokens=1"]),
        lambda run: evaluate.main(
            [f"--model={run}", f"--text={run}/../t.tsv", f"--out={run}/../out"]
        ),
        lambda run: convert.main([f"--from={run}", f"--to={run}/../exported"]),
        lambda run: finetune.main(
            [
                "--config=own",
                f"--init={run}",
                "--set=task.batch_examples=8",
                *[f"--set=task.{part}={run}/../t.tsv" for part in ("train", "dev")],
            ]
        ),
        lambda run: train.main(
            [
                "--config=smoke",
                f"--run_dir={run}/../other",
                f"--init={run}",
                "--set=model.n_layers=1",
            ]
        ),
    ],
)
def test_every_program_refuses_a_checkpoint_by_the_name_of_another_step(copied, read):
    (copied.parent / "t.tsv").write_text("text\tlabel\n" + "a\tx\nb\ty\n" * 4)
    of_another_step(copied)
    with pytest.raises(
        ValueError,
        match=(
            "checkpoints/9 is of step 8: a folder was renamed or copied; name it 8 again, or "
            "remove it"
        ),
    ):
        read(copied)


def test_fewer_steps_than_are_done_are_nothing_to_do(text, copied, capsys):
    before = bytes_of(copied)
    assert go(text, copied, "train.steps=5") == 0
    assert (
        "already at step 9, and asked for 5: nothing to do, and nothing is changed"
        in capsys.readouterr().out
    )
    assert bytes_of(copied) == before
