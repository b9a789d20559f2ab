"""What a task of in-context learning is: items, how they are put and scored, and what the papers
report. One file of tasks/ a task."""

import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gptjax.config.evaluation import Protocol

GRADES, GRADE = (
    "grades",
    "grade",
)  # the fact of an item whose completions have grades; the metric of that
Row = Mapping[str, Any]  # one line of a .jsonl file, or one example of TFDS, text decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One question as the model is asked it.

    contexts: the text that all completions follow, or one text for each (Winograd schemas: the
    ending is what is compared).
    completions: what may follow, each with its own leading space or newline, or one that follows
    all contexts; of a task that writes, what demonstrations show; of a text that is read whole, the
    text. right: the numbers of those that are right; empty if not known, as in test sets, or if
    none is, which none_is_right then says. answers: of a task that writes, every text that is
    right. group: items that count together; one of them all is a demonstration. units: of a text
    that is read whole, what the log-likelihood is divided by; 0: its tokens. facts: what else the
    task's scorer needs; and "hint", the end of a context that stays where the context is too
    long: then what stands before it loses its end, not its beginning. What can be written as
    JSON. demonstration: how it is shown, where that is more than a context with its completion."""

    id: str
    contexts: tuple[str, ...]
    completions: tuple[str, ...]
    right: tuple[int, ...] = (0,)
    answers: tuple[str, ...] = ()
    group: str = ""
    units: int = 0
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    demonstration: str = ""
    none_is_right: bool = False

    @property
    def has_answer(self) -> bool:
        """Whether what is right is known, so that an answer can be scored."""
        return bool(self.right or self.answers or self.none_is_right)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is compared: each completion with the context that it follows."""
        n = max(len(self.contexts), len(self.completions))
        contexts, completions = (
            texts * n if len(texts) == 1 else texts for texts in (self.contexts, self.completions)
        )
        return list(zip(contexts, completions, strict=True))

    @property
    def as_demonstration(self) -> str:
        """As a demonstration: the context with its first right completion. Items of which none
        is right cannot be shown."""
        return self.demonstration or "".join(self.pairs[self.right[0]])

    @functools.cached_property
    def content_key(self) -> tuple[tuple[str, ...], frozenset[str], str]:
        """(contexts, completions, the demonstration), each without regard to case, spaces and
        Unicode's variants of a character."""
        demonstration = self.as_demonstration if self.demonstration or self.right else ""
        return (
            tuple(map(_normal_form, self.contexts)),
            frozenset(map(_normal_form, self.completions)),
            _normal_form(demonstration),
        )


def _normal_form(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperScores:
    """A paper's scores in percent (perplexities as they are), by config: gpt3_small ... or
    gpt2_124m ...; metric, and which number of shots: "zero", "one", "few" (protocol.shots)."""

    paper: str
    metric: str
    shots: str
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """items: a row -> its items, put as for that number of shots (some tasks have another wording
    without demonstrations).
    Rows come from a local .jsonl file with the columns of `schema`, else from TFDS' `tfds`, whose
    features `from_tfds` maps to them, and `merge_rows` puts those together that are one row; or
    `make_rows` makes them: (protocol, seed, split) -> rows; task_data.py reads them, and `link`
    gives each what it needs of the others. schema: column -> its type ("text", "number", "truth", a
    list of one: "[text]", "[[text]]") and, after a colon, what it holds; each row has an `id`
    besides, its number if the data have none. splits: (what is asked, what demonstrations are drawn
    from), equal where a task has one set. example: a made-up row, or the paper's own. data_hint:
    how to get the data, a line. score: of a task that writes, (metric, what it wrote, item) -> 0 to
    1; None: scorers.corpus_bleu scores all together. scorer_source: the official scorer's source,
    where there is one. conventions: other ways to ask this task, by name ("gpt2").
    extra_metrics: metrics that it can tell besides its protocol's and those like it.
    auto_fields: of the protocol's shots, stops and n_tokens those that nobody chose, and that
    are fitted to the data (TaskRun.fit_to_data)."""

    name: str
    summary: str
    protocol: Protocol
    items: Callable[[Row, Protocol, int], Iterable[Item]]
    schema: Mapping[str, str]
    example: Row
    splits: tuple[str, str] = ("validation", "train")
    tfds: str | None = None
    from_tfds: Callable[[Row], Row] = dict
    merge_rows: Callable[[Iterable[Row]], Iterable[Row]] = iter
    link: Callable[[Iterable[Row]], Iterable[Row]] = iter
    make_rows: Callable[[Protocol, int, str], Iterable[Row]] | None = None
    data_hint: str = ""
    score: Callable[[str, str, Item], float] | None = None
    scorer_source: str = ""
    paper_scores: tuple[PaperScores, ...] = ()
    conventions: Mapping[str, Protocol] = dataclasses.field(default_factory=dict)
    extra_metrics: tuple[str, ...] = ()
    auto_fields: frozenset[str] = frozenset()


def prompt_variant(protocol: Protocol, *variants: str) -> str:
    """Which of a task's wordings is asked for; the first unless told. Raises ValueError with
    those that there are."""
    if protocol.prompt_variant not in ("", *variants):
        raise ValueError(
            f"prompt_variant={protocol.prompt_variant}: this task has {', '.join(variants)}"
        )
    return protocol.prompt_variant or variants[0]


GPT2_CONFIGS = ("gpt2_124m", "gpt2_355m", "gpt2_774m", "gpt2_1558m")
GPT3_CONFIGS = (
    "gpt3_small",
    "gpt3_medium",
    "gpt3_large",
    "gpt3_xl",
    "gpt3_2b7",
    "gpt3_6b7",
    "gpt3_13b",
    "gpt3_175b",
)


def gpt2_scores(metric: str, *scores: float) -> tuple[PaperScores, ...]:
    """GPT-2's row of Table 3, or of another: smallest model first; a single score is the
    largest's."""
    return (
        PaperScores(
            paper="GPT-2",
            metric=metric,
            shots="zero",
            scores=dict(zip(GPT2_CONFIGS[-len(scores) :], scores, strict=True)),
        ),
    )


def gpt3_scores(
    metric: str, zero: str = "", one: str = "", few: str = ""
) -> tuple[PaperScores, ...]:
    """GPT-3's row of Table H.1, as printed: scores from Small to 175B, slashes between; one alone
    is 175B's.

    A row that its task calls "of lower confidence" is one of which no clean transcription was
    found: single digits may be wrong."""
    rows = {"zero": zero, "one": one, "few": few}
    numbers = {shots: [float(x) for x in row.split("/")] for shots, row in rows.items() if row}
    return tuple(
        PaperScores(
            paper="GPT-3",
            metric=metric,
            shots=shots,
            scores=dict(zip(GPT3_CONFIGS[-len(values) :], values, strict=True)),
        )
        for shots, values in numbers.items()
    )
