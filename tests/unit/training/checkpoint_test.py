"""Checkpoints come back exactly, on any mesh; damage is named and passed over; a kill or a full
disk loses no whole checkpoint."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from gptjax.distributed import processes
from gptjax.runtime import storage
from gptjax.sharding import trees
from gptjax.training import checkpoint


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    key: jax.Array


def mesh(*shape):
    return jax.make_mesh(
        shape, ("a", "b"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(shape)]
    )


def state_of(step, width=256, on=(4, 2)):
    """A small state whose values all depend on `step`: a big sharded float32, a bfloat16, a
    scalar, a key."""
    key = jax.random.key(step)
    state = State(
        step=jnp.int32(step),
        params={
            "w_DF": jax.random.normal(key, (64, width)),
            "layers": [jax.random.normal(key, (8, 16)).astype(jnp.bfloat16)],
        },
        key=key,
    )
    return jax.device_put(state, specs(state, mesh(*on)))


def specs(state, where):
    return jax.tree.map(
        lambda x: NamedSharding(where, PartitionSpec("a", "b") if x.ndim == 2 else PartitionSpec()),
        state,
    )


def abstract(state, where=None):
    where = specs(state, where or mesh(4, 2))
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
    )


def same(a, b):
    return trees.digests(a) == trees.digests(b)


def opened(directory, said=None, keep_last=3, every_keep=None):
    return checkpoint.CheckpointManager(
        directory, keep_last, every_keep, (said if said is not None else []).append
    )


def saved_run(directory, steps=(10, 20, 30)):
    with opened(directory, keep_last=len(steps)) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), {"row": step * 7, "config": {"name": "x"}})
    return directory


def flip(file, at):
    raw = bytearray(file.read_bytes())
    raw[int(at * len(raw))] ^= 0x10
    file.write_bytes(bytes(raw))


def biggest(directory):
    return max((f for f in directory.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def restored(directory, said=None):
    with opened(directory, said) as checkpoints:
        return checkpoints.restore(abstract(state_of(0)))


# --- whole checkpoints ----------------------------------------------------------------------------


def test_nothing_saved_is_none(tmp_path):
    assert restored(tmp_path / "new") is None
    with pytest.raises(ValueError, match="no checkpoint in .*; steps there: none"):
        checkpoint.CheckpointReader(tmp_path / "other", print).metadata()


@pytest.mark.parametrize("on", [(4, 2), (2, 4), (2, 1), (1, 1)])
def test_a_state_comes_back_exactly_on_any_mesh(tmp_path, on):
    said = []
    saved_run(tmp_path, steps=(5,))
    with opened(tmp_path, said) as checkpoints:
        step, state, about = checkpoints.restore(abstract(state_of(0), mesh(*on)))
    assert (step, about, said) == (5, {"row": 35, "config": {"name": "x"}}, [])
    assert same(state, state_of(5))
    assert state.params["w_DF"].sharding == NamedSharding(mesh(*on), PartitionSpec("a", "b"))
    assert state.params["layers"][0].dtype == jnp.bfloat16
    assert jax.random.normal(state.key) == jax.random.normal(jax.random.key(5))


def test_a_part_of_a_state_can_be_read_alone_and_without_a_sharding(tmp_path):
    params = state_of(30).params
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), {"params": params})
    step, part, _ = checkpoint.CheckpointReader(saved_run(tmp_path), print).restore(
        wanted, prefix="params/"
    )
    assert step == 30 and same(part, {"params": params})


def test_the_state_may_be_donated_or_deleted_after_save(tmp_path):
    @jax.jit
    def big(seed):
        return {
            f"w{i}": jax.random.normal(
                jax.random.fold_in(jax.random.key(0), seed + i), (1000, 1000)
            )
            for i in range(10)
        }

    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    jax.block_until_ready(spoil(big(0)))
    with opened(tmp_path) as checkpoints:
        donated, deleted = big(1), big(2)
        checkpoints.save(1, donated, {})
        jax.block_until_ready(spoil(donated))
        checkpoints.save(2, deleted, {})
        for x in deleted.values():
            x.delete()
        checkpoints.wait()
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), big(0))
        assert same(checkpoints.restore(wanted)[1], big(2))
    (tmp_path / "2").rename(tmp_path / "away")
    assert same(checkpoint.CheckpointReader(tmp_path, print).restore(wanted)[1], big(1))


def test_the_newest_are_kept_and_every_keep_for_ever(tmp_path):
    with opened(tmp_path, keep_last=2, every_keep=20) as checkpoints:
        for step in range(10, 80, 10):
            checkpoints.save(step, {"x": jnp.int32(step)}, {"step": step})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 40, 60, 70]
        assert checkpoints.metadata() == {"step": 70} and checkpoints.metadata(40) == {"step": 40}
        with pytest.raises(
            ValueError, match="no checkpoint of step 30 .*steps there: 20, 40, 60, 70"
        ):
            checkpoints.metadata(30)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["20", "40", "60", "70"]


def test_another_shape_names_the_first_leaf_and_does_not_walk_back(tmp_path):
    saved_run(tmp_path)
    said = []
    with opened(tmp_path, said) as checkpoints:
        with pytest.raises(
            ValueError,
            match=(
                r"params/w_DF is float32\[64,256\] in the checkpoint of step 30 .* and "
                r"float32\[64,512\] in this config"
            ),
        ):
            checkpoints.restore(abstract(state_of(0, width=512)))
        with pytest.raises(ValueError, match="key is .* and absent in this config"):
            checkpoints.restore(
                State(
                    step=abstract(state_of(0)).step, params=abstract(state_of(0)).params, key=None
                )
            )
    assert said == []


@pytest.mark.parametrize("move", [Path.rename, shutil.copytree])
def test_a_checkpoint_by_the_name_of_another_step_is_refused_by_every_reader(tmp_path, move):
    said = []
    move(saved_run(tmp_path, steps=(12,)) / "12", tmp_path / "20")
    saved, refusal = (
        checkpoint.CheckpointReader(tmp_path, said.append),
        "/20 is of step 12: a folder was renamed or copied; name it 12 again, or remove it",
    )
    for read in (
        saved.metadata,
        saved.latest,
        lambda: saved.metadata(20),
        lambda: saved.restore(abstract(state_of(0))),
        lambda: saved.restore(abstract(state_of(0)), steps=[20]),
    ):
        with pytest.raises(ValueError, match=refusal):
            read()
    assert said == [] and sorted(path.name for path in tmp_path.iterdir()) == (
        ["20"] if move is Path.rename else ["12", "20"]
    )


def test_all_processes_take_the_checkpoints_that_process_0_sees(tmp_path):
    """Also where another process sees one more."""

    class Second(processes.ProcessGroup):
        def broadcast_from_zero(self, act):
            return [10, 20] if (found := act()) == [10, 20, 30] else found

    saved_run(tmp_path)
    with checkpoint.CheckpointManager(tmp_path, 2, None, print, Second()) as checkpoints:
        assert checkpoints.restore(abstract(state_of(0)))[0] == 20


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_one_flipped_byte_of_values_names_the_leaf(tmp_path, at):
    saved_run(tmp_path)
    flip(biggest(tmp_path / "30"), at)
    said = []
    step, state, about = restored(tmp_path, said)
    assert (step, about["row"]) == (20, 140) and same(state, state_of(20))
    assert len(said) == 1 and "step 30 is damaged: params/w_DF is not what was saved" in said[0]


def later(file):
    """A change that leaves the file as long, and valid: only its CRC tells."""
    text = file.read_text()
    file.write_text(
        re.sub(
            r'(timestamp_nsecs": \d+)(\d)',
            lambda found: found[1] + str(9 - int(found[2])),
            text,
            count=1,
        )
    )
    assert file.read_text() != text


def damages():
    """Every way in which a file of a checkpoint may be hurt, by the file's name; the names hold
    random parts, so kinds are found first."""
    return [
        (
            "truncated values",
            lambda d: biggest(d),
            lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
        ),
        ("missing values", lambda d: biggest(d), Path.unlink),
        ("flipped record", lambda d: d / "_CHECKPOINT_METADATA", lambda f: flip(f, 0.5)),
        ("truncated record", lambda d: d / "_CHECKPOINT_METADATA", lambda f: f.write_bytes(b"")),
        ("missing record", lambda d: d / "_CHECKPOINT_METADATA", Path.unlink),
        ("another time in the record", lambda d: d / "_CHECKPOINT_METADATA", later),
        ("flipped listing", lambda d: d / "files.json", lambda f: flip(f, 0.5)),
        ("missing listing", lambda d: d / "files.json", Path.unlink),
        ("bottomless listing", lambda d: d / "files.json", lambda f: f.write_text("[" * 100_000)),
        ("flipped manifest", lambda d: next(d.rglob("manifest.ocdbt")), lambda f: flip(f, 0.5)),
        ("missing tree", lambda d: next(d.rglob("_METADATA")), Path.unlink),
        (
            "truncated node",
            lambda d: next(f for f in d.glob("state/d/*")),
            lambda f: f.write_bytes(f.read_bytes()[:20]),
        ),
    ]


@pytest.mark.parametrize("name,find,hurt", damages(), ids=[d[0] for d in damages()])
def test_any_damaged_file_walks_back_with_one_line(tmp_path, capfd, name, find, hurt):
    saved_run(tmp_path)
    hurt(find(tmp_path / "30"))
    said = []
    step, state, _ = restored(tmp_path, said)
    assert step == 20 and same(state, state_of(20))
    assert (
        len(said) == 1
        and said[0].startswith("the checkpoint of step 30 is damaged: ")
        and "\n" not in said[0]
    )
    assert capfd.readouterr() == ("", "")


def test_damage_that_only_the_seal_sees(tmp_path):
    """The data position changed inside otherwise valid JSON, with a listing that agrees."""
    saved_run(tmp_path)
    file, listing = tmp_path / "30" / "_CHECKPOINT_METADATA", tmp_path / "30" / "files.json"
    file.write_text(file.read_text().replace('"row": 210', '"row": 211'))
    entries = json.loads(listing.read_text())
    entries["_CHECKPOINT_METADATA"][1] = None
    listing.write_text(json.dumps(entries))
    said = []
    assert restored(tmp_path, said)[0] == 20
    assert said == ["the checkpoint of step 30 is damaged: its record was changed"]
    assert checkpoint.CheckpointReader(tmp_path, said.append).metadata()["row"] == 140


def test_all_damaged_is_an_error_that_names_what_was_tried(tmp_path):
    saved_run(tmp_path)
    for step in ("10", "20", "30"):
        biggest(tmp_path / step).unlink()
    said = []
    with pytest.raises(
        ValueError, match="every checkpoint in .* is damaged .*30: .*20: .*10: .*another --run_dir"
    ):
        restored(tmp_path, said)
    assert len(said) == 3
    assert checkpoint.CheckpointReader(tmp_path, print).steps() == [10, 20, 30]


def test_a_damaged_checkpoint_is_replaced_and_never_counts_as_kept(tmp_path):
    saved_run(tmp_path)
    flip(biggest(tmp_path / "30"), 0.5)
    with opened(tmp_path, keep_last=2) as checkpoints:
        assert checkpoints.restore(abstract(state_of(0)))[0] == 20
        checkpoints.save(25, state_of(25), {"row": 1})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 25]
    flip(biggest(tmp_path / "25"), 0.5)
    with opened(tmp_path, keep_last=2) as checkpoints:
        assert checkpoints.restore(abstract(state_of(0)))[0] == 20
        checkpoints.save(25, state_of(25), {"row": 2})
    said = []
    step, state, about = restored(tmp_path, said)
    assert (step, about, said) == (25, {"row": 2}, []) and same(state, state_of(25))


def test_the_checkpoint_just_restored_is_not_written_again(tmp_path):
    saved_run(tmp_path)
    before = (tmp_path / "30").stat().st_ino
    with opened(tmp_path) as checkpoints:
        _, state, about = checkpoints.restore(abstract(state_of(0)))
        checkpoints.save(30, state, about)
    assert (tmp_path / "30").stat().st_ino == before


# --- trouble while saving -------------------------------------------------------------------------

WRITER = """
import sys, jax, jax.numpy as jnp
from gptjax.training import checkpoint
make = jax.jit(lambda s: {f"w{i}": jnp.full((400, 500), s + i, jnp.float32) for i in range(8)})
with checkpoint.CheckpointManager(sys.argv[1], 2, None, print) as checkpoints:
    for step in range(1, 10000):
        checkpoints.save(step, make(step), {"row": step})
        print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """kill -9 three times in the midst of back-to-back saves: what the loop saw saved, but for
    the last, must be there."""
    wanted = {f"w{i}": jax.ShapeDtypeStruct((400, 500), jnp.float32) for i in range(8)}
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[3],
        ) as writer:
            assert writer.stdout is not None
            for _ in range(3):
                begun = int(writer.stdout.readline())
            time.sleep(random.uniform(0, 0.2))
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
        begun = int(rest[-1]) if rest else begun
        said = []
        with opened(tmp_path, said, keep_last=2) as checkpoints:
            step, state, about = checkpoints.restore(wanted)
            checkpoints.prepare()
            assert said == [] and begun - 1 <= step <= begun + 1
            assert about == {"row": step} and all(
                (state[f"w{i}"] == step + i).all() for i in range(8)
            )
            assert all(entry.name.isdecimal() for entry in tmp_path.iterdir())
            for done in checkpoints.steps():
                (tmp_path / str(done)).rename(tmp_path / f"{done}.removed")


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    saved_run(tmp_path)
    monkeypatch.setattr(
        storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=12_345_678 - 8_000_000)
    )
    with opened(tmp_path) as checkpoints:
        with pytest.raises(
            ValueError,
            match=(
                r"cannot save the checkpoint of step 40 in .*: the disk is full; it needs 8\.5 MB "
                r"and 4\.3 MB are free"
            ),
        ):
            checkpoints.save(40, state_of(40), {})
    assert restored(tmp_path)[0] == 30


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], capture_output=True
        ).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_while_saving_keeps_the_checkpoint_before(small_disk, monkeypatch, capfd):
    monkeypatch.setattr(checkpoint, "RESERVE_BYTES", 0)
    with opened(small_disk / "run") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((1000, 1000))}, {})
        checkpoints.wait()
        monkeypatch.setattr(
            checkpoints, "_free_bytes", lambda: 10**9
        )  # the space goes only after the look at it
        checkpoints.save(2, {"w": jnp.ones((3000, 1000))}, {})
        with pytest.raises(
            ValueError,
            match=(
                "cannot save the checkpoint of step 2 in .*/run: .*the disk is full; it needs "
                "12.0 MB"
            ),
        ):
            checkpoints.wait()
        assert [entry.name for entry in (small_disk / "run").iterdir()] == ["1"]
        checkpoints.save(3, {"w": jnp.full((1000, 1000), 3.0)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]
    assert capfd.readouterr() == ("", "")


def test_a_failed_save_surfaces_on_leaving_but_hides_no_other_error(tmp_path):
    def trouble(checkpoints):
        checkpoints.save(1, {"w": jnp.ones(4)}, {})
        checkpoints.wait()
        checkpoints._pending = checkpoints._thread.submit(
            checkpoints._commit, 2, SimpleNamespace(result=lambda: 1 / 0), 0
        )

    with (
        pytest.raises(ValueError, match="step 2 .*division by zero"),
        opened(tmp_path / "a") as checkpoints,
    ):
        trouble(checkpoints)
    said = []
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "b", said) as checkpoints:
        trouble(checkpoints)
        raise KeyboardInterrupt
    assert len(said) == 1 and "division by zero" in said[0]


def test_an_unwritable_directory_is_a_one_line_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(
            ValueError,
            match=(
                f"cannot write checkpoints to {place}: .*; make it writable, or give another "
                "--run_dir"
            ),
        ) as error:
            opened(place).prepare()
        assert "\n" not in str(error.value)
