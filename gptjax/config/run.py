"""A run's directory: which config it holds, and whether another may continue it."""

import importlib.util
import json
from pathlib import Path

from gptjax.config import overrides, parse
from gptjax.config.schema import Config

# Fields that change speed, length or what is shown, but not the mathematics: a run may be continued with others.
FREE = ("compute.", "mesh.", "loop.", "train.steps", "train.microbatch_rows")


BUCKETS = {"gs://": "gcsfs"}  # and the package that reads them


def bucket(given: str | None) -> str | None:
    """--run if it names a bucket's folder. ValueError if such buckets are not known, or need a package that is not there."""
    scheme, separator, _ = (given or "").partition("://")
    if given is None or not separator:
        return None
    if scheme + separator not in BUCKETS:
        raise ValueError(f"--run={given}: give a directory, or a folder of a bucket that starts with {' or '.join(BUCKETS)}")
    if importlib.util.find_spec(BUCKETS[scheme + separator]) is None:
        raise ValueError(f"{given} needs the package {BUCKETS[scheme + separator]}: pip install -r requirements-extra.txt")
    return given.rstrip("/")


def directory(given: str | None, name: str = "") -> Path:
    """--run as given, else runs/NAME. For gs://BUCKET/FOLDER it is runs/BUCKET/FOLDER, from where the record is copied."""
    there = bucket(given)
    if there is not None:
        return Path("runs") / there.partition("://")[2]
    return Path(given) if given is not None else Path("runs") / name


def config(run: Path) -> Config:
    """The config of an existing run. Raises ValueError if `run` holds none."""
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"no run is in {run}: it has no config.json; give the directory of a run, which gptjax.train makes and prints")
    try:
        return overrides.rebuild(parse.json_file(path))
    except ValueError as error:
        said = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ValueError(f"{said}; restore it from a copy, or start another run") from None


def there(run: Path) -> bool:
    """Does the directory hold a run's config.json, and not one of another program?"""
    path = run / "config.json"
    return path.is_file() and "model.n_layers" in parse.json_file(path)


def differences(a: Config, b: Config) -> list[str]:
    """overrides.difference in what decides a run's mathematics."""
    return [line for line in overrides.difference(a, b) if not line.startswith(FREE)]


def claim(run: Path, wanted: Config) -> bool:
    """Make `run` the directory of `wanted`: True if it continues a run that is there, which is one that has measured something.

    Raises ValueError if the run there has another config (its differences named), or if the directory cannot be written."""
    path = run / "config.json"
    there = path.exists() and (run / "metrics.jsonl").exists()
    if there:
        lines = differences(config(run), wanted)
        if lines:
            raise ValueError(f"{run} holds a run of another config ({'; '.join(lines)}); give another --run, or the config that began it")
    elif (run / "checkpoints" / "0").exists():
        raise ValueError(
            f"{run} holds weights that gptjax.convert brought, and no run: begin one with them by --init={run} and another --run"
        )
    try:
        run.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".json.new")
        fresh.write_text(json.dumps(overrides.flat(wanted), indent=1) + "\n")
        fresh.rename(path)
    except OSError as error:
        raise ValueError(f"cannot write to the run directory {run}: {error.strerror}; make it writable or give another --run") from error
    return there


def check_shared(run: Path, wanted: Config) -> None:
    """ValueError where a process does not see the directory that process 0 has claimed."""
    path = run / "config.json"
    if not path.exists() or config(run) != wanted:
        raise ValueError(f"{run} is not the directory that process 0 writes to: give a --run on a file system that all hosts share")
