"""The directory of a run: its config, and whether another run may continue it."""

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import overrides, parse
from gptjax.config.schema import Config, Constant
from gptjax.runtime import errors, lock

# Fields that change speed, length or what is logged, but not the mathematics: a resumed run may
# change them.
MAY_CHANGE = (
    "compute.",
    "mesh.",
    "loop.",
    "train.steps",
    "train.microbatch_rows",
    "task.submission",
    "task.index",
    "task.paper",
)
# The fields that train --tokens changes, even in an existing run.
LENGTH_FIELDS = ("train.total_tokens", "train.schedule.decay_tokens")
NEW_RECORD_HINT = "--new_record continues from the checkpoints alone"

CHOSEN = "chosen.json"  # which checkpoint of a run is to be read, if it is not the newest

BUCKETS = {"gs://": "gcsfs"}  # URL scheme -> the package that reads it
# Objects in a bucket cannot be locked.
NO_LOCK = "which has no lock: make sure that only one job trains there at a time"


def bucket_url(run: str | None) -> str | None:
    """Returns --run_dir if it is a folder of a bucket, else None. Raises ValueError for an unknown
    scheme or a missing package.
    """
    scheme, separator, _ = (run or "").partition("://")
    if run is None or not separator:
        return None
    if scheme + separator not in BUCKETS:
        raise ValueError(
            f"{parse.one_line(run, 300)}: give a directory, or a folder of a bucket that starts "
            "with "
            f"{' or '.join(BUCKETS)}"
        )
    if importlib.util.find_spec(BUCKETS[scheme + separator]) is None:
        raise ValueError(
            f"{run} needs the package {BUCKETS[scheme + separator]}: {errors.install_hint('cloud')}"
        )
    return run.rstrip("/")


def directory(run: str | None, name: str = "") -> Path:
    """Returns the local directory of a run: --run_dir as given, else runs/NAME. For
    gs://BUCKET/FOLDER it is runs/BUCKET/FOLDER, from which the record is copied to the bucket.

    Raises ValueError as parse.path does, and for a name that is not UTF-8, since checkpoints cannot
    be written there.
    """
    url = bucket_url(run)
    if run is not None and re.search("[\ud800-\udfff]", run):
        encoding_hint = (
            f" (names are {sys.getfilesystemencoding()} here: PYTHONUTF8=1)"
            if sys.getfilesystemencoding() != "utf-8"
            else ""
        )
        raise ValueError(
            f"{parse.one_line(run, 300)}: the name of a run must be UTF-8 text; give "
            f"another{encoding_hint}"
        )
    if url is not None:
        return Path("runs") / url.partition("://")[2]
    return parse.path(run) if run is not None else Path("runs") / name


def load_config(run: Path) -> Config:
    """Reads the config of an existing run. Raises ValueError if `run` has none."""
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(
            f"no run is in {run}: it has no config.json; give the directory of a run, which "
            "gptjax.train makes and prints"
        )
    try:
        return overrides.unflatten(parse.read_json(path))
    except ValueError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ValueError(f"{message}; restore it from a copy, or start another run") from None


def chosen_step(run: Path) -> int | None:
    """Returns the step of the checkpoint that a run names as the one to be read, in CHOSEN; None,
    if it names none: the newest. Raises ValueError for a file that is damaged."""
    path = run / CHOSEN
    return parse.member(parse.read_json(path), "step", int, str(path)) if path.is_file() else None


def exists(run: Path) -> bool:
    """Whether the directory has a run's config.json, rather than one of another program."""
    path = run / "config.json"
    return path.is_file() and "model.n_layers" in parse.read_json(path)


def diff(a: Config, b: Config) -> list[str]:
    """Returns overrides.diff of the fields that affect a run's mathematics."""
    return [line for line in overrides.diff(a, b) if not line.startswith(MAY_CHANGE)]


def config_bytes(config: Config) -> bytes:
    """Returns the content of config.json."""
    return (json.dumps(overrides.flatten(config), indent=1) + "\n").encode()


def claim_run_dir(
    run: Path,
    new_config: Config,
    checkpoints: Sequence[int],
    change_length: bool = False,
    new_record: bool = False,
) -> bool:
    """Checks whether the run of `new_config` may use the directory `run`; returns True if it
    continues a run there. Writes nothing.

    checkpoints: the steps of existing checkpoints; if there are any, config.json and metrics.jsonl
    must exist too. change_length: train --tokens was given. new_record: both files will be
    rewritten, so their content does not matter if there are checkpoints. Raises a one-line
    ValueError if the run there has a different config (with the differences) or if files are
    missing (with what to do).
    """
    missing = [name for name in ("config.json", "metrics.jsonl") if not _is_nonempty(run / name)]
    if checkpoints and missing:
        if list(checkpoints) == [0]:
            raise ValueError(
                f"{run} holds weights from gptjax.convert, not a run: start one from them with "
                f"--init={run} and another --run_dir"
            )
        if not new_record:
            raise ValueError(
                f"{run} has checkpoints (the newest of step {checkpoints[-1]:,}) but "
                f"{' and '.join(missing)} "
                f"{_describe_missing(run, missing)}: put {'it' if len(missing) == 1 else 'them'} "
                "back, give another --run_dir, "
                f"or {NEW_RECORD_HINT}"
            )
    others = [name for name in ("metrics.jsonl", "data.json") if _is_nonempty(run / name)]
    # A run's config.json is written before these files.
    if others and not checkpoints and "config.json" in missing:
        raise ValueError(
            f"{run} has {' and '.join(others)} but no config.json: another program's, or of a run "
            "that lost it; give another --run_dir, or "
            f"move {'it' if len(others) == 1 else 'them'} away"
        )
    if not missing and not (checkpoints and new_record):
        check_same_config(
            load_config(run), new_config, f"{run} holds a run of another config", change_length
        )
    # For example that of converted weights, which need it.
    if not checkpoints and "config.json" not in missing and not exists(run):
        raise ValueError(
            f"{run}/config.json is not a run's: give another --run_dir, or move that file away"
        )
    return bool(checkpoints) or not missing


def check_same_config(old: Config, new: Config, what: str, change_length: bool) -> list[str]:
    """Returns the differences in length, with which a run continues if `change_length`. Raises
    ValueError, starting with `what`, for any other difference.
    """
    lines = diff(old, new)
    forbidden = [line for line in lines if not (change_length and line.startswith(LENGTH_FIELDS))]
    if forbidden:
        only_longer = all(line.startswith(LENGTH_FIELDS) for line in forbidden)
        advice = (
            "--tokens=N changes its length; otherwise give the config that started it"
            if only_longer
            else "the config that started it"
        )
        raise ValueError(f"{what} ({'; '.join(forbidden)}); give another --run_dir, or {advice}")
    return lines


def _is_nonempty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _describe_missing(run: Path, names: list[str]) -> str:
    all_absent = not any((run / name).exists() for name in names)
    verb = "is" if len(names) == 1 else "are"
    return f"{verb} missing" if all_absent else f"{verb} empty or not a file"


def check_shared(run: Path, owner: str) -> None:
    """Raises ValueError if a process does not see the directory that process 0 has locked with
    `owner`.
    """
    if lock.owner(run) != owner:
        raise ValueError(
            f"{run} is not the directory that process 0 writes to: give a --run_dir on a file "
            "system "
            "that all hosts share"
        )


def decay(config: Config) -> int | None:
    """Returns the tokens over which the schedule decays; None if it does not."""
    return (
        None if isinstance(config.train.schedule, Constant) else config.train.schedule.decay_tokens
    )


def scale_length(config: Config, total_tokens: int, there: Config | None = None) -> Config:
    """Returns the config with another length: train.total_tokens and, in proportion, the end of the
    schedule's decay; the warm-up stays.

    there: the config of the run to continue, whose decay and length are scaled instead of config's.
    Raises ValueError if the decay would end within the warm-up.
    """
    edits = [f"train.total_tokens={total_tokens}"]
    origin = config if there is None or decay(there) is None else there
    before, decays = origin.train.total_tokens, decay(origin)
    if not isinstance(config.train.schedule, Constant) and decays is not None:
        now, warmup = max(1, decays * total_tokens // before), config.train.schedule.warmup_tokens
        if now <= warmup:
            raise ValueError(
                f"--tokens={total_tokens:,} ends within the warm-up of {warmup:,} tokens: give "
                f"{-(-(warmup + 1) * before // decays):,} or "
                "more, or a smaller train.schedule.warmup_tokens"
            )
        edits.append(f"train.schedule.decay_tokens={now}")
    return overrides.override(config, *edits)
