"""Config of a supervised task and of fine-tuning on it: GPT-1 sections 3.2 and 3.3."""

import re
from typing import Annotated, Literal

from gptjax.config.record import Bounds, Fraction, Positive, Rows, record


@record
class Everything:
    """Transfer all layers of the pre-trained model, and its embeddings."""


@record
class Layers:
    """Transfer only the embeddings and the first `n` layers; the others are initialized anew. GPT-1
    Figure 2, left.
    """

    n: Annotated[int, Bounds(0, 10_000)]
    """Layers that are transferred; 0: only the embeddings."""


@record
class Nothing:
    """Transfer nothing but the model's sizes; all parameters are initialized anew. GPT-1 Table 5,
    without pre-training.
    """


Transfer = Everything | Layers | Nothing


@record
class ClassificationTask:
    """A supervised task: the columns of its examples, its labels, its metric and its
    hyperparameters.

    The data are train, dev and test, each a local .tsv, .csv or .jsonl file or, where train is
    None, the TFDS data set `tfds`.
    """

    kind: Literal["classification", "entailment", "similarity", "choice"]
    """Input transformation (GPT-1 Figure 1). classification: one text; entailment: premise and
    hypothesis, in order; similarity: two texts, read in both orders; choice: the texts of a
    context, and answers."""
    fields: tuple[str, ...]
    """Columns of the texts; of a choice, those of the context, which follow one another."""
    answers: tuple[str, ...] = ()
    """Columns of a choice's answers: one each, or one column that holds a list. () for other
    kinds."""
    label: str
    """Column of the label, which is one of `labels` or its number."""
    labels: tuple[str, ...]
    """Classes, in order; () in a recipe: those that the training examples have."""
    metric: Literal["accuracy", "f1", "matthews", "pearson"]
    """How answers are scored: accuracy, F1 of the second class, Matthews correlation, or Pearson
    correlation (in percent)."""
    train: str | None = None
    """Local file of training examples (.tsv, .csv or .jsonl); None: from TFDS."""
    dev: str | None = None
    """Local file of development examples."""
    test: str | None = None
    """Local file of test examples; None: none, or TFDS's."""
    tfds: str | None = None
    """TFDS data set that is read where `train` is None."""
    splits: tuple[str, ...] = ("train", "validation", "test")
    """Its splits: train, dev, and test if there is one."""
    data_dir: str | None = None
    """Directory of prepared TFDS data sets; None: TFDS' own default."""
    submission: str | None = None
    """GLUE's name of the task, for a file of predictions as its server takes it; None: no such
    file."""
    index: str = "idx"
    """Column that numbers examples in that file; where it is absent they are counted."""
    paper: Annotated[float, Bounds(0, 100)] | None = None
    """GPT-1's score in percent (Tables 2 to 4), printed for comparison."""
    transfer: Transfer = Everything()
    """What is transferred from the pre-trained model."""
    lm_weight: Annotated[float, Bounds(0, 1e6)] = 0.5
    """Weight of the auxiliary language-modeling loss: lambda of GPT-1 equation 5; 0: none."""
    dropout: Fraction = 0.1
    """On the hidden state that the classifier reads."""
    epochs: Annotated[int, Bounds(1, 10**6)] = 3
    """Passes over the training examples."""
    batch_examples: Rows = 32
    """Examples of one update."""
    peak_lr: Positive = 6.25e-5
    """Highest learning rate: linear from 0 over the warm-up, then linear to 0."""
    warmup_fraction: Fraction = 0.002
    """Share of all steps that the warm-up takes."""

    def __post_init__(self):
        texts = {"classification": 1, "entailment": 2, "similarity": 2}
        if self.kind in texts and len(self.fields) != texts[self.kind]:
            raise ValueError(
                f"task.fields={self.fields}: a task of kind {self.kind} reads {texts[self.kind]}; "
                "name as many columns"
            )
        if (self.kind == "choice") != bool(self.answers) or not self.fields:
            raise ValueError(
                f"task.answers={self.answers}: name the columns of the answers where kind=choice, "
                "and only there"
            )
        if len(self.labels) == 1 or len(set(self.labels)) < len(self.labels):
            raise ValueError(
                f"task.labels={self.labels}: give at least two different ones, each once, or () "
                "for those of the examples"
            )
        if self.metric == "pearson" and self.labels != tuple(
            map(str, range(max(2, len(self.labels))))
        ):
            raise ValueError(
                f"task.labels={self.labels}: a label of metric=pearson is a number from 0 on: give "
                "0, 1, 2, ... up to its highest"
            )
        if self.kind == "choice" and not self.labels:
            raise ValueError(
                "task.labels=(): name the answers of a choice, as task.label does, in the order of "
                "task.answers"
            )
        if self.metric in ("f1", "matthews") and len(self.labels) not in (0, 2):
            raise ValueError(
                f"task.metric={self.metric} is of two classes, and task.labels={self.labels}: give "
                "two labels, or another metric"
            )
        if len(self.splits) not in (2, 3):
            raise ValueError(
                f"task.splits={self.splits}: name those of train and dev, and of test if there is "
                "one"
            )
        if self.submission is not None and not re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.submission
        ):
            raise ValueError(
                f"task.submission={self.submission!r}: it names a file of predictions/: give "
                "letters, digits, dots, - and _, or None"
            )

    @property
    def has_files(self) -> bool:
        """Whether any of the data are local files."""
        return any(path is not None for path in (self.train, self.dev, self.test))

    @property
    def available_splits(self) -> tuple[str, ...]:
        """The splits that exist among train, dev and test; test is optional."""
        has_test = self.test is not None or (
            self.train is None and self.tfds is not None and len(self.splits) > 2
        )
        return ("train", "dev", "test") if has_test else ("train", "dev")

    @property
    def n_sequences(self) -> int:
        """Number of sequences that the model reads per example."""
        return len(self.labels) if self.kind == "choice" else 2 if self.kind == "similarity" else 1

    @property
    def n_outputs(self) -> int:
        """Outputs of the linear layer: one per class, or a single score for each answer of a
        choice.
        """
        return 1 if self.kind == "choice" else len(self.labels)
