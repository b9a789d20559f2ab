"""A run that reads streams goes on after a kill as if there had been none, and is refused where
what it reads has changed."""

import json
import shutil

import pytest

from gptjax.training import checkpoint
from tests.short_run import curve, go, losses

pytestmark = pytest.mark.usefixtures("lean", "brief")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Fewer tokens than the run reads, so that its last steps are of the second epoch."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    texts = [" ".join(f"{n * k}" for k in range(n % 20)) for n in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def stream(text):
    return (
        f"data.sources=Stream(path='{text}', shuffle_rows=3)",
        "data.validation=ByDocument(fraction=0.2)",
    )


@pytest.fixture(scope="module")
def finished(text, lean, tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert go(text, directory, *stream(text)) == 0
    return directory


@pytest.mark.parametrize("step", [4, 8])
def test_a_killed_run_loses_nothing(text, finished, tmp_path, step):
    """What a kill leaves: the checkpoint, and a record that is further."""
    copied = shutil.copytree(finished, tmp_path / "run")
    for folder in (copied / "checkpoints").iterdir():
        if folder.name.isdecimal() and int(folder.name) > step:
            shutil.rmtree(folder)
    (saved,) = checkpoint.CheckpointReader(copied / "checkpoints", print).metadata()["position"]
    assert 8 * step - 3 < saved["row"] <= 8 * step and saved["epoch"] == (step == 8)
    assert go(text, copied, *stream(text)) == 0
    assert len(losses(copied)) == 9 and curve(copied) == curve(finished)
    (first,), (second,) = (
        checkpoint.CheckpointReader(run / "checkpoints", print).metadata()["position"]
        for run in (finished, copied)
    )
    assert first == second


def test_a_run_whose_text_has_changed_is_refused(text, finished, tmp_path):
    copied = shutil.copytree(finished, tmp_path / "run")
    before = text.read_bytes(), text.stat()
    text.write_bytes(before[0] + b'{"text": "more"}\n')
    try:
        with pytest.raises(ValueError, match=r"text.jsonl has [\d,]+ bytes, where it had [\d,]+ "):
            go(text, copied, *stream(text))
    finally:
        text.write_bytes(before[0])
