"""How runs go on: prolonged, after losses, on other devices, with the fields that may be other."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from gptjax.config import overrides
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.configs import registry
from gptjax.distributed import processes
from gptjax.report import events, loss_plot
from gptjax.runtime import checksums, run_dir
from gptjax.training import loop, resume
from tests.short_run import bytes_of, curve, edited, go, losses

pytestmark = pytest.mark.usefixtures("brief")


def test_a_finished_run_is_prolonged_by_one_dial(text, finished, copied, capsys):
    """Length and schedule move together, and the record says where."""
    assert go(text, copied, flags=["--tokens=3072"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "another length from step 9 on: train.total_tokens: 2304 -> 3072; "
        "train.schedule.decay_tokens: 10240 -> 13653; its" in said
    )
    assert "its learning rate goes on at 2.90e-03, where it would have been 2.82e-03" in said
    assert "continuing from step 9 of 12" in said
    lines = [line for line in events.read(copied) if "loss" in line]
    assert losses(copied)[:9] == losses(finished) and [line["tokens"] for line in lines] == [
        256 * n for n in range(1, 13)
    ]
    asked = run_dir.scale_length(run_dir.load_config(finished), 3072)
    assert (
        run_dir.load_config(copied).train == asked.train
        and asked.train.schedule.warmup_tokens == 1024
    )
    part = (3072 - 1024) / (13653 - 1024)
    assert lines[-1]["lr"] == pytest.approx(
        3e-3 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * part))), rel=1e-5
    )
    assert [line["note"].split(":")[0] for line in events.read(copied) if "note" in line] == [
        "the run has another length from step 9 on"
    ]
    before = bytes_of(copied / "checkpoints")
    for changes in (
        (),
        ("train.total_tokens=10240",),
        ("train.total_tokens=3072", "train.schedule.decay_tokens=13653"),
    ):  # smoke's; its own
        assert (
            go(text, copied, *changes, flags=["--tokens=3072"]) == 0
            and bytes_of(copied / "checkpoints") == before
        )
        assert run_dir.load_config(copied).train == asked.train
    with pytest.raises(
        ValueError,
        match=(
            r"holds a run of another config \(train.total_tokens: 3072 -> 2304; .*--tokens=N "
            r"changes its length"
        ),
    ):
        go(text, copied)


@pytest.mark.parametrize(
    "schedule, decay",
    [
        ("Cosine(peak_lr=1e-3, warmup_tokens=10, decay_tokens=1000)", 2000),
        (("Linear(peak_lr=1e-3, warmup_tokens=10, decay_tokens=900)"), 1800),
        ("Constant(peak_lr=1e-3, warmup_tokens=10)", None),
    ],
)
def test_the_dial_moves_each_schedule(schedule, decay):
    config = overrides.override(
        registry.config("smoke"), f"train.schedule={schedule}", "train.total_tokens=1000"
    )
    longer = run_dir.scale_length(config, 2000)
    fields = {line.split(":")[0] for line in overrides.diff(config, longer)}
    assert longer.train.total_tokens == 2000 and (
        decay is None or longer.train.schedule.decay_tokens == decay
    )
    assert fields == {"train.total_tokens"} | ({"train.schedule.decay_tokens"} if decay else set())


def test_a_dial_below_the_warm_up_says_the_least():
    config = overrides.override(
        registry.config("smoke"),
        "train.schedule=Cosine(peak_lr=1e-3, warmup_tokens=1000, decay_tokens=3000)",
    )
    config = overrides.override(config, "train.total_tokens=9001")
    with pytest.raises(
        ValueError,
        match="--tokens=3,003 ends within the warm-up of 1,000 tokens: give 3,004 or more",
    ):
        run_dir.scale_length(config, 3003)
    assert run_dir.scale_length(config, 3004).train.schedule.decay_tokens == 1001


def test_a_lost_record_begins_anew_and_the_old_one_is_kept(text, finished, copied, capsys):
    shutil.rmtree(copied / "checkpoints" / "9")
    edited("metrics.jsonl", lambda b: b[:300])(copied)
    half = (copied / "metrics.jsonl").read_bytes()
    (copied / "config.json").write_text("{")
    assert go(text, copied, flags=["--new_record"]) == 0
    assert "the record of the steps before is lost" in capsys.readouterr().out
    assert (copied / "metrics.jsonl.lost-1").read_bytes() == half
    assert events.read(copied)[0] == {"step": 8, "note": "the record of the steps before is lost"}
    assert losses(copied) == losses(finished)[8:] and run_dir.load_config(
        copied
    ) == run_dir.load_config(finished)
    assert go(text, copied) == 0  # and from here on as any other


def test_a_finished_run_whose_record_was_lost_is_finished_at_every_later_start(
    text, finished, copied, capsys
):
    """What can be said of it is: its last evaluation. The flag is not asked for again."""
    (copied / "metrics.jsonl").unlink()
    assert go(text, copied, flags=["--new_record"]) == 0
    checkpoints = bytes_of(copied / "checkpoints")
    for flags in ([], ["--new_record"], []):
        assert curve(copied) == [
            {"step": 9, "note": "the record of the steps before is lost"},
            curve(finished)[-1],
        ]
        capsys.readouterr()
        assert go(text, copied, flags=flags) == 0
        assert "the run is finished: all of its 9 steps are done" in capsys.readouterr().out
    assert bytes_of(copied / "checkpoints") == checkpoints and not list(
        copied.glob("metrics.jsonl.lost-*")
    )
    edited("metrics.jsonl", lambda b: b.replace(b"lost", b"last", 1))(copied)
    with pytest.raises(
        ValueError,
        match=(
            "the line of step 1 is not where it should be; put a copy of it back, .*, or "
            "--new_record"
        ),
    ):
        go(text, copied)


def test_a_run_whose_record_was_lost_and_that_is_killed_at_once_goes_on_without_the_flag(
    text, finished, copied, monkeypatch
):
    shutil.rmtree(copied / "checkpoints" / "9")
    (copied / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("gptjax.training.loop.SECONDS_BETWEEN_DRAWINGS", -1)
        patch.setattr(loss_plot, "draw", lambda directory: (_ for _ in ()).throw(KeyboardInterrupt))
        go(text, copied, flags=["--new_record"])
    assert curve(copied) == [{"step": 8, "note": "the record of the steps before is lost"}]
    assert go(text, copied) == 0
    assert losses(copied) == losses(finished)[8:] and events.read(copied)[0]["step"] == 8
    shutil.rmtree(copied / "checkpoints" / "9")
    shutil.rmtree(copied / "checkpoints" / "8")  # the one before is of a record that is lost
    with pytest.raises(
        ValueError, match="not as it was when step 4 was saved: the line of step 1 is not where"
    ):
        go(text, copied)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_record_goes_on_after_the_lines_that_its_checkpoint_knows(
    text, finished, copied, monkeypatch, earlier
):
    """No line of a step that is taken again stays, and none before is lost; also for a
    checkpoint of an earlier version, without a seal."""
    if earlier:
        monkeypatch.setattr(
            events,
            "check",
            lambda directory, step, seal, real=events.check: real(directory, step, None),
        )
    shutil.rmtree(copied / "checkpoints" / "9")
    assert go(text, copied) == 0
    assert curve(copied) == curve(finished)


def test_a_record_without_a_checkpoint_begins_again_and_says_so(text, copied, finished, capsys):
    shutil.rmtree(copied / "checkpoints")
    edited("metrics.jsonl", lambda b: b"\n".join([*b.split(b"\n")[:2], b""]))(copied)
    assert go(text, copied) == 0
    assert "no checkpoint is in" in (
        said := capsys.readouterr().out
    ) and "record of 2 steps is dropped" in " ".join(said.split())
    assert losses(copied) == losses(finished)


def test_checkpoints_of_earlier_versions_go_on(text, tmp_path, passed, monkeypatch):
    """They hold neither the record's digest nor the ramp's quantum."""
    with monkeypatch.context() as patch:
        now, old = resume.metadata, ("config", "microbatch_rows", "tokenizer", "text")
        patch.setattr(
            resume,
            "metadata",
            lambda *args: {name: value for name, value in now(*args).items() if name in old},
        )
        passed(4)
        assert go(text, tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "torn")
    edited("metrics.jsonl", lambda b: b.split(b"\n", 1)[1])(tmp_path / "torn")
    with pytest.raises(
        ValueError,
        match="not as it was when step 4 was saved: the line of step 1 is not where it should be",
    ):
        go(text, tmp_path / "torn")
    assert go(text, tmp_path / "run") == 0
    session = passed(4)[-1]
    assert (
        session.resume_point.step == 4
        and session.resume_point.record_bytes
        == (tmp_path / "torn" / "metrics.jsonl").stat().st_size + 25
    )
    assert session.batch_schedule.first_row(4) == 32 and session.resume_point.notes == ()


def test_a_renamed_checkpoint_of_an_earlier_version_is_refused(text, copied):
    """Its record has no step: the state tells."""
    newest = max((copied / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    file, listing = newest / "_CHECKPOINT_METADATA", newest / "files.json"
    metadata, entries = json.loads(file.read_bytes()), json.loads(listing.read_bytes())
    sealed = metadata["custom_metadata"]
    del sealed["record"]["step"]
    sealed["seal"] = checksums.seal(sealed["record"])
    file.write_text(json.dumps(metadata))
    listing.write_text(json.dumps(entries | {file.name: [file.stat().st_size, None]}))
    assert go(text, copied) == 0
    newest.rename(newest.with_name("12"))
    before = bytes_of(copied)
    with pytest.raises(
        ValueError, match=rf"checkpoints/12 is of step {newest.name}: a folder was renamed"
    ):
        go(text, copied, flags=["--tokens=4096", "--new_record"])
    assert bytes_of(copied) == before


def test_a_batch_ramp_goes_on_with_the_same_rows_on_other_devices(text, tmp_path, machine, passed):
    """Begun where batches are split in 4, so that it grows by 4 rows: in 2 it grows the same, in
    8 it cannot."""
    ramp = (
        "train.batch_tokens=1024",
        "train.batch_ramp=Ramp(start_tokens=128, over_tokens=4000)",
        "train.total_tokens=8192",
    )
    machine(4)
    passed(5)
    assert go(text, tmp_path / "run", *ramp) == 0
    before = bytes_of(tmp_path / "run")
    machine(8)
    with pytest.raises(
        ValueError,
        match=(
            "the batch ramp of this run grows in steps of 4 rows, which 8 devices .* x fsdp is 1 "
            "or 2 or 4$"
        ),
    ):
        go(text, tmp_path / "run", *ramp)
    assert bytes_of(tmp_path / "run") == before
    machine(2)
    assert go(text, tmp_path / "run", *ramp) == 0
    now, whole = (
        passed(5)[-1].batch_schedule,
        BatchSchedule(run_dir.load_config(tmp_path / "run"), shards=4),
    )
    left = range(5, whole.n_steps + 1)
    assert now.n_steps == whole.n_steps and [now.first_row(n) for n in left] == [
        whole.first_row(n) for n in left
    ]
    assert len({now.rows(n) for n in left}) > 3


# --- fields that may be other ---------------------------------------------------------------------

OTHER = {  # another value of each, and where the run has it
    "compute.dtype": ("bfloat16", lambda s: s.step.model.execution_policy.dtype.__name__),
    "compute.remat": ("full", lambda s: s.config.compute.remat),
    "compute.attention_kernel": ("reference", lambda s: s.step.model.execution_policy.kernel),
    "compute.scan_layers": (True, lambda s: s.config.compute.scan_layers),
    "mesh.data": (2, lambda s: s.mesh.shape["data"]),
    "mesh.fsdp": (2, lambda s: s.mesh.shape["fsdp"]),
    "mesh.tensor": (2, lambda s: s.mesh.shape["tensor"]),
    "mesh.context": (1, lambda s: s.mesh.shape["context"]),
    "mesh.sharding": ("fsdp_tensor", lambda s: s.config.mesh.sharding),
    "loop.every_log": (7, lambda s: s.config.loop.every_log),
    "loop.every_eval": (3, lambda s: s.config.loop.every_eval),
    "loop.eval_rows": (5, lambda s: s.config.loop.eval_rows),
    "loop.every_save": (5, lambda s: s.config.loop.every_save),
    "loop.keep_last": (1, lambda s: s.checkpoints._keep_last),
    "loop.every_keep": (4, lambda s: s.checkpoints._every_keep),
    "loop.every_sample": (2, lambda s: s.config.loop.every_sample),
    "loop.sample_prompt": ("x", lambda s: s.config.loop.sample_prompt),
    "loop.sample_tokens": (2, lambda s: s.config.loop.sample_tokens),
    "loop.hang_seconds": (99.0, lambda s: s.config.loop.hang_seconds),
    "train.steps": (9, lambda s: s.batch_schedule.n_steps),
    "train.microbatch_rows": (4, lambda s: s.microbatch_rows),
}


def test_each_field_that_may_be_other_takes_effect(text, copied, monkeypatch, capsys):
    free = {
        path
        for path in overrides.flatten(registry.config("smoke"))
        if path.startswith(run_dir.MAY_CHANGE)
    }
    assert free == set(OTHER)
    shutil.rmtree(copied / "checkpoints" / "9")
    seen = []
    monkeypatch.setattr(loop, "train_loop", lambda session: [seen.append(session), 0][1])
    assert (
        go(
            text,
            copied,
            "model.dropout.residual=0.0",
            *[f"{path}={value}" for path, (value, _) in OTHER.items()],
        )
        == 0
    )
    (session,) = seen
    assert {path: have(session) for path, (_, have) in OTHER.items()} == {
        path: value for path, (value, _) in OTHER.items()
    }
    assert run_dir.load_config(copied) == session.config
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "microbatches have 4 rows from step 8 on, where they had 8: sums are rounded otherwise"
        in said
        and "dropout" not in said
    )


def test_what_the_loop_does_with_them(text, copied):
    """Saves, evaluations and what is kept, by the periods of the command that goes on."""
    shutil.rmtree(copied / "checkpoints" / "9")
    shutil.rmtree(copied / "checkpoints" / "8")
    assert (
        go(
            text,
            copied,
            "loop.every_eval=3",
            "loop.every_save=2",
            "loop.keep_last=1",
            "loop.every_keep=4",
        )
        == 0
    )
    assert sorted(int(path.name) for path in (copied / "checkpoints").iterdir()) == [4, 8, 9]
    assert [line["step"] for line in events.read(copied) if "validation_loss" in line] == [6, 9]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_draws_other_masks_in_other_microbatches_and_that_is_said(finished, dropout):
    config = overrides.override(
        run_dir.load_config(finished),
        f"model.dropout.residual={dropout}",
        "train.microbatch_rows=2",
    )
    reading = SimpleNamespace(
        tokenizer=SimpleNamespace(digest="a"), digest=lambda: "b", model_digests={}
    )
    about = resume.metadata(config, BatchSchedule(config), 8, reading, {})
    checkpoints = SimpleNamespace(
        restore=lambda state: (1, SimpleNamespace(step=np.int32(1), rows=np.int32(8)), about)
    )
    request = resume.Request(finished, config, new_record=True)
    (note,) = resume.restore_run(
        request, checkpoints, None, reading, 1, processes.ProcessGroup()
    ).notes
    assert note.startswith(
        "microbatches have 2 rows from step 1 on, where they had 8: sums are rounded otherwise"
    )
    assert ("dropout draws other masks" in note) == bool(dropout)
