"""The guards of the training loop, for one run and for several in one program, on a program whose
losses are scripted: nothing is compiled."""

import dataclasses
import os
import signal
import types

import numpy as np
import pytest

from gptjax.config.batch_schedule import BatchSchedule
from gptjax.distributed.processes import ProcessGroup
from gptjax.report import console, events, loss_plot, profile, sync
from gptjax.sharding import device_mesh
from gptjax.training import loop, resume
from gptjax.training.context import TrainContext
from tests import tiny

N_STEPS = 6


class ScriptedProgram:
    """A training.context.Program whose state is the step number. bad: (run, step) of the updates
    that are not finite. signals: step -> signal that arrives while it is computed."""

    def __init__(self, n_runs, happened, bad=(), signals=()):
        self._n_runs, self._happened = n_runs, happened
        self._bad, self._signals = set(bad), dict(signals)
        self._skipped = np.zeros(n_runs, np.int32)

    def step(self, state, batches, guard, progress):
        assert len(batches) == self._n_runs
        state += 1
        if state in self._signals:
            os.kill(os.getpid(), self._signals[state])
        bad = np.array([(run, state) in self._bad for run in range(self._n_runs)])
        self._skipped = np.where(bad, self._skipped + 1, 0)
        columns = {
            "loss": np.where(bad, np.nan, np.arange(self._n_runs, dtype=np.float32) + state),
            "noise_scale": np.zeros(self._n_runs, np.float32),
            "skipped_in_row": self._skipped,
        }
        one = self._n_runs == 1
        return state, {name: column[0] if one else column for name, column in columns.items()}

    def evaluate(self, state):
        return [{"validation_loss": 10.0 * run + state} for run in range(self._n_runs)]

    def run_state(self, state, index):
        return index, state


class Checkpoints:
    def __init__(self, name, happened):
        self.name, self.saved, self._happened, self.waited = name, {}, happened, False

    def save(self, step, state, metadata):
        self._happened.append(("save", step, self.name))
        self.saved[step] = state, metadata

    def wait(self):
        self.waited = True

    def steps(self):
        return sorted(self.saved)


@pytest.fixture(params=[1, 3], ids=["single", "vmapped"])
def make_loop(request, tmp_path, monkeypatch):
    """make_loop(start, record_bytes, notes, sets, **script) -> (TrainLoop, contexts, what
    happened in order)."""
    n_runs, happened = request.param, []
    monkeypatch.setattr(
        loss_plot, "draw", lambda directory: happened.append(("draw", directory.name))
    )

    class Processes(ProcessGroup):
        def heartbeat(self, activity):
            happened.append(("heartbeat", activity))

    def make(start=0, record_bytes=0, notes=(), n_bad_allowed=2, every_sample=None, **script):
        config = tiny.config()
        config = dataclasses.replace(
            config,
            train=dataclasses.replace(
                config.train, steps=N_STEPS, max_nonfinite_steps=n_bad_allowed
            ),
            loop=dataclasses.replace(
                config.loop, every_eval=2, every_save=3, every_sample=every_sample
            ),
        )
        schedule = BatchSchedule(config)
        mesh = device_mesh.make_mesh(config.mesh, device_mesh.jax.devices()[:1])
        dataset = types.SimpleNamespace(
            batches=lambda plan, rows, first, local: iter([{}] * (plan.n_steps - first)),
            tokenizer=types.SimpleNamespace(digest="t"),
            digest=lambda: "d",
            model_digests={},
            position=lambda step: None,
        )
        objective = types.SimpleNamespace(
            generate_samples=lambda context, state, step, is_last: (
                happened.append(("sample", step, state, is_last)) or []
            )
        )
        contexts = []
        for run in range(n_runs):
            name = f"run{run}"
            (tmp_path / name).mkdir(exist_ok=True)
            contexts.append(
                TrainContext(
                    config,
                    tmp_path / name,
                    mesh,
                    resume.ResumePoint(start, None, schedule, 8, record_bytes, tuple(notes)),
                    dataset,
                    None,
                    Checkpoints(name, happened),
                    sync.BucketSync(tmp_path / name, None),
                    console.Console(quiet=False),
                    Processes(),
                    profile.Profiler(tmp_path, 0, print),
                    objective,
                    name if n_runs > 1 else "",
                )
            )
        program = ScriptedProgram(n_runs, happened, **script)
        return loop.TrainLoop(contexts, program, start), contexts, happened

    return make


def lines(context, name="loss"):
    return [line["step"] for line in events.read(context.directory) if name in line]


def test_each_state_is_evaluated_sampled_and_saved_when_it_is_due(make_loop):
    train_loop, contexts, happened = make_loop(every_sample=4)
    assert train_loop.run() == "finished"
    for context in contexts:
        assert lines(context) == [1, 2, 3, 4, 5, 6]
        assert lines(context, "validation_loss") == [2, 4, 6]
        assert context.checkpoints.steps() == [3, 6] and context.checkpoints.waited
        record = events.read(context.directory)
        assert [(r["step"], "loss" in r) for r in record][-2:] == [(6, True), (6, False)]
        size = len((context.directory / "metrics.jsonl").read_bytes())
        assert context.checkpoints.saved[6][1]["record"]["bytes"] == size
        assert "noise_scale" not in record[0]  # one microbatch a step
        assert [r["tokens"] for r in record if "loss" in r] == [96 * n for n in range(1, 7)]
    assert [h[1] for h in happened if h[0] == "draw"] == [c.directory.name for c in contexts]
    first = contexts[0]
    samples = [h for h in happened if h[0] == "sample"]
    assert samples == [("sample", 4, (0, 4), False), ("sample", 6, (0, 6), True)]
    assert happened.index(samples[1]) > happened.index(("save", 6, first.directory.name))
    beats = [h[1] for h in happened if h[0] == "heartbeat"]
    assert beats[:3] == ["step 1", "step 2", "the evaluation of step 2"]
    assert beats[-2:] == ["the evaluation of step 6", "the checkpoint of step 6"]
    assert [c.checkpoints.saved[3][0] for c in contexts] == [(n, 3) for n in range(len(contexts))]
    losses = [line["loss"] for c in contexts for line in events.read(c.directory) if "loss" in line]
    assert losses == [run + step for run in range(len(contexts)) for step in range(1, 7)]


def test_a_run_is_abandoned_after_too_many_non_finite_updates_in_a_row(make_loop, capsys):
    bad = [(0, 1), (0, 3), (0, 4)]  # two in a row at step 4; another one does not count
    train_loop, contexts, happened = make_loop(bad=bad)
    several = len(contexts) > 1
    assert train_loop.run() == ("finished" if several else "gave up")
    assert lines(contexts[0]) == [1, 2, 3, 4] and contexts[0].checkpoints.steps() == [3]
    assert lines(contexts[0], "validation_loss") == [2] and contexts[0].checkpoints.waited
    said = " ".join(capsys.readouterr().out.split())
    name = "run0: " if several else ""
    assert f"warning: {name}2 updates in a row were not finite, up to step 4: stopping" in said
    assert f"warning: {name}the last good checkpoint is of step 3" in said
    for context in contexts[1:]:
        assert lines(context) == [1, 2, 3, 4, 5, 6] and context.checkpoints.steps() == [3, 6]
    samples = [h[1:3] for h in happened if h[0] == "sample"]
    assert samples == ([(6, (1, 6))] if several else [])  # of a run that is still there


def test_no_step_is_taken_when_every_run_is_abandoned(make_loop, capsys):
    bad = [(run, step) for run in range(3) for step in range(1, 7)]
    train_loop, contexts, _ = make_loop(bad=bad)
    assert train_loop.run() == "gave up" and train_loop.step == 2  # at the evaluation of step 2
    assert [lines(context) for context in contexts] == [[1, 2]] * len(contexts)
    assert [context.checkpoints.steps() for context in contexts] == [[]] * len(contexts)
    assert capsys.readouterr().out.count("there is no checkpoint yet") == len(contexts)


def test_a_run_of_long_steps_is_drawn_at_each_checkpoint(make_loop, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_DRAWINGS", -1)
    train_loop, contexts, happened = make_loop()
    assert train_loop.run() == "finished"
    assert [h[1] for h in happened if h[0] == "draw"] == [c.directory.name for c in contexts] * 2


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGHUP"])
def name(request):
    """A signal, handled as in a terminal: nohup ignores SIGHUP, and a background job SIGINT."""
    number = getattr(signal, request.param)
    is_int = request.param == "SIGINT"
    before = signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)
    yield request.param
    signal.signal(number, before)


def test_a_signal_saves_every_run_after_the_same_step(make_loop, name, capsys):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    train_loop, contexts, _ = make_loop(signals={4: number})
    assert train_loop.run() == "stopped" and train_loop.step == 4
    assert [context.checkpoints.steps() for context in contexts] == [[3, 4]] * len(contexts)
    assert all(lines(c) == [1, 2, 3, 4] and c.checkpoints.waited for c in contexts)
    assert signal.getsignal(number) is before
    assert f"{name}: stopping after this step, with a checkpoint" in capsys.readouterr().out


def test_a_resumed_run_drops_what_its_record_has_beyond_the_checkpoint(make_loop):
    train_loop, contexts, _ = make_loop()
    assert train_loop.run() == "finished"
    size = contexts[0].checkpoints.saved[3][1]["record"]["bytes"]
    train_loop, contexts, happened = make_loop(start=3, record_bytes=size, notes=["longer"])
    happened.clear()
    assert train_loop.run() == "finished"
    for context in contexts:
        assert lines(context) == [1, 2, 3, 4, 5, 6] and context.checkpoints.steps() == [6]
        assert lines(context, "note") == [3]
    assert ("heartbeat", "the checkpoint of step 3") not in happened  # it is there


def test_a_lost_record_is_sealed_anew_at_the_step_of_the_checkpoint(make_loop):
    train_loop, contexts, _ = make_loop(start=4, record_bytes=None)
    assert train_loop.run() == "finished"
    for context in contexts:
        assert lines(context, "validation_loss") == [4, 6] and lines(context) == [5, 6]


def test_a_finished_run_is_not_evaluated_or_saved_again(make_loop):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train_loop, contexts, happened = make_loop(start=N_STEPS)
    assert train_loop.run() == "finished"
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert not any(context.checkpoints.saved for context in contexts)
    assert [h[0] for h in happened] == ["sample"]


def test_of_several_runs_the_means_are_shown():
    assert loop.mean_values([{"loss": float("nan")}]) == pytest.approx(
        {"loss": float("nan")}, nan_ok=True
    )
    runs = [{"loss": 1.0, "tokens": 4}, {"loss": 2.0, "tokens": 4}, {"loss": np.inf, "tokens": 4}]
    assert loop.mean_values(runs) == {"loss": 1.5, "tokens": 4}
    assert np.isnan(loop.mean_values([{"loss": np.nan}, {"loss": -np.inf}])["loss"])
