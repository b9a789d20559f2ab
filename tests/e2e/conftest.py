"""The run of tests/short_run.py, trained once, and machines on which it goes on."""

import shutil
from types import SimpleNamespace

import jax
import pytest

from gptjax.report import events, loss_plot, reward_plot
from gptjax.sharding import device_mesh
from gptjax.training import loop, pretraining, resume
from tests import device_memory, short_run, tiny


@pytest.fixture(scope="module", autouse=True)
def guarded_memory():
    """The programs run as on an accelerator, where the host sees no array of a device."""
    with device_memory.simulate():
        yield


@pytest.fixture
def implicit_transfers():
    """Of a test that itself computes."""
    with jax.transfer_guard("allow"):
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(short_run.LINES)
    return path


def _without_samples_and_pictures(patch):
    """They take longer than the rest."""
    patch.setattr(pretraining.PretrainingObjective, "generate_samples", lambda *args: [])
    patch.setattr(
        loss_plot,
        "_make_figure",
        lambda *args: SimpleNamespace(savefig=lambda path, dpi: path.write_bytes(b"")),
    )


@pytest.fixture(scope="module")
def lean():
    """One device, whose programs compile sooner than those for eight, and no pictures: for a whole
    module, `pytestmark = pytest.mark.usefixtures("lean")`."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.limit_devices(patch, 1)
        patch.setattr(loss_plot, "draw", lambda run: run)
        patch.setattr(reward_plot, "draw", lambda run: run)
        yield patch


@pytest.fixture
def brief(monkeypatch):
    _without_samples_and_pictures(monkeypatch)


@pytest.fixture(scope="session")
def finished(text, tmp_path_factory):
    """A run of 9 steps, with checkpoints of 4, 8 and 9."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        _without_samples_and_pictures(patch)
        assert short_run.go(text, directory) == 0
    return directory


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def machine(monkeypatch):
    """machine(n): from here on this machine has n devices."""
    real = device_mesh.make_mesh
    return lambda n: monkeypatch.setattr(
        device_mesh, "make_mesh", lambda sizes, there=None: real(sizes, there or jax.devices()[:n])
    )


@pytest.fixture
def passed(monkeypatch):
    """passed(n): from here on a training is a checkpoint and a record as though n steps were
    done, which need no compiling."""
    sessions = []

    def patch(n):
        def train_loop(session):
            now, plan = session.resume_point.state, session.batch_schedule
            sessions.append(session)
            with events.Events(session.directory, 0) as log, jax.transfer_guard("allow"):
                for step in range(1, n + 1):
                    log.write(step, {"loss": 1.0})
                now = now.replace(step=now.step * 0 + n, rows=now.rows * 0 + plan.first_row(n))
                about = resume.metadata(
                    session.config, plan, session.max_microbatch_rows, session.dataset, log.seal(n)
                )
                session.checkpoints.save(n, now, about)
            return 0

        monkeypatch.setattr(loop, "train_loop", train_loop)
        return sessions

    return patch
