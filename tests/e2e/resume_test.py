"""How runs go on, and what is refused: every refusal is one line and leaves every byte of the directory as it was."""

import json
import os
import random
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax import pretraining, resume, train
from gptjax.config import lock, overrides, registry, run
from gptjax.config.batches import Batches
from gptjax.mesh import devices, hosts
from gptjax.report import events, plots

LINES = "".join(f"{n} and {n + 1} make {2 * n + 1}. " for n in range(2000))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(LINES)
    return path


def go(text, directory, *changes, flags=()):
    """Status of `smoke`, one layer, 8 rows a batch, saved every 4 steps, with changes."""
    usual = [f"data.sources=Text(path='{text}')", "data.held_out=Tail(fraction=0.1)", "model.n_layers=1", "train.total_tokens=2304"]
    usual += ["loop.every_save=4", "loop.every_eval=100", "loop.sample_tokens=1"]
    return train.main(["--config=smoke", f"--run={directory}", *flags, *[p for c in (*usual, *changes) for p in ("--set", c)]])


@pytest.fixture(autouse=True, scope="module")
def brief():
    """No samples and no pictures, which take longer than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining.Pretraining, "said", lambda *args: [])
        patch.setattr(plots, "_figure", lambda *args: SimpleNamespace(savefig=lambda path, dpi: path.write_bytes(b"")))
        yield


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run of 9 steps, with checkpoints of 4, 8 and 9."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert go(text, directory) == 0
    return directory


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def machine(monkeypatch):
    """machine(n): from here on this machine has n devices."""
    real = devices.mesh
    return lambda n: monkeypatch.setattr(devices, "mesh", lambda sizes, there=None: real(sizes, there or jax.devices()[:n]))


@pytest.fixture
def passed(monkeypatch):
    """passed(n): from here on a training is a checkpoint and a record as though n steps were done, which need no compiling."""
    sessions = []

    def patch(n):
        def loop(session):
            now, plan = session.point.state, session.batches
            sessions.append(session)
            with events.Events(session.directory, 0) as log, jax.transfer_guard("allow"):
                for step in range(1, n + 1):
                    log.write(step, {"loss": 1.0})
                now = now.replace(step=now.step * 0 + n, rows=now.rows * 0 + plan.first_row(n))
                about = resume.about(session.config, plan, session.limit_rows, session.reading, log.seal(n))
                session.checkpoints.save(n, now, about)
            return 0

        monkeypatch.setattr(train, "loop", loop)
        return sessions

    return patch


def bytes_of(directory):
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def losses(directory):
    return [line["loss"] for line in events.read(directory) if "loss" in line]


# --- refusals --------------------------------------------------------------------------------------------------------------


def edited(name, change):
    return lambda directory: (directory / name).write_bytes(change((directory / name).read_bytes()))


def damage_all(directory):
    for step in (4, 8, 9):
        (directory / "checkpoints" / str(step) / "files.json").write_text("{")


def of_another_program(directory):
    for name in ("checkpoints", "tensorboard", "data"):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / "metrics.jsonl").unlink()
    (directory / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')


def of_another_step(directory):
    shutil.rmtree(directory / "checkpoints" / "9")
    shutil.copytree(directory / "checkpoints" / "8", directory / "checkpoints" / "9")


def another_seed(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"seed": 5}))


LOST = "put it back, give another --run, or --new_record goes on from the checkpoints alone"
CHANGED = "metrics.jsonl is not what it was when step 9 was saved: "
REFUSED = {  # what happened to the directory; what is asked for; flags; what is said
    "seed": (None, ["seed=1"], [], "holds a run of another config (seed: 0 -> 1); give another --run, or the config that began it"),
    "length": (None, ["train.total_tokens=4096"], [], "train.total_tokens: 2304 -> 4096); give another --run, or --tokens=N changes its"),
    "shorter than done": (None, [], ["--tokens=1024"], "--tokens=1,024, but 2,304 tokens are done; give more, or another --run"),
    "too many steps": (None, ["train.steps=10"], [], "train.steps=10 is more than the 9 steps that train.total_tokens=2,304 gives; raise"),
    "microbatch": (None, ["train.microbatch_rows=4"], [], "train.microbatch_rows=4: on this mesh it can be 8"),
    "mesh": (None, ["mesh.fsdp=3"], [], "needs 3 devices, but there are 8"),
    "no record": (lambda d: (d / "metrics.jsonl").unlink(), [], [], f"(the newest of step 9) but metrics.jsonl is missing: {LOST}"),
    "empty record": (edited("metrics.jsonl", lambda b: b""), [], [], f"but metrics.jsonl is empty or no file: {LOST}"),
    "no config": (lambda d: (d / "config.json").unlink(), [], [], f"but config.json is missing: {LOST}"),
    "no config, another seed": (lambda d: (d / "config.json").unlink(), ["seed=5"], ["--new_record"], "step 9 in .* (seed: 0 -> 5)"),
    "empty config": (edited("config.json", lambda b: b""), [], [], f"but config.json is empty or no file: {LOST}"),
    "another's config": (another_seed, ["seed=5"], [], "the checkpoint of step 9 in .* is of another config (seed: 0 -> 5)"),
    "another program's config": (of_another_program, [], [], "config.json is no run's: give another --run"),
    "another step's checkpoint": (of_another_step, [], [], "checkpoints/9 is of step 8: a folder was renamed or copied; remove it"),
    "half a config": (edited("config.json", lambda b: b[: len(b) // 2]), [], [], "config.json is not JSON: "),
    "config of bytes": (edited("config.json", lambda b: b"\xff" + b), [], [], "config.json is not UTF-8 text: byte 0xff at offset 0"),
    "half a record": (edited("metrics.jsonl", lambda b: b[: len(b) // 2]), [], [], f"{CHANGED}the line of step 5 is not where"),
    "a digit": (edited("metrics.jsonl", lambda b: b.replace(b'"loss": 5.', b'"loss": 4.', 1)), [], [], f"{CHANGED}what some lines say was"),
    "a line": (edited("metrics.jsonl", lambda b: b.split(b"\n", 1)[1]), [], [], f"{CHANGED}the line of step 1 is not where it should be"),
    "a byte": (edited("metrics.jsonl", lambda b: b[:9] + b"\xff" + b[9:]), [], [], f"{CHANGED}line 1, is not a record of a step"),
    "all damaged": (damage_all, [], [], "every checkpoint in .* is damaged (9: its metadata is unreadable"),
    "no checkpoints": (lambda d: shutil.rmtree(d / "checkpoints"), [], [], "has a record of 9 steps and no checkpoint: put checkpoints/"),
    "a folder": (lambda d: [(d / "metrics.jsonl").unlink(), (d / "metrics.jsonl").mkdir()], [], [], "metrics.jsonl is empty or no file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_line_and_changes_no_byte(text, copied, name):
    happened, changes, flags, message = REFUSED[name]
    if happened:
        happened(copied)
    before = bytes_of(copied)
    with pytest.raises(ValueError) as refused:
        go(text, copied, *changes, flags=flags)
    said = str(refused.value)
    assert "\n" not in said and len(said) < 500
    assert all(part in said for part in message.split(".*")), said
    assert bytes_of(copied) == before


@pytest.mark.parametrize("tokenizer, n_vocab", [("Bytes()", 257), ("SentencePiece(n_pieces=300)", 300)])
def test_other_text_is_refused_and_changes_no_byte(tmp_path, passed, tokenizer, n_vocab):
    """Not even what was prepared of it stays."""
    text, draw = tmp_path / "text.txt", random.Random(0)
    text.write_text(words := " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(3000)))
    spoken = (f"data.tokenizer={tokenizer}", f"model.n_vocab={n_vocab}")
    passed(1)
    assert go(text, tmp_path / "run", *spoken) == 0
    before = bytes_of(tmp_path / "run")
    text.write_text(f"{words} and so on, he said, without end")
    with pytest.raises(ValueError, match="the data of .* have changed since it began: give back what it read, or another --run"):
        go(text, tmp_path / "run", *spoken)
    assert bytes_of(tmp_path / "run") == before


def test_a_second_program_is_refused_by_the_name_of_the_first(text, copied, capsys):
    with lock.locked(copied, "run directory", print):
        before = bytes_of(copied)
        with pytest.raises(ValueError, match=f"run is in use: process {os.getpid()} on .* works there; wait until it ends, stop it, or"):
            go(text, copied)
        assert bytes_of(copied) == before
    assert not (copied / "gptjax.lock").exists()
    assert go(text, copied) == 0 and not (copied / "gptjax.lock").exists()


def test_fewer_steps_than_are_done_are_nothing_to_do(text, copied, capsys):
    before = bytes_of(copied)
    assert go(text, copied, "train.steps=5") == 0
    assert "already at step 9, and asked for 5: nothing to do, and nothing is changed" in capsys.readouterr().out
    assert bytes_of(copied) == before


# --- going on --------------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_prolonged_by_one_dial(text, finished, copied, capsys):
    """Length and schedule move together, and the record says where."""
    assert go(text, copied, flags=["--tokens=3072"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "another length from step 9 on: train.total_tokens: 2304 -> 3072; train.schedule.decay_tokens: 10240 -> 13653; its" in said
    assert "its learning rate goes on at 2.90e-03, where it would have been 2.82e-03" in said
    assert "continuing from step 9 of 12" in said
    lines = [line for line in events.read(copied) if "loss" in line]
    assert losses(copied)[:9] == losses(finished) and [line["tokens"] for line in lines] == [256 * n for n in range(1, 13)]
    asked = run.prolonged(run.config(finished), 3072)
    assert run.config(copied).train == asked.train and asked.train.schedule.warmup_tokens == 1024
    part = (3072 - 1024) / (13653 - 1024)
    assert lines[-1]["lr"] == pytest.approx(3e-3 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * part))), rel=1e-5)
    assert [line["note"].split(":")[0] for line in events.read(copied) if "note" in line] == ["the run has another length from step 9 on"]
    before = bytes_of(copied / "checkpoints")
    assert go(text, copied, flags=["--tokens=3072"]) == 0 and bytes_of(copied / "checkpoints") == before
    with pytest.raises(
        ValueError, match=r"holds a run of another config \(train.total_tokens: 3072 -> 2304; .*--tokens=N changes its length"
    ):
        go(text, copied)


@pytest.mark.parametrize("schedule, decay", [
    ("Cosine(peak=1e-3, warmup_tokens=10, decay_tokens=1000)", 2000), ("Linear(peak=1e-3, warmup_tokens=10, decay_tokens=900)", 1800),
    ("Constant(peak=1e-3, warmup_tokens=10)", None),
])  # fmt: skip
def test_the_dial_moves_each_schedule(schedule, decay):
    config = overrides.override(registry.config("smoke"), f"train.schedule={schedule}", "train.total_tokens=1000")
    longer = run.prolonged(config, 2000)
    fields = {line.split(":")[0] for line in overrides.difference(config, longer)}
    assert longer.train.total_tokens == 2000 and (decay is None or longer.train.schedule.decay_tokens == decay)
    assert fields == {"train.total_tokens"} | ({"train.schedule.decay_tokens"} if decay else set())


def test_a_dial_below_the_warm_up_says_the_least():
    config = overrides.override(registry.config("smoke"), "train.schedule=Cosine(peak=1e-3, warmup_tokens=1000, decay_tokens=3000)")
    config = overrides.override(config, "train.total_tokens=9001")
    with pytest.raises(ValueError, match="--tokens=3,003 ends within the warm-up of 1,000 tokens: give 3,004 or more"):
        run.prolonged(config, 3003)
    assert run.prolonged(config, 3004).train.schedule.decay_tokens == 1001


def test_a_lost_record_begins_anew_and_the_old_one_is_kept(text, finished, copied, capsys):
    shutil.rmtree(copied / "checkpoints" / "9")
    edited("metrics.jsonl", lambda b: b[:300])(copied)
    half = (copied / "metrics.jsonl").read_bytes()
    (copied / "config.json").write_text("{")
    assert go(text, copied, flags=["--new_record"]) == 0
    assert "the record of the steps before is lost" in capsys.readouterr().out
    assert (copied / "metrics.jsonl.lost-1").read_bytes() == half
    assert events.read(copied)[0] == {"step": 8, "note": "the record of the steps before is lost"}
    assert losses(copied) == losses(finished)[8:] and run.config(copied) == run.config(finished)
    assert go(text, copied) == 0  # and from here on as any other


def test_a_record_without_a_checkpoint_begins_again_and_says_so(text, copied, finished, capsys):
    shutil.rmtree(copied / "checkpoints")
    edited("metrics.jsonl", lambda b: b"\n".join([*b.split(b"\n")[:2], b""]))(copied)
    assert go(text, copied) == 0
    assert "no checkpoint is in" in (said := capsys.readouterr().out) and "record of 2 steps is dropped" in " ".join(said.split())
    assert losses(copied) == losses(finished)


def test_checkpoints_of_earlier_versions_go_on(text, tmp_path, passed, monkeypatch):
    """They hold neither the record's digest nor the ramp's quantum."""
    with monkeypatch.context() as patch:
        now, old = resume.about, ("config", "microbatch_rows", "tokenizer", "text")
        patch.setattr(resume, "about", lambda *args: {name: value for name, value in now(*args).items() if name in old})
        passed(4)
        assert go(text, tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "torn")
    edited("metrics.jsonl", lambda b: b.split(b"\n", 1)[1])(tmp_path / "torn")
    with pytest.raises(ValueError, match="not what it was when step 4 was saved: the line of step 1 is not where it should be"):
        go(text, tmp_path / "torn")
    assert go(text, tmp_path / "run") == 0
    session = passed(4)[-1]
    assert session.point.step == 4 and session.point.kept == (tmp_path / "torn" / "metrics.jsonl").stat().st_size + 25
    assert session.batches.first_row(4) == 32 and session.point.notes == ()


def test_a_batch_ramp_goes_on_with_the_same_rows_on_other_devices(text, tmp_path, machine, passed):
    """Begun where batches are split in 4, so that it grows by 4 rows: in 2 it grows the same, in 8 it cannot."""
    ramp = ("train.batch_tokens=1024", "train.ramp=Ramp(start_tokens=128, over_tokens=4000)", "train.total_tokens=8192")
    machine(4)
    passed(5)
    assert go(text, tmp_path / "run", *ramp) == 0
    before = bytes_of(tmp_path / "run")
    machine(8)
    with pytest.raises(ValueError, match="the batch ramp of this run grows in steps of 4 rows, which 8 devices .* x fsdp is 1 or 2 or 4$"):
        go(text, tmp_path / "run", *ramp)
    assert bytes_of(tmp_path / "run") == before
    machine(2)
    assert go(text, tmp_path / "run", *ramp) == 0
    now, whole = passed(5)[-1].batches, Batches(run.config(tmp_path / "run"), shards=4)
    left = range(5, whole.n_steps + 1)
    assert now.n_steps == whole.n_steps and [now.first_row(n) for n in left] == [whole.first_row(n) for n in left]
    assert len({now.rows(n) for n in left}) > 3


# --- fields that may be other ------------------------------------------------------------------------------------------------

OTHER = {  # another value of each, and where the run has it
    "compute.dtype": ("bfloat16", lambda s: s.step.model.manner.dtype.__name__),
    "compute.remat": ("full", lambda s: s.config.compute.remat),
    "compute.attention": ("reference", lambda s: s.step.model.manner.kernel),
    "compute.layers": ("scan", lambda s: s.config.compute.layers),
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
    "train.steps": (9, lambda s: s.batches.n_steps),
    "train.microbatch_rows": (4, lambda s: s.microbatch),
}


def test_each_field_that_may_be_other_takes_effect(text, copied, monkeypatch, capsys):
    free = {path for path in overrides.flat(registry.config("smoke")) if path.startswith(run.FREE)}
    assert free == set(OTHER)
    shutil.rmtree(copied / "checkpoints" / "9")
    seen = []
    monkeypatch.setattr(train, "loop", lambda session: [seen.append(session), 0][1])
    assert go(text, copied, "model.dropout.residual=0.0", *[f"{path}={value}" for path, (value, _) in OTHER.items()]) == 0
    (session,) = seen
    assert {path: have(session) for path, (_, have) in OTHER.items()} == {path: value for path, (value, _) in OTHER.items()}
    assert run.config(copied) == session.config
    said = " ".join(capsys.readouterr().out.split())
    assert "microbatches have 4 rows from step 8 on, where they had 8: sums are rounded otherwise" in said and "dropout" not in said


def test_what_the_loop_does_with_them(text, copied):
    """Saves, evaluations and what is kept, by the periods of the command that goes on."""
    shutil.rmtree(copied / "checkpoints" / "9")
    shutil.rmtree(copied / "checkpoints" / "8")
    assert go(text, copied, "loop.every_eval=3", "loop.every_save=2", "loop.keep_last=1", "loop.every_keep=4") == 0
    assert sorted(int(path.name) for path in (copied / "checkpoints").iterdir()) == [4, 8, 9]
    assert [line["step"] for line in events.read(copied) if "validation_loss" in line] == [6, 9]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_draws_other_masks_in_other_microbatches_and_that_is_said(finished, dropout):
    config = overrides.override(run.config(finished), f"model.dropout.residual={dropout}", "train.microbatch_rows=2")
    reading = SimpleNamespace(tokenizer=SimpleNamespace(digest="a"), digest=lambda: "b")
    about = resume.about(config, Batches(config), 8, reading, {})
    checkpoints = SimpleNamespace(restore=lambda state: (1, SimpleNamespace(step=np.int32(1), rows=np.int32(8)), about))
    request = resume.Request(finished, config, longer=False, new_record=True)
    (note,) = resume.restore_run(request, checkpoints, None, reading, 1, hosts.Hosts()).notes
    assert note.startswith("microbatches have 2 rows from step 1 on, where they had 8: sums are rounded otherwise")
    assert ("dropout draws other masks" in note) == bool(dropout)


# --- what is not essential ---------------------------------------------------------------------------------------------------


def test_a_training_goes_on_without_what_it_does_not_need(text, finished, tmp_path, capsys, monkeypatch):
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
    for line in ("loss.png is not drawn: ", "TensorBoard gets no more of this run: ", "4.removed cannot be removed: Directory not empty"):
        assert said.count(line) == 1
    assert losses(directory) == losses(finished)
    assert (directory / "checkpoints" / "9").is_dir() and not (directory / "checkpoints" / "4").exists()
    assert go(text, directory, "loop.keep_last=1") == 0  # the rubbish is told, and no more
    monkeypatch.setattr(shutil, "rmtree", real)
    assert go(text, directory, "loop.keep_last=1") == 0
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["9"]


def test_a_profile_of_a_finished_run_says_that_there_is_none(text, copied, capsys):
    assert go(text, copied, flags=["--profile=2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "nothing was traced: 0 steps were taken, and a trace begins with the third; give another --run, or prolong this one" in said


def test_what_is_read_again_is_said(text, tmp_path, monkeypatch, capsys):
    """And of a mixture what is read so often that it is learnt by heart."""
    small = tmp_path / "small.txt"
    small.write_text(LINES[:700])
    monkeypatch.setattr(train, "loop", lambda session: 0)
    sources = f"data.sources=(Text(path='{text}'), Text(path='{small}'))"
    assert go(text, tmp_path / "run", sources, "data.held_out=Tail(fraction=0.2)", "train.total_tokens=10240", "train.steps=36") == 0
    said, times = " ".join(capsys.readouterr().out.split()), 9216 / 2 / 560
    assert "read again Text(path='" in said and f"weight=1.0) {times:.1f} times batch" in said.replace("times; ", "times ")
    assert f"weight=1.0) is read {times:.1f} times, which is more than 4: it is small for its weight" in said and said.count("warning") == 1
    assert f"learning rate peak 3.00e-03, {3e-3 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 8192 / 9216))):.2e} at the last step" in said
    assert go(text, tmp_path / "alone", f"data.sources=Text(path='{small}')", "data.held_out=Tail(fraction=0.2)") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "read again" in said and "warning" not in said
