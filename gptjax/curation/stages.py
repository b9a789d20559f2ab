"""The stages: what each learns of all pages first, and what it then does to each.

A stage that must see all pages (a classifier, duplicates, n-grams of tasks) learns first: `learn`
writes files into the folder `learned` of its directory. Then every part is read, each page kept,
changed or dropped, and a new part written.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from gptjax.config import curation as config
from gptjax.config import data
from gptjax.curation import (
    classifier,
    count_ngrams,
    engine,
    exact_duplicates,
    language,
    links,
    minhash,
    ngrams,
    parts,
    personal_data,
    quality_rules,
    remove_ngrams,
)
from gptjax.curation.page import Dropped, StageFn
from gptjax.data import tokenize
from gptjax.data.sources import open
from gptjax.runtime import atomic, checksums


@dataclasses.dataclass(frozen=True)
class StageTask:
    """A part to which a stage is applied. folder: of the stage. seed: of the recipe."""

    stage: config.Stage
    part: parts.Part
    folder: pathlib.Path
    seed: int
    key: str

    def __str__(self) -> str:
        return self.part.name

    @property
    def result_path(self) -> pathlib.Path:
        """File of the result."""
        return self.folder / f"{self.part.name}.ledger.json"

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of results that may be taken."""
        return (self.key,)


def apply_stage(task: StageTask) -> parts.Result:
    """Reads a part, writes what a stage keeps of it, and its ledger. Raises a one-line ValueError
    if the part is damaged."""
    part, ledger = task.part, parts.Ledger()
    out = task.folder / part.path.name
    if not applies(task.stage, part.corpus):
        atomic.link(part.path, out)
        counts = part.documents, part.text_bytes
        ledger = parts.Ledger(read=counts, kept=counts, written=counts)
        result = parts.Result(ledger, [dataclasses.replace(part, path=out)])
        parts.save_result(task.result_path, task.key, result)
        return result
    stage_fn = open_stage(task.stage, task.folder / "learned", task.seed)
    n_documents = n_bytes = 0
    dropped_path = task.folder / f"{part.name}.dropped.parquet"
    with (
        parts.Writer(dropped_path, parts.DROPPED_SCHEMA) as dropped,
        parts.Writer(out, parts.SCHEMA) as writer,
    ):
        for page in parts.read_pages(part):
            outcome = stage_fn(page)
            if isinstance(outcome, Dropped):
                ledger.count(parts.utf8_length(page.text), outcome, False)
                excerpt = page.text[: parts.EXCERPT_CHARS]
                row = (page.number, page.id, page.url, outcome.reason, outcome.detail, excerpt)
                dropped.write(row, len(excerpt) + 200)
                continue
            pages = outcome if isinstance(outcome, list) else [outcome]
            ledger.count(parts.utf8_length(page.text), pages, pages != [page])
            for kept in pages:
                size = parts.utf8_length(kept.text)
                writer.write(dataclasses.astuple(kept), size)
                n_documents, n_bytes = n_documents + 1, n_bytes + size
    if isinstance(stage_fn, classifier.ScoreFilter):
        ledger.notes |= stage_fn.notes
    digest = checksums.file_digest(out)
    kept_part = parts.Part(part.corpus, out, n_documents, n_bytes, digest)
    result = parts.Result(ledger, [kept_part] * bool(n_documents))
    parts.save_result(task.result_path, task.key, result)
    return result


def applies(stage: config.Stage, corpus: str) -> bool:
    """Whether a stage applies to a data set."""
    match stage:
        case config.ExactDuplicates() | config.FuzzyDuplicates() | config.Decontaminate():
            return True
        case config.QualityClassifier(corpora=corpora):
            return corpus in corpora
        case _:
            return not stage.corpora or corpus in stage.corpora


def input_state(stage: config.Stage) -> str:
    """Returns the state of the files that a stage reads of its own; "" if there are none."""
    return (
        open.fingerprint(data.Text(path=stage.links))
        if isinstance(stage, config.LinkedPages)
        else ""
    )


# Files of what stages learn, which outlast the learning.
LEARNED = ("model.npy", "duplicates.npy", "links.npy", "links.json")
LEARNED += ("hashes.npy", "bits.npy", "lengths.npy")


def check(stage: config.Stage) -> None:
    """Raises a one-line ValueError for what can be seen to be wrong with a stage before the pages
    are read."""
    input_state(stage)
    match stage:
        case (
            config.WithoutDomains()
            | config.Language()
            | config.QualityRules()
            | config.MaskPersonalData()
        ):
            open_stage(stage, pathlib.Path(), 0)
        case _:
            pass


def open_stage(stage: config.Stage, learned: pathlib.Path, seed: int) -> StageFn:
    """Returns the function of a stage. learned: folder of what it has learned."""
    match stage:
        case config.LinkedPages():
            return links.require_links(stage, links.load(learned))
        case config.WithoutDomains():
            return links.drop_domains(stage)
        case config.Language():
            return language.keep_languages(stage)
        case config.QualityRules():
            return quality_rules.apply_quality_rules(stage)
        case config.QualityClassifier():
            model = classifier.Classifier.load(learned / "model.npy")
            return classifier.ScoreFilter(stage, model, seed)
        case config.ExactDuplicates(by=by):
            return exact_duplicates.DuplicateFilter(learned / "duplicates.npy", f"same {by}")
        case config.FuzzyDuplicates():
            return exact_duplicates.DuplicateFilter(
                learned / "duplicates.npy", "nearly the same text"
            )
        case config.Decontaminate(rule=rule):
            return remove_ngrams.PageCutter(rule, learned)
        case config.MaskPersonalData():
            return personal_data.mask_personal_data(stage)
        case _:
            assert_never(stage)


# --- learning -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Learning:
    """What a stage learns with. name: of its folder. parts: of all data sets. places: name of a
    data set -> its place in the recipe. folder: for what is learned. task_ngrams: hashes of the
    tasks' n-grams, sorted.
    """

    name: str
    parts: Sequence[parts.Part]
    places: dict[str, int]
    folder: pathlib.Path
    seed: int
    engine: engine.Engine
    task_ngrams: np.ndarray


@dataclasses.dataclass(frozen=True)
class LearnTask:
    """A part that a stage learns from. share: of the documents that are looked at."""

    stage: config.Stage
    part: parts.Part
    folder: pathlib.Path
    seed: int
    share: float = 1.0

    def __str__(self) -> str:
        return self.part.name


def learn(stage: config.Stage, job: Learning) -> None:
    """Learns what a stage needs of all pages; writes it into job.folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    tasks = [LearnTask(stage, part, job.folder, job.seed) for part in job.parts]
    match stage:
        case config.LinkedPages():
            links.save(job.folder, links.read_links(stage))
        case config.QualityClassifier():
            learn_classifier(stage, job)
        case config.ExactDuplicates():
            files = job.engine.map(save_keys, tasks, f"{job.name}: keys")
            table = job.engine.first_by_key(files)
            exact_duplicates.save_duplicates(job.folder / "duplicates.npy", table)
        case config.FuzzyDuplicates():
            across = tuple(
                (job.places[a], job.places[b])
                for a, b in stage.across
                if a in job.places and b in job.places
            )
            stems = job.engine.map(save_sketch, tasks, f"{job.name}: sketches")
            pairs = job.engine.similar_pairs(stems, stage, f"{job.name}: pairs")
            table = minhash.duplicates(pairs, across)
            exact_duplicates.save_duplicates(job.folder / "duplicates.npy", table)
        case config.Decontaminate(rule=rule):
            hash_set = ngrams.HashSet(job.task_ngrams)
            count_ngrams.save_ngrams(job.folder, hash_set, [rule.n])
            counted = job.engine.map(count_task_ngrams, tasks, f"{job.name}: n-grams")
            counts, _, _ = count_ngrams.sum_counts(job.folder, counted, len(hash_set))
            kept = (counts > 0) & (counts <= rule.most_documents)
            found = ngrams.HashSet(hash_set.hashes[kept])
            count_ngrams.save_ngrams(job.folder, found, [rule.n])


def learn_classifier(stage: config.QualityClassifier, job: Learning) -> None:
    """Draws documents of both classes, fits the classifier and saves it."""
    samples = []
    for names, most in ((stage.positives, 1.0), (stage.negatives, classifier.RAW_SHARE)):
        chosen = [part for part in job.parts if part.corpus in names]
        total = sum(part.documents for part in chosen)
        wanted = min(stage.documents, max(classifier.MIN_DOCUMENTS, int(most * total)))
        share = 0.0
        sample = classifier.make_sample(np.zeros(0), [])
        while share < 1 and len(sample.order) < min(wanted, total):
            # enough in all but few cases; then more are looked at
            share = min(1.0, max(2 * share, (1.1 * wanted + 100) / max(1, total)))
            tasks = [LearnTask(stage, part, job.folder, job.seed, share) for part in chosen]
            files = job.engine.map(save_sample, tasks, f"{job.name}: examples")
            sample = classifier.join([classifier.Sample.load(file) for file in files])
        samples.append(classifier.first(sample, wanted))
    classifier.fit(samples[0], samples[1], stage).save(job.folder / "model.npy")


def save_sample(task: LearnTask) -> pathlib.Path:
    """Saves the documents of a part that the classifier may learn from."""
    assert isinstance(task.stage, config.QualityClassifier)
    path = task.folder / f"{task.part.name}.sample.npy"
    pages = parts.read_pages(task.part)
    classifier.draw_sample(pages, task.stage, task.seed, task.share).save(path)
    return path


def save_keys(task: LearnTask) -> pathlib.Path:
    """Saves the keys of a part's pages."""
    assert isinstance(task.stage, config.ExactDuplicates)
    path = task.folder / f"{task.part.name}.keys.npy"
    rows = exact_duplicates.key_rows(parts.read_pages(task.part), task.stage)
    checksums.save_array(path, rows)
    return path


def save_sketch(task: LearnTask) -> pathlib.Path:
    """Saves the sketches of a part's pages."""
    assert isinstance(task.stage, config.FuzzyDuplicates)
    stem = task.folder / task.part.name
    if minhash.are_intact(stem):  # of an earlier start
        return stem
    sketches = [
        minhash.sketch([page.text for page in batch], [page.number for page in batch], task.stage)
        for batch in tokenize.group_by_length(
            parts.read_pages(task.part), ngrams.CHUNK_CHARS, lambda page: len(page.text)
        )
    ]
    minhash.save_sketches(stem, sketches)
    return stem


def count_task_ngrams(task: LearnTask) -> count_ngrams.Part:
    """Counts the documents of a part with each n-gram of the tasks."""
    source = data.Text(path=str(task.part.path))
    part = count_ngrams.Part(0, source, 1, task.part.name)
    count_ngrams.count_part(part, task.folder, lambda done: None)
    return part
