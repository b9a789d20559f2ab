"""The pipeline: reads the data sets of a recipe, applies its stages in order, and goes on where an
earlier start of the same was killed.

The directory has a folder for each stage, as 00-read and 03-quality_rules: its parts with their
ledgers, what was dropped and why, what was learned of all pages, and stage.json, the record of what
made it. text/NAME/ has the parts that are left of each data set.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gptjax import __version__
from gptjax.config import curation as config
from gptjax.curation import engine, input_files, ngram_job, parts, read_files, stages
from gptjax.runtime import atomic, checksums, job_dir

Array = np.ndarray
# That decide what is kept.
PACKAGES = ("numpy", "scipy", "pyarrow", "fastwarc", "resiliparse", "py3langid", "mmh3")
OPTIONAL_PACKAGES = ("trafilatura", "lxml", "aiohttp")


@dataclasses.dataclass(frozen=True)
class StageTotals:
    """What a stage did. ledgers: of each data set. outputs: the parts that it left."""

    name: str
    ledgers: dict[str, parts.Ledger]
    outputs: list[parts.Part]

    @property
    def ledger(self) -> parts.Ledger:
        """The ledger of all data sets."""
        return sum(self.ledgers.values(), parts.Ledger())


def folder_names(recipe: config.Curation) -> list[str]:
    """Returns the names of the folders of all stages, in order: 00-read, 01-language."""
    names = ["read", *map(config.stage_name, recipe.stages)]
    return [f"{number:02d}-{name}" for number, name in enumerate(names)]


class Pipeline:
    """A recipe at work in a directory. Data sets without a path are left out."""

    def __init__(
        self,
        recipe: config.Curation,
        directory: pathlib.Path,
        work_engine: engine.Engine,
        print_line: Callable[[str], None],
    ):
        """Lists the files. Raises a one-line ValueError if a data set has none, or no data set has
        a path."""
        self._recipe, self._directory, self._engine = recipe, directory, work_engine
        for folder in directory.glob("[0-9][0-9]-*"):
            if folder.name not in folder_names(recipe):
                raise ValueError(
                    f"{folder} is of another recipe: delete it and the stages after it, or give "
                    "another --out"
                )
        self.tasks: dict[str, Array] = {}  # of Decontaminate: the hashes of n-grams, by task
        self._places = {corpus.name: place for place, corpus in enumerate(recipe.corpora)}
        self._files: dict[str, list[input_files.InputFile]] = {}
        missing = [corpus.name for corpus in recipe.corpora if corpus.path is None]
        if len(missing) == len(recipe.corpora):
            raise ValueError(
                f"no data set has a path: give one or more of {', '.join(missing)}, as "
                f"--input={missing[0]}=PATH"
            )
        if missing:
            print_line(f"left out, since no path is given: {', '.join(missing)}")
        for stage in recipe.stages:
            if isinstance(stage, config.QualityClassifier):
                check_classes(stage, missing)
        for corpus in recipe.corpora:
            if corpus.path is not None:
                _check_apart(directory, corpus)
                self._files[corpus.name], remark = input_files.list_files(corpus)
                if remark:
                    print_line(f"{corpus.name}: {remark}")

    def run(
        self, until: str | None, load_tasks: Callable[[config.Decontaminate], dict[str, Array]]
    ) -> list[StageTotals]:
        """Runs all stages, or those up to the folder `until`, and returns what each did.

        load_tasks: returns the hashes of the n-grams of a stage's tasks, by task. Raises a one-line
        ValueError if a folder was made otherwise, a part fails, or a stage leaves nothing of a data
        set; what is finished is kept."""
        names = folder_names(self._recipe)
        names = names[: names.index(until) + 1] if until is not None else names
        to_run = self._recipe.stages[: len(names) - 1]
        for stage in to_run:  # errors now, not after hours
            stages.check(stage)
            if isinstance(stage, config.Decontaminate):
                self.tasks = load_tasks(stage)
        record: dict[str, Any] = {
            "stage": _fields(self._recipe.read, "damaged"),
            "data sets": {
                corpus.name: f"number {self._places[corpus.name]}, "
                + ", ".join(f"{k} {v}" for k, v in _fields(corpus, "name", "weight").items())
                for corpus in self._recipe.corpora
                if corpus.path is not None
            },
            "part_bytes": self._recipe.part_bytes,
        }
        totals = [self._run_read(names[0], record)]
        texts = _digest(repr([(part.path.name, part.digest) for part in totals[0].outputs]))
        for name, stage in zip(names[1:], to_run, strict=True):
            is_decontamination = isinstance(stage, config.Decontaminate)
            record = {
                "stage": {"kind": type(stage).__name__} | _fields(stage),
                "seed": self._recipe.seed,
                "state": stages.input_state(stage),
                "tasks": {name: ngram_job.digest(hashes, []) for name, hashes in self.tasks.items()}
                if is_decontamination
                else {},
                "texts": texts,
                "before": _digest(json.dumps(record)),
            }
            totals.append(self._run_stage(name, stage, record, totals[-1].outputs))
        return totals

    def _run_read(self, name: str, record: dict[str, Any]) -> StageTotals:
        """Reads the files of all data sets."""
        folder, recipe = self._directory / name, self._recipe
        _claim(folder, record)
        tasks = [
            read_files.ReadTask(
                corpus,
                self._places[corpus.name],
                tuple(group),
                recipe.read,
                folder / f"{corpus.name}-{group[0].number:07d}",
                recipe.part_bytes,
                _digest(repr((record["stage"], record["data sets"], corpus.name, group))),
            )
            for corpus in recipe.corpora
            if corpus.path is not None
            for group in input_files.group_files(self._files[corpus.name], recipe.part_bytes)
        ]
        results = self._run_tasks(name, read_files.read_task, tasks)
        self._check_ids(results)
        return self._finish(name, [task.corpus.name for task in tasks], results)

    def _run_stage(
        self, name: str, stage: config.Stage, record: dict[str, Any], before: Sequence[parts.Part]
    ) -> StageTotals:
        """Lets a stage learn, and applies it to all parts."""
        folder = self._directory / name
        _claim(folder, record)
        learned = folder / "learned"
        if not _is_learned(learned):
            (self._directory / "manifest.json").unlink(missing_ok=True)
            learned.mkdir(exist_ok=True)
            atomic.remove_partial(learned)
            ngrams = np.unique(np.concatenate([np.zeros(0, np.uint64), *self.tasks.values()]))
            job = stages.Learning(
                name, before, self._places, learned, self._recipe.seed, self._engine, ngrams
            )
            stages.learn(stage, job)
            for path in learned.iterdir():
                if path.name not in stages.LEARNED:  # of parts; it may be as large as their text
                    path.unlink()
            checksums.save(learned / "done.json", _digests(learned))
        key = _digest(json.dumps(record))
        tasks = [stages.StageTask(stage, part, folder, self._recipe.seed, key) for part in before]
        results = self._run_tasks(name, stages.apply_stage, tasks)
        totals = self._finish(name, [part.corpus for part in before], results)
        if isinstance(stage, config.Decontaminate):  # which gives its pieces ids
            self._check_ids(results)
        n_before = sum(part.documents for part in before)
        if totals.ledger.read[0] != n_before:
            raise ValueError(
                f"{folder}: the stage before wrote {n_before:,} documents, and "
                f"{totals.ledger.read[0]:,} were read; this is an error of gptjax"
            )
        return totals

    def _run_tasks(
        self, name: str, fn: Callable[[Any], parts.Result], tasks: Sequence[Any]
    ) -> list[parts.Result]:
        """Runs the tasks whose result is not there yet; returns the results of all."""
        folder = self._directory / name
        atomic.remove_partial(folder)
        results: dict[pathlib.Path, parts.Result | None] = {}
        for task in tasks:
            found_results = (parts.load_result(task.result_path, key) for key in task.keys)
            results[task.result_path] = next(filter(None, found_results), None)
        todo = [task for task in tasks if results[task.result_path] is None]
        if todo:  # what a finished run says is no longer so
            (self._directory / "manifest.json").unlink(missing_ok=True)
        for task, result in zip(todo, self._engine.map(fn, todo, name), strict=True):
            results[task.result_path] = result
        found = [result for result in results.values() if result is not None]
        assert len(found) == len(tasks)
        names = {part.path.name for result in found for part in result.parts}
        names |= {path.name for path in results}
        names |= {path.name.replace(".ledger.json", ".dropped.parquet") for path in results}
        for path in [*folder.glob("*.parquet"), *folder.glob("*.ledger.json")]:
            if path.name not in names:  # of files that have changed since an earlier start
                path.unlink()
        atomic.remove_partial(folder)  # of workers that outlived a killed start for a moment
        return found

    def _check_ids(self, results: Sequence[parts.Result]) -> None:
        """Raises ValueError if two documents have the same id, where the data set gives them."""
        if any(corpus.id_field is not None for corpus in self._recipe.corpora):
            check_ids([part for result in results for part in result.parts])

    def _finish(
        self, name: str, corpora: Sequence[str], results: Sequence[parts.Result]
    ) -> StageTotals:
        """Adds up the results of a stage. Raises ValueError if nothing is left of a data set."""
        ledgers = {corpus: parts.Ledger() for corpus in self._files}
        for corpus, result in zip(corpora, results, strict=True):
            ledgers[corpus] += result.ledger
        for corpus, ledger in ledgers.items():
            ledger.check(f"{name}, {corpus}")
            if not ledger.written[0]:
                reasons = [f"{n:,} {reason}" for reason, (n, _) in ledger.dropped.items()]
                raise ValueError(
                    f"{self._directory / name}: no document of {corpus} is left of "
                    f"{ledger.read[0]:,} ({', '.join(reasons) or 'its files are empty'}): change "
                    "the stage, or leave the data set out"
                )
        return StageTotals(name, ledgers, [part for result in results for part in result.parts])


def check_classes(stage: config.QualityClassifier, missing: Sequence[str]) -> None:
    """Raises ValueError if a classifier has nothing to learn one of its classes from. missing: data
    sets without a path."""
    for kind, names in (("positives", stage.positives), ("negatives", stage.negatives)):
        if {*names} <= {*missing}:
            raise ValueError(
                f"quality_classifier has no {kind}: give a path to {' or '.join(names)}, as "
                f"--input={names[0]}=PATH, or leave the stage out with --without=quality_classifier"
            )


def _check_apart(directory: pathlib.Path, corpus: config.Corpus) -> None:
    """Raises ValueError if the result would lie among the files of a data set."""
    folder = pathlib.Path((corpus.path or "").partition("**")[0]).resolve()
    if folder.is_dir() and folder in (directory.resolve(), *directory.resolve().parents):
        raise ValueError(
            f"--out={directory} lies among the files of {corpus.name}, and would be read as its "
            "input: give another"
        )


def _claim(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes the record of a stage. Raises ValueError if the folder is of another."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "stage.json"
    if path.exists():
        advice = "delete it, the stages after it and shards/, or give another --out"
        job_dir.check_same(folder, checksums.read(path), record, advice)
    else:
        checksums.save(path, record)


def _fields(record: Any, *but: str) -> dict[str, str]:
    """The fields of a record, as text."""
    return {
        field.name: repr(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if field.name not in but
    }


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """The digests of what a stage has learned."""
    names = sorted(path.name for path in folder.iterdir() if path.name in stages.LEARNED)
    return {name: checksums.file_digest(folder / name) for name in names}


def _is_learned(folder: pathlib.Path) -> bool:
    """Whether what a stage learns is there and undamaged."""
    try:
        return checksums.read(folder / "done.json") == _digests(folder)
    except ValueError:
        return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_ids(all_parts: Sequence[parts.Part]) -> None:
    """Raises ValueError if two documents have the same id. Memory: 8 bytes a document."""
    digests = [
        np.array([_hash_id(page_id) for (page_id,) in parts.read_rows(part.path, ["id"])])
        for part in all_parts
    ] or [np.zeros(0, np.int64)]
    ordered = np.sort(np.concatenate(digests))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    seen: dict[str, str] = {}
    for part in all_parts if repeated else ():
        for (page_id,) in parts.read_rows(part.path, ["id"]):
            if page_id in seen:
                raise ValueError(
                    f"two documents have the id {page_id}, in {seen[page_id]} and {part.name}: "
                    "give ids that are unique, or none (id_field=None)"
                )
            if _hash_id(page_id) in repeated:
                seen[page_id] = part.name


def _hash_id(page_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(page_id.encode(), digest_size=8).digest()[:7])


def manifest(
    recipe: config.Curation, totals: Sequence[StageTotals], tasks: Iterable[str]
) -> dict[str, Any]:
    """Returns the record of a finished curation: its recipe, the tasks whose n-grams were removed,
    versions, and what each stage did to each data set. "shards" is empty."""
    alphas = (s.alpha for s in recipe.stages if isinstance(s, config.QualityClassifier))
    return {
        "name": recipe.name,
        "recipe": repr(recipe),
        "tasks": sorted(tasks),
        "weights": {corpus.name: corpus.weight for corpus in recipe.corpora},
        "alpha": next(iter(alphas), None),
        "versions": _versions() | {"gptjax": __version__, "python": platform.python_version()},
        "stages": {
            stage.name: {name: ledger.to_json() for name, ledger in stage.ledgers.items()}
            for stage in totals
        },
        "parts": {f"{part.corpus}/{part.path.name}": part.digest for part in totals[-1].outputs},
        "shards": {},
    }


def _versions() -> dict[str, str]:
    """Versions of packages that decide what is kept."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in OPTIONAL_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def link_text(totals: StageTotals, folder: pathlib.Path) -> None:
    """Makes folder/NAME/ of each data set, with links to its parts, or copies where the file system
    has no links. Files of an earlier start that are not among them are removed."""
    for corpus in totals.ledgers:
        (folder / corpus).mkdir(parents=True, exist_ok=True)
        names = {part.path.name for part in totals.outputs if part.corpus == corpus}
        for stale in (folder / corpus).glob("*.parquet"):
            if stale.name not in names:
                stale.unlink()
    for part in totals.outputs:
        parts.check(part)
        atomic.link(part.path, folder / part.corpus / part.path.name)
