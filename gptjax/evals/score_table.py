"""The table of scores that an evaluation prints, with those of the papers."""

import math
from collections.abc import Sequence
from typing import Any

from gptjax.config import count, evaluation
from gptjax.configs import registry

# of evaluation.LastToken
LAST_TOKEN_NOTE = "its accuracy is of the last token of the word, its perplexity of the whole word"


class ScoreTable:
    """Table of scores next to the papers', in columns that fit the terminal; if task names do not
    fit before them, each is on a line of its own.
    """

    COLUMNS = ("task", "shots", "metric", "score", "error", "items", "papers")
    LEFT_ALIGNED = ("task", "metric", "papers")

    def __init__(self, task_runs: Sequence[Any], metadata: dict[str, Any], width: int):
        from gptjax.evals import metrics

        names = [
            (task_run, metric)
            for task_run in task_runs
            for metric in metrics.metric_names(task_run.task, task_run.protocol)
        ]
        cells = [
            (
                task_run.label,
                f"{task_run.shots:,}",
                metric,
                "1,234.56",
                "12.34",
                "10,000",
                paper_score(task_run, metric, metadata),
            )
            for task_run, metric in names
        ]
        self._widths = [max(map(len, column)) for column in zip(self.COLUMNS, *cells, strict=True)]
        self._metadata, self._last_label = metadata, ""
        self._label_on_own_line = sum(self._widths) + 2 * len(self.COLUMNS) > width

    def print_header(self, out: Any) -> None:
        """Prints the column names."""
        out.print(self._row(*self.COLUMNS), "bold")

    def print_scores(self, task_run: Any, record: dict[str, Any], out: Any) -> None:
        """Prints each metric of one task run."""
        if self._label_on_own_line and self._last_label != task_run.label:
            out.print(task_run.label)
        self._last_label = task_run.label
        for position, score in enumerate(record["scores"].values()):
            name, shots = (task_run.label, f"{task_run.shots:,}") if position == 0 else ("", "")
            value, error = (format_score(score[part]) for part in ("value", "error"))
            paper = paper_score(task_run, score["metric"], self._metadata)
            out.print(
                self._row(name, shots, score["metric"], value, error, f"{score['n']:,}", paper)
            )

    def _row(self, *cells: str) -> str:
        columns = list(zip(self.COLUMNS, cells, self._widths, strict=True))[
            self._label_on_own_line :
        ]
        padded_cells = (
            cell.ljust(width) if head in self.LEFT_ALIGNED else cell.rjust(width)
            for head, cell, width in columns
        )
        return (" " * self._label_on_own_line + "  ".join(padded_cells)).rstrip()


def format_score(value: float | None) -> str:
    """Formats a score or its error."""
    return "" if value is None else f"{value:,.2f}" if abs(value) < 1e5 else f"{value:.2e}"


def print_remarks(task_run: Any, record: dict[str, Any], n_ctx: int, out: Any) -> None:
    """Prints what a reader of the scores needs to know about the items."""
    if not record["scores"]:
        out.warn(
            f"{task_run.label}, {task_run.shots:,} shots: "
            f"no right answer of its {record['examples']:,} items is known, so there is no score"
        )
    if record["refused"]:
        reasons = "; ".join(list(record["refused"].values())[:3])
        out.warn(
            f"{task_run.label}: {len(record['refused']):,} items cannot be asked, and do not "
            f"count: {reasons}"
        )
    if record["unwritable"]:
        examples, method = ", ".join(record["unwritable"][:3]), task_run.protocol.method
        out.warn(
            f"{task_run.label}: no right answer of {len(record['unwritable']):,} items can be "
            f"written in {method.n_tokens} tokens and "
            f"before {', '.join(map(repr, method.stops)) or 'the end'}: item {examples}; set "
            f"{task_run.label}.method.n_tokens or .stops"
        )
    if record["fewer_shots"]:
        out.print(
            f"  {record['fewer_shots']:,} items had no room for {task_run.shots}: "
            f"{record['mean_shots']:.1f} on average",
            "dim",
        )
    if record["cut"]:
        out.print(
            f"  {record['cut']:,} items were longer than the context of {n_ctx:,}: their "
            f"{record['cut_at']} was left out",
            "dim",
        )
    if isinstance(task_run.protocol.method, evaluation.LastToken):
        out.print("  " + LAST_TOKEN_NOTE, "dim")


def paper_score(task_run: Any, metric: str, metadata: dict[str, Any]) -> str:
    """The paper's score of the model nearest in parameters, as "33.7 (gpt3_small)"; "" if it has
    none.
    """
    kind = (
        "zero"
        if task_run.shots == 0
        else "one"
        if task_run.shots == 1
        else "few"
        if task_run.shots == task_run.protocol.shots
        else None
    )
    scores = {
        name: value
        for paper in task_run.task.paper_scores
        if (paper.metric, paper.shots) == (metric, kind)
        for name, value in paper.scores.items()
    }
    if not scores:
        return ""
    size = {name: count.parameters(registry.config(name).model) for name in scores}
    nearest = min(scores, key=lambda name: abs(math.log(size[name] / metadata["parameters"])))
    return f"{scores[nearest]:g} ({nearest})"
