"""The training step as accelerators run it, one program with a loop over its microbatches and the
next step dispatched before its end is known, gives what the host's loop gives."""

import functools
import itertools
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import gptjax
from gptjax.distributed import preemption
from gptjax.training.step import TrainStep
from tests import short_run

RAMP = ("train.batch_ramp=Ramp(start_tokens=64, over_tokens=1000)", "train.microbatch_rows=2")
OFTEN = ("loop.every_eval=2", "loop.every_sample=3", "loop.every_save=1")
pytestmark = pytest.mark.usefixtures("lean")


def run(text, directory, *changes):
    """Trains a run whose batches grow from 2 rows to 8, in microbatches of 2."""
    assert short_run.go(text, directory, *RAMP, *OFTEN, *changes) == 0
    return directory


@pytest.fixture(scope="module")
def by_host(text, tmp_path_factory):
    return run(text, tmp_path_factory.mktemp("host") / "run", "compute.microbatch_loop=host")


def same(*directories):
    """Whether records and checkpoints are those of the same run, up to rounding."""
    lines, expected = map(short_run.curve, directories)
    assert [line.keys() for line in lines] == [line.keys() for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for name, value in line.items():
            if isinstance(value, float):
                np.testing.assert_allclose(value, other[name], rtol=1e-4, err_msg=name)
    steps = [sorted(path.name for path in one.glob("checkpoints/[0-9]*")) for one in directories]
    assert steps[0] == steps[1] and len(steps[0]) == 3
    for step in map(int, steps[0]):
        params, others = (jax.device_get(gptjax.load(one, step=step).params) for one in directories)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), params, others)
    return True


def test_one_program_serves_all_batches_of_a_ramp(text, by_host, tmp_path, monkeypatch):
    counts = []
    call = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep, "__call__", lambda *arguments: (counts.append(1), call(*arguments))[1]
    )
    rows = np.diff([0] + [line["rows"] for line in short_run.curve(by_host) if "loss" in line])
    assert {2, 4, 6, 8} <= {*rows}
    assert same(run(text, tmp_path / "run", "compute.microbatch_loop=device"), by_host)
    assert len(counts) == 1  # as often as it was traced


PROGRAM = """\
import sys
import jax
from tests import device_memory, short_run
text, directory, *changes = sys.argv[1:]
with device_memory.simulate():
    for end in (["train.steps=8"], []):
        assert short_run.go(text, directory, *changes, *end) == 0
assert jax.config.read("jax_cpu_enable_async_dispatch") and len(jax.devices()) == 1
"""


def test_steps_that_nothing_waits_for_and_a_run_that_goes_on(text, by_host, tmp_path):
    """One device, whose programs are dispatched asynchronously while every step is saved."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    changes = (*RAMP, *OFTEN, "compute.microbatch_loop=device")
    command = [sys.executable, "-c", PROGRAM, str(text), str(tmp_path / "run"), *changes]
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same(tmp_path / "run", by_host)


def test_a_signal_amid_a_step_loses_no_step_before_it(text, tmp_path, monkeypatch):
    """The first microbatch of step 7 of 9 is done; 6 has no checkpoint of its own."""
    asks = preemption.PreemptionGuard.may_stop_mid_step.fget
    steps, numbers = ("train.microbatch_rows=4", "loop.every_save=4"), itertools.count(1)

    def stop_amid_step_7(guard):
        if next(numbers) == 2 * 6 + 2:
            signal.raise_signal(signal.SIGINT)
        return asks(guard)

    assert short_run.go(text, tmp_path / "whole", *steps) == 0
    with monkeypatch.context() as patch:
        patch.setattr(preemption.PreemptionGuard, "may_stop_mid_step", property(stop_amid_step_7))
        assert short_run.go(text, tmp_path / "run", *steps) == 0
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").glob("[0-9]*")) == ["4", "6"]
    assert len(short_run.losses(tmp_path / "run")) == 6
    assert short_run.go(text, tmp_path / "run", *steps) == 0
    assert short_run.curve(tmp_path / "run") == short_run.curve(tmp_path / "whole")
