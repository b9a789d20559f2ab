"""gptjax.train as a user runs it: killed, stopped, damaged, and always continued as though
nothing had happened."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gptjax.report import events

CHECKOUT = pathlib.Path(__file__).parents[2]
STEPS = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """600 documents of made-up words, as .jsonl."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": " ".join(draw.choices(words, k=80))}) + "\n" for _ in range(600)
        )
    )
    return path


def command(corpus, run, *more):
    sets = [
        f"data.sources=Text(path='{corpus}')",
        f"train.steps={STEPS}",
        "train.total_tokens=1e6",
        "model.n_layers=1",
        "loop.every_save=15",
        "loop.every_eval=30",
    ]
    flags = [
        part for text in (*sets, "model.dropout.residual=0.1", *more) for part in ("--set", text)
    ]
    return [sys.executable, "-m", "gptjax.train", "--config=smoke", f"--run_dir={run}", *flags]


def start(corpus, run, *more):
    # A compilation cache of their own, which a run that is not killed fills: a kill may tear its
    # entries. One device.
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(corpus.parent / "compiled"),
        "XLA_FLAGS": " ".join(flags),
    }
    return subprocess.Popen(
        command(corpus, run, *more),
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(corpus, run, *more):
    process = start(corpus, run, *more)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def curve(run):
    """(step, what was measured) for every line of the record; times left out."""
    timing = ("seconds", "tokens_per_s")
    return [{k: v for k, v in line.items() if k not in timing} for line in events.read(run)]


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    status, said = finish(corpus, run)
    assert status == 0, said
    lines = curve(run)
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, STEPS + 1))
    assert [x["step"] for x in lines if "validation_loss" in x] == [30, 60, 90, 120]
    assert "sample 3 of 3" in said and str(run) in said
    return run, lines


def lines_written(run):
    try:
        return len((run / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("times", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_and_not_one_bit_changed(corpus, uninterrupted, tmp_path, times):
    run, draw = tmp_path / "run", random.Random()
    for kill in range(times):
        process = start(corpus, run)
        until = lines_written(run) + draw.randint(1, STEPS // 4)
        while process.poll() is None and lines_written(run) < until:
            time.sleep(0.003)
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert kill or process.returncode == -signal.SIGKILL
    status, said = finish(corpus, run)
    assert status == 0, said
    assert curve(run) == uninterrupted[1]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_stops_in_order_with_a_checkpoint(corpus, uninterrupted, tmp_path, number):
    run = tmp_path / "run"
    process = start(corpus, run)
    while process.poll() is None and lines_written(run) < 20:
        time.sleep(0.003)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and number.name in said
    stopped = int(said.split("stopped at step ")[1].split(";")[0])
    assert 15 < stopped < STEPS and (run / "checkpoints" / str(stopped)).is_dir()
    status, said = finish(corpus, run)
    assert status == 0 and f"continuing from step {stopped}" in said
    assert curve(run) == uninterrupted[1]


def test_a_flipped_byte_is_named_and_the_checkpoint_before_taken(corpus, uninterrupted, tmp_path):
    whole, lines = uninterrupted
    run = shutil.copytree(whole, tmp_path / "run")
    biggest = max(
        (run / "checkpoints" / "120").rglob("ocdbt.process_0/d/*"), key=lambda f: f.stat().st_size
    )
    data = bytearray(biggest.read_bytes())
    data[len(data) // 2] ^= 1
    biggest.write_bytes(data)
    status, said = finish(corpus, run)
    assert status == 0, said
    assert "the checkpoint of step 120 is damaged: " in said and "continuing from step 105" in said
    assert any(leaf in said for leaf in ("params/", "opt_state/"))
    assert curve(run) == lines


def test_another_config_in_the_same_run_is_refused_in_one_line(corpus, uninterrupted):
    run = uninterrupted[0]
    before = (run / "config.json").read_text()
    status, said = finish(corpus, run, "model.d_model=64")
    assert status == 2 and said.count("\n") == 1
    assert "holds a run of another config (model.d_model: 32 -> 64); give another --run_dir" in said
    assert (run / "config.json").read_text() == before


def test_help_has_an_example():
    said = subprocess.run(
        [sys.executable, "-m", "gptjax.train", "--help"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "example:" in said and "--set" in said and "--run_dir" in said
