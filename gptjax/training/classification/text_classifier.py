"""A run of `python -m gptjax.finetune`, ready to classify by the parameters of its best epoch."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import finetuning, schema
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.classification import ClassificationTask
from gptjax.data import unicode
from gptjax.data.tokenizers import build
from gptjax.report import events, sync
from gptjax.runtime import run_dir
from gptjax.safety import word_classifier
from gptjax.sharding import device_mesh, rules, xla_options
from gptjax.training import checkpoint, state
from gptjax.training.classification import examples as labeled
from gptjax.training.classification import metrics, model, transformations

Print = Callable[[str], None]
Check = Callable[[], None]  # called between batches; it may raise, to end the work


def _go_on() -> None:
    """The Check of work that nothing ends."""


@dataclasses.dataclass(frozen=True)
class ClassifierRun:
    """A run of a task. bucket: its url, or None."""

    directory: Path
    bucket: str | None
    config: schema.Config

    @property
    def task(self) -> ClassificationTask:
        """Its task."""
        assert isinstance(self.config.task, ClassificationTask)
        return self.config.task


def open_run(path: str) -> ClassifierRun:
    """Reads the config of a run, given as a directory or as a bucket's url. Raises ValueError, in
    one line, if there is none that was fine-tuned on a task."""
    directory, bucket = run_dir.directory(path), run_dir.bucket_url(path)
    sync.BucketSync(directory, bucket).download()
    config = run_dir.load_config(directory)
    if not isinstance(config.task, ClassificationTask):
        raise ValueError(
            f"{directory} was not fine-tuned on a task: it has no labels to give; make such a run "
            "with python -m gptjax.finetune"
        )
    return ClassifierRun(directory, bucket, config)


class Classifier:
    """Scores examples of a run's task. devices: those of the run's mesh; None: all. Raises
    ValueError, in one line, for a run without a checkpoint, or with other files of its tokenizer.
    """

    def __init__(self, run: ClassifierRun, warn: Print, devices: list | None = None):
        xla_options.configure_runtime()
        config, self.task = run.config, run.task
        spec = config.data.tokenizer
        self.tokenizer = build.build(build.spec_in(spec, run.directory))
        self._config, self._mesh = config, device_mesh.make_mesh(config.mesh, devices)
        rules.check(config, self._mesh)
        train_step = model.build(config, self._mesh.devices.flat[0].platform, self._mesh)
        checkpoints = checkpoint.CheckpointReader(
            run.directory / "checkpoints" if run.bucket is None else f"{run.bucket}/checkpoints",
            warn,
        )
        steps = metrics.best_steps(
            events.read(run.directory), self.task.metric, checkpoints.steps()
        )
        abstract = state.abstract_state(config, train_step.model, train_step.tx, self._mesh)
        _, self._params, metadata = restore_best(checkpoints, run.directory, steps, abstract.params)
        if metadata["tokenizer"] != self.tokenizer.digest:
            raise ValueError(
                f"{run.directory} was trained with another tokenizer than {spec} is here: restore "
                "its original files"
            )
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        # The same as when it was scored.
        self.microbatch_rows = BatchSchedule(config, shards).largest_microbatch(
            metadata["microbatch_rows"]
        )
        self._score_fn = jax.jit(
            train_step.scores_and_losses,
            out_shardings=NamedSharding(self._mesh, PartitionSpec()),
            compiler_options=xla_options.options(self._mesh.devices.flat[0]),
        )

    @property
    def n_ctx(self) -> int:
        """Tokens of a sequence, at most."""
        return self._config.model.n_ctx

    def encode(
        self, examples: list[labeled.Example], parts: list[transformations.ExampleTokens]
    ) -> transformations.EncodedExamples:
        """Returns the rows of examples. parts: their tokens."""
        n_vocab = self._config.model.n_vocab - finetuning.N_SPECIAL_TOKENS
        return transformations.encode_examples(self.task, examples, parts, n_vocab, self.n_ctx)

    def predict(self, rows: np.ndarray, microbatch_rows: int) -> np.ndarray:
        """Returns the scores of each class, (B, classes), of rows of EncodedExamples."""
        activations = rules.PRESETS[self._config.mesh.sharding].activations
        with jax.set_mesh(self._mesh):
            y_BC, _ = metrics.predict(
                self._score_fn,
                self._params,
                rows,
                microbatch_rows,
                lambda part, letters: rules.put_on_mesh(part, letters, activations, self._mesh),
            )
        return y_BC


def restore_best(
    checkpoint_reader: Any, directory: Path, steps: Sequence[int], abstract_params: Any
) -> tuple[int, Any, dict]:
    """(step, parameters, metadata) of the first of these checkpoints that is whole;
    checkpoint_reader: a training.checkpoint.CheckpointReader, which names others. ValueError if
    none is."""
    if not steps:
        raise ValueError(
            f"{directory} has no epoch that was evaluated and saved: let python -m gptjax.finetune "
            "go on, or begin again with --run_dir"
        )
    step, tree, metadata = checkpoint_reader.restore(
        {"params": abstract_params}, prefix="params/", steps=steps[::-1]
    )
    return step, tree["params"], metadata


def probabilities(y_BC: np.ndarray) -> np.ndarray:
    """Softmax of scores of classes."""
    p_BC = np.exp(y_BC - y_BC.max(1, keepdims=True))
    return p_BC / p_BC.sum(1, keepdims=True)


class TextClassifier:
    """Label -> probability of texts of any length, on one device, in any thread. name: of the run's
    directory.

    A text that is longer than the classifier's context is read in windows, each beginning half a
    window after the last and the final one ending with the text: a label's probability is the
    greatest of any window, so those of several labels may sum to more than 1.
    """

    def __init__(self, run: ClassifierRun, warn: Print, check: Check = _go_on):
        if run.task.kind != "classification" or run.task.metric == "pearson":
            raise ValueError(
                f"{run.directory} was fine-tuned on a task of kind {run.task.kind} and metric "
                f"{run.task.metric}: give a run that labels single texts, as --config=own does"
            )
        self._classifier, self._check = _on_one_device(run, warn), check
        self.name, self.labels = run.directory.name, run.task.labels

    def tokenize(self, text: str) -> list[int]:
        """Returns the tokens that are read of a text."""
        return self._classifier.tokenizer.encode(unicode.replace_surrogates(text).strip())

    def __call__(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Returns label -> probability of each text. Raises ValueError for scores that are not
        finite."""
        limit = self._classifier.n_ctx - 2  # start and extract token
        parts = [list(windows(self.tokenize(text), limit)) for text in texts]
        p_MC = self._probabilities([window for part in parts for window in part])
        ends = np.cumsum([len(part) for part in parts])
        p_BC = [p_MC[end - len(part) : end].max(0) for end, part in zip(ends, parts, strict=True)]
        return [dict(zip(self.labels, map(float, p_C), strict=True)) for p_C in p_BC]

    def _probabilities(self, sequences: list[list[int]]) -> np.ndarray:
        """(M, labels) of sequences of tokens."""
        examples = [labeled.Example((), (), None, "")] * len(sequences)
        rows = self._classifier.encode(examples, [((ids,), ()) for ids in sequences]).rows
        return _probabilities(self._classifier, rows, self._check)


class PairClassifier:
    """Label -> probability of pairs of texts, on one device, in any thread. Raises ValueError for a
    run of other examples than those of pairs with columns of the names `fields`."""

    def __init__(
        self, run: ClassifierRun, fields: tuple[str, str], warn: Print, check: Check = _go_on
    ):
        if (run.task.kind, run.task.fields) != ("entailment", fields):
            raise ValueError(
                f"{run.directory} was fine-tuned on a task of kind {run.task.kind} with the fields "
                f"{run.task.fields}: give a run with task.kind=entailment and task.fields={fields}"
            )
        self._classifier, self._check = _on_one_device(run, warn), check
        self.labels, self.n_batch = run.task.labels, self._classifier.microbatch_rows

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
        """Returns label -> probability of each pair; a pair that is longer than the classifier's
        context is cut. Raises ValueError for scores that are not finite."""
        examples = [
            labeled.Example(
                tuple(unicode.replace_surrogates(x).strip() for x in pair), (), None, ""
            )
            for pair in pairs
        ]
        tokenizer = self._classifier.tokenizer
        parts = transformations.tokenize_examples(examples, tokenizer, lambda line: None)
        rows = self._classifier.encode(examples, parts).rows
        p_BC = _probabilities(self._classifier, rows, self._check)
        return [dict(zip(self.labels, map(float, p_C), strict=True)) for p_C in p_BC]


def _on_one_device(run: ClassifierRun, warn: Print) -> Classifier:
    xla_options.configure_runtime()  # before jax lists its devices
    # On one device a program has no collectives: it may run at the same time as any other.
    one_device = schema.Mesh(data=1, fsdp=1, sharding=run.config.mesh.sharding)
    config = dataclasses.replace(run.config, mesh=one_device)
    return Classifier(dataclasses.replace(run, config=config), warn, jax.local_devices()[:1])


def _probabilities(classifier: Classifier, rows: np.ndarray, check: Check) -> np.ndarray:
    """(B, labels) of rows of EncodedExamples, by two programs: microbatches, and what is left one
    by one where most of a microbatch would be padding."""
    size = classifier.microbatch_rows
    n_left = len(rows) % size
    n_whole = len(rows) - n_left * (n_left <= size // 4)
    parts = [(rows[i : i + size], size) for i in range(0, n_whole, size)]
    parts += [(rows[i : i + 1], 1) for i in range(n_whole, len(rows))]
    scores = []
    for part, n in parts:
        check()
        scores.append(classifier.predict(part, n))
    y_BC = np.concatenate(scores)
    metrics.check_finite(y_BC)
    return probabilities(y_BC)


def windows(ids: list[int], limit: int) -> Iterator[list[int]]:
    """Yields the tokens of a text in parts of `limit`, each beginning half a part after the last,
    so that what is at most half as long is whole in one of them."""
    last = max(0, len(ids) - limit)
    for start in range(0, last, max(1, limit // 2)):
        yield ids[start : start + limit]
    yield ids[last:]


def load(path: str, warn: Print, check: Check = _go_on) -> TextClassifier:
    """Returns the classifier of a run. Raises ValueError, in one line, if it cannot be had."""
    classifier = TextClassifier(open_run(path), warn, check)
    classifier([""])  # compiles, so that the first request does not wait for it
    return classifier


def make_loaders(
    warn: Print, check: Check = _go_on
) -> tuple[Callable[[str], TextClassifier], Callable[[str], word_classifier.CachedScorer]]:
    """Returns (what loads a classifier of texts, what loads one of words), from a run's path; each
    run once."""
    load_words = functools.partial(
        load_pairs, fields=word_classifier.FIELDS, warn=warn, check=check
    )
    return functools.cache(functools.partial(load, warn=warn, check=check)), word_classifier.opener(
        load_words
    )


def load_pairs(
    path: str, fields: tuple[str, str], warn: Print, check: Check = _go_on
) -> PairClassifier:
    """Returns the classifier of a run on pairs of texts. Raises ValueError, in one line, if it
    cannot be had."""
    classifier = PairClassifier(open_run(path), fields, warn, check)
    for n in (1, classifier.n_batch):  # compiles both programs
        classifier([("a", "a")] * n)
    return classifier
