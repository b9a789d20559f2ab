"""A run's directory: which config it holds, and whether another may continue it."""

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import overrides, parse
from gptjax.config.schema import Config, Constant
from gptjax.runtime import errors, lock

# Fields that change speed, length or what is shown, but not the mathematics: a run may be continued
# with others.
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
LENGTH_FIELDS = (
    "train.total_tokens",
    "train.schedule.decay_tokens",
)  # what train --tokens moves, in a run that is there too
NEW_RECORD_HINT = "--new_record goes on from the checkpoints alone"

BUCKETS = {"gs://": "gcsfs"}  # and the package that reads them
# of a bucket: an object is no file that ends with its program
NO_LOCK = "which has no lock: see that one job at a time trains there"


def bucket_url(run: str | None) -> str | None:
    """--run if it names a bucket's folder. ValueError if such buckets are not known, or need a
    package that is not there."""
    scheme, separator, _ = (run or "").partition("://")
    if run is None or not separator:
        return None
    if scheme + separator not in BUCKETS:
        raise ValueError(
            f"--run={run}: give a directory, or a folder of a bucket that starts with "
            f"{' or '.join(BUCKETS)}"
        )
    if importlib.util.find_spec(BUCKETS[scheme + separator]) is None:
        raise ValueError(
            f"{run} needs the package {BUCKETS[scheme + separator]}: {errors.install_hint('cloud')}"
        )
    return run.rstrip("/")


def directory(run: str | None, name: str = "") -> Path:
    """--run as given, else runs/NAME. For gs://BUCKET/FOLDER it is runs/BUCKET/FOLDER, from where
    the record is copied. ValueError as parse.path's, and for a name that is not UTF-8:
    checkpoints cannot lie there."""
    url = bucket_url(run)
    if run is not None and re.search("[\ud800-\udfff]", run):
        encoding_hint = (
            f" (names are {sys.getfilesystemencoding()} here: PYTHONUTF8=1)"
            if sys.getfilesystemencoding() != "utf-8"
            else ""
        )
        raise ValueError(
            f"--run={parse.one_line(run, 300)}: the name of a run must be UTF-8 text; give "
            f"another{encoding_hint}"
        )
    if url is not None:
        return Path("runs") / url.partition("://")[2]
    return parse.path(run) if run is not None else Path("runs") / name


def load_config(run: Path) -> Config:
    """The config of an existing run. Raises ValueError if `run` holds none."""
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


def exists(run: Path) -> bool:
    """Does the directory hold a run's config.json, and not one of another program?"""
    path = run / "config.json"
    return path.is_file() and "model.n_layers" in parse.read_json(path)


def diff(a: Config, b: Config) -> list[str]:
    """overrides.diff in what decides a run's mathematics."""
    return [line for line in overrides.diff(a, b) if not line.startswith(MAY_CHANGE)]


def config_bytes(config: Config) -> bytes:
    """What config.json holds."""
    return (json.dumps(overrides.flatten(config), indent=1) + "\n").encode()


def claim_run_dir(
    run: Path,
    new_config: Config,
    checkpoints: Sequence[int],
    change_length: bool = False,
    new_record: bool = False,
) -> bool:
    """May the run of `new_config` be in `run`? True if it continues one that is there. Looks only,
    and writes nothing.

    checkpoints: the steps of those that are there; where there are some, config.json and
    metrics.jsonl must be, too. change_length: train --tokens was given. new_record: both will be
    written anew, so what they say does not matter where there are checkpoints. ValueError, in
    one line: the run there has another config (its differences named); files are missing (which,
    and what to do)."""
    missing = [name for name in ("config.json", "metrics.jsonl") if not _is_nonempty(run / name)]
    if checkpoints and missing:
        if list(checkpoints) == [0]:
            raise ValueError(
                f"{run} holds weights that gptjax.convert brought, and no run: begin one with them "
                f"by --init={run} and another --run"
            )
        if not new_record:
            raise ValueError(
                f"{run} has checkpoints (the newest of step {checkpoints[-1]:,}) but "
                f"{' and '.join(missing)} "
                f"{_describe_missing(run, missing)}: put {'it' if len(missing) == 1 else 'them'} "
                "back, give another --run, "
                f"or {NEW_RECORD_HINT}"
            )
    others = [name for name in ("metrics.jsonl", "data.json") if _is_nonempty(run / name)]
    if (
        others and not checkpoints and "config.json" in missing
    ):  # a run's config.json is written before them
        raise ValueError(
            f"{run} has {' and '.join(others)} but no config.json: another program's, or of a run "
            "that lost it; give another --run, or "
            f"move {'it' if len(others) == 1 else 'them'} away"
        )
    if not missing and not (checkpoints and new_record):
        check_same_config(
            load_config(run), new_config, f"{run} holds a run of another config", change_length
        )
    if (
        not checkpoints and "config.json" not in missing and not exists(run)
    ):  # as of weights of others, which need it
        raise ValueError(
            f"{run}/config.json is no run's: give another --run, or move that file away"
        )
    return bool(checkpoints) or not missing


def check_same_config(old: Config, new: Config, what: str, change_length: bool) -> list[str]:
    """The differences in length, with which a run goes on if `change_length`. ValueError, which
    begins with `what`, if there are others."""
    lines = diff(old, new)
    forbidden = [line for line in lines if not (change_length and line.startswith(LENGTH_FIELDS))]
    if forbidden:
        only_longer = all(line.startswith(LENGTH_FIELDS) for line in forbidden)
        advice = (
            "--tokens=N changes its length; without that give the config that began it"
            if only_longer
            else "the config that began it"
        )
        raise ValueError(f"{what} ({'; '.join(forbidden)}); give another --run, or {advice}")
    return lines


def _is_nonempty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _describe_missing(run: Path, names: list[str]) -> str:
    all_absent = not any((run / name).exists() for name in names)
    verb = "is" if len(names) == 1 else "are"
    return f"{verb} missing" if all_absent else f"{verb} empty or no file"


def check_shared(run: Path, owner: str) -> None:
    """ValueError where a process does not see the directory that process 0 has locked, where it
    finds `owner`."""
    if lock.owner(run) != owner:
        raise ValueError(
            f"{run} is not the directory that process 0 writes to: give a --run on a file system "
            "that all hosts share"
        )


def decay(config: Config) -> int | None:
    """The tokens over which the schedule decays; None: it does not."""
    return (
        None if isinstance(config.train.schedule, Constant) else config.train.schedule.decay_tokens
    )


def scale_length(config: Config, total_tokens: int, there: Config | None = None) -> Config:
    """The config with another length: train.total_tokens, and in proportion the tokens of its
    schedule's decay, where it has one; the warm-up stays. there: the config of a run that goes on,
    whose decay and length are scaled in place of config's. ValueError if the decay would end
    within the warm-up."""
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
