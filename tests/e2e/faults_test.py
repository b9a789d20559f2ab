"""Saves that are cut short, and storage that is slow. Faults of whole processes: hosts_test.py."""

import json
import pathlib
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from gptjax import train
from gptjax.training import checkpoint

CHECKOUT = pathlib.Path(__file__).parents[2]

# Saves steps 1, 2 and 3, keeping two; from the third on, the directory is copied before everything
# that Python does to its files: so each copy is what a kill at that moment leaves.
SAVER = """
import os, sys, threading
import jax, jax.numpy as jnp
from gptjax.training import checkpoint

directory, copies = sys.argv[1:]
copying, lock, moments = threading.local(), threading.Lock(), []

def copy(source, target):
    os.mkdir(target)
    for entry in os.scandir(source):
        try:
            if entry.is_dir():
                copy(entry.path, f"{target}/{entry.name}")
            else:
                with open(entry.path, "rb") as file, open(f"{target}/{entry.name}", "wb") as other:
                    other.write(file.read())
        except FileNotFoundError:  # Orbax moves on meanwhile
            pass

def hook(event, args):
    if getattr(copying, "now", False) or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        return
    path = args[0]
    if not isinstance(path, str) and not hasattr(path, "__fspath__") or not os.fspath(path).startswith(directory):
        return
    if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
        return
    copying.now = True
    with lock:
        copy(directory, f"{copies}/{len(moments):03d}")
        moments.append(f"{event} {os.path.relpath(path, directory)}")
    copying.now = False

make = jax.jit(lambda s: {"w": jnp.full((40, 50), s, jnp.float32)})
with checkpoint.CheckpointManager(directory, 2, None, print) as checkpoints:
    checkpoints.save(1, make(1), {"row": 1})
    checkpoints.save(2, make(2), {"row": 2})
    checkpoints.wait()
    sys.addaudithook(hook)
    checkpoints.save(3, make(3), {"row": 3})
    checkpoints.wait()
    copying.now = True
print("\\n".join(moments))
"""  # noqa: E501


@pytest.mark.usefixtures("implicit_transfers")
def test_a_save_that_is_cut_short_anywhere_leaves_the_one_before_or_itself_whole(tmp_path):
    directory, copies = tmp_path / "run", tmp_path / "copies"
    copies.mkdir()
    command = [sys.executable, "-c", SAVER, str(directory), str(copies)]
    moments = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    stages = [
        "os.mkdir 3.saving.orbax-checkpoint-tmp",
        "open 3.saving/files.json",
        "os.rename 3.saving",
        "os.rename 1",
    ]
    stages += ["shutil.rmtree 1.removed"]
    assert [moment for moment in moments if moment in stages] == stages, moments
    wanted = {"w": jax.ShapeDtypeStruct((40, 50), jnp.float32)}
    whole = []
    for number in range(len(moments)):
        said = []
        with checkpoint.CheckpointManager(
            copies / f"{number:03d}", 2, None, said.append
        ) as checkpoints:
            step, state, about = checkpoints.restore(wanted)
            checkpoints.prepare()
            assert said == [] and about == {"row": step}
            assert (state["w"] == step).all()
            assert all(entry.name.isdecimal() for entry in (copies / f"{number:03d}").iterdir()), (
                "the rubbish is gone"
            )
        whole.append(step)
    valid = moments.index("os.rename 3.saving") + 1
    assert whole == [2] * valid + [3] * (len(moments) - valid)


def test_slow_storage_does_not_hold_up_the_steps(tmp_path, monkeypatch):
    """Each save takes until three more steps have been reported: if steps waited for saves, this
    would never end."""
    (tmp_path / "text.txt").write_text(
        "".join(f"{n} and {n + 1} make {2 * n + 1}. " for n in range(2000))
    )
    run, steps, late = tmp_path / "run", 12, []
    commit = checkpoint.CheckpointManager._commit

    def slow(self, step, response, needed):
        until = time.monotonic() + 60
        while len((run / "metrics.jsonl").read_text().splitlines()) < min(step + 3, steps):
            if time.monotonic() > until:
                late.append(step)
                break
            time.sleep(0.01)
        return commit(self, step, response, needed)

    monkeypatch.setattr(checkpoint.CheckpointManager, "_commit", slow)
    changes = [
        f"data.sources=Text(path='{tmp_path / 'text.txt'}')",
        "data.validation=Tail(fraction=0.1)",
        f"train.steps={steps}",
    ]
    changes += [
        "loop.every_save=5",
        "loop.every_eval=100",
        "model.n_layers=1",
        "loop.sample_tokens=1",
    ]
    assert (
        train.main(
            [
                "--config=smoke",
                f"--run_dir={run}",
                *[part for change in changes for part in ("--set", change)],
            ]
        )
        == 0
    )
    assert late == []
    assert sorted(int(entry.name) for entry in (run / "checkpoints").iterdir()) == [5, 10, 12]
    assert [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == [*range(1, 13), 12]
