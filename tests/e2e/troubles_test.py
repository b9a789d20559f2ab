"""What a training does not need, and what it says: troubles that are a line, and lines about the
data."""

import shutil

import numpy as np
import pytest

from gptjax import train
from gptjax.report import sync
from gptjax.training import loop, run_summary
from tests.short_run import LINES, go, losses

pytestmark = pytest.mark.usefixtures("brief")


def test_a_training_goes_on_without_what_it_does_not_need(
    text, finished, tmp_path, capsys, monkeypatch
):
    """A picture, TensorBoard, the removal of an old checkpoint: a line each."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "loss.png").mkdir()
    (directory / "tensorboard").write_text("")
    real = shutil.rmtree

    def busy(path, *args, **kwargs):
        if str(path).endswith(".removed"):
            raise OSError(39, "Directory not empty", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", busy)
    assert go(text, directory, "loop.keep_last=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    for line in (
        "loss.png is not drawn: ",
        "TensorBoard receives no more of this run: ",
        "4.removed cannot be removed: Directory not empty",
    ):
        assert said.count(line) == 1
    assert losses(directory) == losses(finished)
    assert (directory / "checkpoints" / "9").is_dir() and not (
        directory / "checkpoints" / "4"
    ).exists()
    assert go(text, directory, "loop.keep_last=1") == 0  # the rubbish is told, and no more
    monkeypatch.setattr(shutil, "rmtree", real)
    assert go(text, directory, "loop.keep_last=1") == 0
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["9"]


def test_a_profile_of_a_finished_run_says_that_there_is_none(text, copied, capsys):
    assert go(text, copied, flags=["--profile=2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "nothing was traced: the run had 0 steps, and a trace starts with the third; give another "
        "--run_dir, or prolong this one" in said
    )


def test_a_run_in_a_bucket_is_said_to_have_no_lock(text, copied, monkeypatch, capsys):
    sessions = []
    monkeypatch.setattr(loop, "train_loop", lambda session: [sessions.append(session), 0][1])
    assert go(text, copied) == 0
    (session,) = sessions
    assert ("run", str(copied)) in run_summary.summarize(session)
    session.bucket_sync = sync.BucketSync(copied, "gs://bucket/run")
    assert (
        "run",
        "gs://bucket/run, which has no lock: make sure that only one job trains there at a time",
    ) in run_summary.summarize(session)
    with pytest.raises(SystemExit):
        train.main(["--help"])
    assert "gs://BUCKET/FOLDER, which has no lock: make sure" in " ".join(
        capsys.readouterr().out.split()
    )


def test_what_is_read_again_is_said(text, tmp_path, monkeypatch, capsys):
    """And of a mixture what is read so often that it is learnt by heart."""
    small = tmp_path / "small.txt"
    small.write_text(LINES[:700])
    monkeypatch.setattr(loop, "train_loop", lambda session: 0)
    sources = f"data.sources=(Text(path='{text}'), Text(path='{small}'))"
    assert (
        go(
            text,
            tmp_path / "run",
            sources,
            "data.validation=Tail(fraction=0.2)",
            "train.total_tokens=10240",
            "train.steps=36",
        )
        == 0
    )
    said, times = " ".join(capsys.readouterr().out.split()), 9216 / 2 / 560
    assert (
        "read again Text(path='" in said
        and f"weight=1.0) {times:.1f} times batch" in said.replace("times; ", "times ")
    )
    assert (
        f"weight=1.0) is read {times:.1f} times, which is more than 4: it is small for its weight"
        in said
        and said.count("warning") == 1
    )
    assert (
        "learning rate peak 3.00e-03, "
        f"{3e-3 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 8192 / 9216))):.2e} at the last step"
        in said
    )
    assert (
        go(
            text,
            tmp_path / "alone",
            f"data.sources=Text(path='{small}')",
            "data.validation=Tail(fraction=0.2)",
        )
        == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "read again" in said and "warning" not in said
