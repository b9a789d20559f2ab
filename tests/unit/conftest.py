"""A run of two steps, for tests of what reads runs."""

import pytest

import gptjax
from tests import short_run, tiny


@pytest.fixture
def one_device(monkeypatch):
    """From here on this machine has one device: programs for eight take longer to compile."""
    tiny.limit_devices(monkeypatch, 1)


@pytest.fixture(scope="session")
def text_run(tmp_path_factory):
    """(a text, runs/smoke below the same folder): `smoke` on that text, with checkpoints of steps 1
    and 2."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(short_run.LINES)
    run = folder / "runs" / "smoke"
    changes = ["model.n_layers=2", "train.steps=2", "loop.every_save=1"]
    with pytest.MonkeyPatch.context() as patch:
        tiny.limit_devices(patch, 1)
        assert short_run.go(folder / "text.txt", run, *changes) == 0
    return folder / "text.txt", run


@pytest.fixture(scope="session")
def text_model(text_run):
    """The model of that run, on one device, opened once."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.limit_devices(patch, 1)
        return gptjax.load(text_run[1])
