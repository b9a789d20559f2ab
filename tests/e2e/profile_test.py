"""What a profile shows: nothing is compiled again after the first steps, and each step is
dispatched before the step before it is waited for and logged."""

import gzip
import json

import jax
import pytest

from gptjax import train
from gptjax.report import events, profile

STEPS = 9


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """(run directory, how many programs had been compiled when each step was reported)."""
    directory = tmp_path_factory.mktemp("profiled")
    text = directory / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}. " for n in range(2000)))
    compiled, seen = [], {}

    def count(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(name)

    write = events.Events.write

    def noting(self, step, values):
        if "loss" in values:
            seen[step] = len(compiled)
        write(self, step, values)

    changes = (
        "train.batch_tokens=2048",
        f"train.steps={STEPS}",
        "model.d_model=128",
        "model.n_ctx=128",
        "mesh.fsdp=1",
        "mesh.data=8",
    )
    usual = (
        f"data.sources=Text(path='{text}')",
        "data.validation=Tail(fraction=0.1)",
        "loop.every_eval=100",
        "train.total_tokens=1e6",
    )
    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events.Events, "write", noting)
        sets = [p for change in (*usual, *changes) for p in ("--set", change)]
        assert (
            train.main(["--config=smoke", f"--run_dir={directory / 'run'}", "--profile=4", *sets])
            == 0
        )
    jax.monitoring.unregister_event_duration_listener(count)
    return directory / "run", seen


def test_nothing_is_compiled_after_the_first_step(profiled):
    _, seen = profiled
    assert sorted(seen) == list(range(1, STEPS + 1)) and seen[1] > 0
    # Step n is reported after step n + 1 was dispatched, so the second step's programs are in the
    # first report.
    assert {seen[step] for step in range(2, STEPS)} == {seen[2]}


def test_a_step_is_dispatched_before_the_one_before_is_logged(profiled):
    """So data and logging hold the device up only if they take longer than a step; how long they
    take is for bench/loop.py, on a machine with nothing else to do."""
    (path,) = (profiled[0] / "profile").rglob("perfetto_trace.json.gz")
    spans = sorted(
        (event["ts"], event["name"])
        for event in json.loads(gzip.open(path).read())["traceEvents"]
        if event.get("name", "").startswith("gptjax/")
    )
    expected = [f"gptjax/{name}" for name in ("data", "step", "wait", "log")] * 4
    assert [name for _, name in spans] == expected


def test_time_shares_are_those_of_all_activities(profiled):
    shares = profile.time_shares(profiled[0] / "profile")
    assert set(shares) == set(profile.SPANS) and min(shares.values()) > 0
    assert sum(shares.values()) == pytest.approx(1)


def test_a_negative_number_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--config=smoke", "--profile=-1"])
    assert "argument --profile: '-1': give a whole number from 0" in capsys.readouterr().err
