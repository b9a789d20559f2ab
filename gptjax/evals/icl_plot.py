"""Plots of in-context learning from evaluation results: accuracy by number of demonstrations with a
line per model, with and without the task's description (GPT-3 Figure 1.2); and the mean over tasks
by parameters, zero-, one- and few-shot (Figure 1.3).

Models are identified by their digest. The mean is over the tasks that every model has zero-, one-
and few-shot results for and that are scored in percent, since points over different tasks would not
be comparable. The plot lists the tasks left out.
"""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptjax.report import formats, loss_plot
from gptjax.runtime import checksums

COLORS = ("#9CC5E8", "#4C78A8", "#1F3A5F", "#D1495B", "#6B7280", "#E8A33D", "#3C8D5A", "#7B4FA3")
SHOT_KINDS = ("zero-shot", "one-shot", "few-shot")
NON_PERCENT_METRICS = ("perplexity", "bits_per_byte", "bits_per_character")
FORMATS = (".png", ".pdf", ".svg")
WRAP_WIDTH = 42  # characters of a line below the panel of the mean
Record = dict[str, Any]


def read_records(folders: Iterable[Path], warn: Callable[[str], None]) -> list[Record]:
    """Reads all score records in these folders; damaged ones are reported to `warn` and left out.
    Raises ValueError if there are none.
    """
    folders, records = list(folders), []
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        try:
            record = checksums.read(path)
        except ValueError as error:
            warn(f"{error}; it is left out: run python -m gptjax.evaluate to write it again")
            continue
        if "scores" in record and record["scores"]:
            records.append(record)
    if not records:
        raise ValueError(
            f"no results are in {', '.join(map(str, folders))}: run python -m gptjax.evaluate to "
            "make some"
        )
    return records


def check_format(path: Path) -> None:
    """Raises ValueError for a file name without a supported image format."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--curve={path}: a picture's name ends with {', '.join(FORMATS)}")


def draw(folders: Iterable[Path], path: Path, warn: Callable[[str], None]) -> None:
    """Draws a panel per task and one of their mean by parameters. Raises ValueError if there is
    nothing to draw.
    """
    check_format(path)
    records = select(read_records(folders, warn), warn)
    tasks = list(dict.fromkeys(panel_key(record) for record in records))
    models = labels(records)
    n_columns = min(3, len(tasks) + 1)
    n_rows = -(-(len(tasks) + 1) // n_columns)
    figure = loss_plot.new_figure(4.2 * n_columns, 3.4 * n_rows + 0.8)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, task in zip(panels, tasks, strict=False):
        plot_by_shots(axes, [record for record in records if panel_key(record) == task], models)
    plot_by_size(panels[len(tasks)], records)
    for axes in panels[len(tasks) + 1 :]:
        axes.remove()
    lines = {
        label: line
        for axes in panels[: len(tasks)]
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        lines.values(),
        lines,
        loc="outside lower center",
        ncols=min(len(lines), n_columns),
        frameon=False,
        fontsize=9,
    )
    if panels[len(tasks)].get_legend_handles_labels()[1]:
        panels[len(tasks)].legend(frameon=False, fontsize=8)
    for axes in panels[: len(tasks) + 1]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def labels(records: Sequence[Record]) -> dict[str, str]:
    """Returns a label for each model's digest: its parameters, in ascending order; with the name if
    sizes are equal, and the start of the digest if names are too.
    """

    models = {record["model"]["digest"]: record["model"] for record in records}
    models = dict(
        sorted(models.items(), key=lambda pair: (pair[1]["parameters"], pair[1]["name"], pair[0]))
    )
    names: dict[str, str] = {}
    for digest, model in models.items():
        same_size = [
            other for other in models.values() if other["parameters"] == model["parameters"]
        ]
        name = f"{formats.si(model['parameters'])} parameters"
        name += f", {model['name']}" if len(same_size) > 1 else ""
        name += (
            f" {digest[:6]}"
            if sum(other["name"] == model["name"] for other in same_size) > 1
            else ""
        )
        names[digest] = name
    return names


def main_score(record: Record) -> dict[str, Any]:
    """The score by the protocol's own metric."""
    return next(iter(record["scores"].values()))


def panel_key(record: Record) -> tuple[str, str]:
    """(task, metric), which identifies a panel."""
    return record["task"], main_score(record)["metric"]


def select(records: Sequence[Record], warn: Callable[[str], None]) -> list[Record]:
    """Returns one record for each model, task, number of demonstrations and presence of a
    description. Of several, by other seeds or methods, it keeps the one with the most items and
    reports that to `warn`.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        key = record["model"]["digest"], *panel_key(record), record["described"], record["shots"]
        groups.setdefault(key, []).append(record)
    for (_, task, _, _, shots), own_records in groups.items():
        if len(own_records) > 1:
            warn(
                f"{task}, {shots} shots: {len(own_records)} results of one model, with different "
                "seeds or protocols; the one with the most items is drawn"
            )
    return [
        max(own_records, key=lambda record: record["examples"]) for own_records in groups.values()
    ]


def plot_by_shots(axes: Any, records: Sequence[Record], models: Mapping[str, str]) -> None:
    """Figure 1.2: a line per model, dashed for results without a description if others of the task
    have one.
    """
    has_descriptions = any(record["described"] for record in records)
    for (digest, name), color in zip(models.items(), COLORS * len(models), strict=False):
        for with_description in (True, False):
            own_records = [
                record
                for record in records
                if record["model"]["digest"] == digest and record["described"] == with_description
            ]
            points = [(record["mean_shots"], main_score(record)) for record in own_records]
            if not points:
                continue
            points = sorted((k, score["value"], score["error"] or 0.0) for k, score in points)
            ks, values, errors = zip(*points, strict=True)
            style = "--" if has_descriptions and not with_description else "-"
            label = loss_plot.escape(f"{name}{', no description' if style == '--' else ''}")
            axes.errorbar(
                ks,
                values,
                errors,
                color=color,
                ls=style,
                marker="o",
                ms=3,
                lw=1.6,
                capsize=2,
                label=label,
            )
    ks = {record["mean_shots"] for record in records}
    axes.set_xscale("symlog", linthresh=1, base=2) if max(ks) > 4 else None
    axes.minorticks_off()
    axes.set_xticks(ticks := sorted({round(k) for k in ks}), [f"{k:,}" for k in ticks])
    if len(ks) == 1:
        axes.set_xlim(min(ks) - 1, max(ks) + 1)
    spans = [(score["value"], score["error"] or 0.0) for score in map(main_score, records)]
    task, metric = panel_key(records[0])
    # At least from 0 to 5; otherwise a task at chance level would look like any other.
    if metric not in NON_PERCENT_METRICS:
        axes.set_ylim(
            min(0.0, *(1.05 * (value - error) for value, error in spans)),
            max(5.0, *(1.05 * sum(span) for span in spans)),
        )
    axes.set(title=loss_plot.escape(task), xlabel="demonstrations (K)", ylabel=metric)


def scores_by_kind(records: Sequence[Record]) -> dict[str, float]:
    """Returns one model's available scores on one task: zero-shot, one-shot and with the most
    demonstrations; with the description if there are results both with and without.
    """
    by_shots = {
        record["shots"]: main_score(record)["value"]
        for record in sorted(records, key=lambda record: record["described"])
    }
    kinds = {
        "zero-shot": 0,
        "one-shot": 1,
        "few-shot": max([k for k in by_shots if k > 1], default=None),
    }
    return {kind: by_shots[k] for kind, k in kinds.items() if k in by_shots}


def mean_scores(
    records: Sequence[Record],
) -> tuple[dict[str, dict[str, float]], list[str], list[str]]:
    """Returns (shot kind -> model digest -> mean score, tasks in each mean, other tasks).

    Shot kinds are those for which every model has some result; tasks are those in percent for which
    every model has results of each kind.
    """
    models = list(dict.fromkeys(record["model"]["digest"] for record in records))
    tasks: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        tasks.setdefault(panel_key(record), {model: [] for model in models})[
            record["model"]["digest"]
        ].append(record)
    scores_by_task = {
        task: {model: scores_by_kind(own_records) for model, own_records in by_model.items()}
        for (task, metric), by_model in tasks.items()
        if metric not in NON_PERCENT_METRICS
    }
    shared_kinds = [
        kind
        for kind in SHOT_KINDS
        if all(any(kind in scores[model] for scores in scores_by_task.values()) for model in models)
    ]
    complete_tasks = (
        [
            task
            for task, scores in scores_by_task.items()
            if all(kind in scores[model] for kind in shared_kinds for model in models)
        ]
        if shared_kinds
        else []
    )
    used_kinds = shared_kinds if complete_tasks else []
    mean = {
        kind: {
            model: statistics.fmean(scores_by_task[task][model][kind] for task in complete_tasks)
            for model in models
        }
        for kind in used_kinds
    }
    return (
        mean,
        complete_tasks,
        list(dict.fromkeys(task for task, _ in tasks if task not in complete_tasks)),
    )


def plot_by_size(axes: Any, records: Sequence[Record]) -> None:
    """Figure 1.3: the mean over the tasks that every model has results for with every shot kind, by
    parameters; a point per model.
    """

    mean, included, excluded = mean_scores(records)
    parameters = {record["model"]["digest"]: record["model"]["parameters"] for record in records}
    sizes = sorted(set(parameters.values()))
    for kind, color in zip(SHOT_KINDS, COLORS[::2], strict=False):
        if kind not in mean:
            continue
        points = [(parameters[model], value) for model, value in mean[kind].items()]
        # The line goes through the mean of models of one size.
        means = [
            statistics.fmean(value for size, value in points if size == n_params)
            for n_params in sizes
        ]
        axes.plot(*zip(*points, strict=True), ls="", marker="o", ms=4, color=color)
        axes.plot(sizes, means, color=color, label=kind)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, [formats.si(size) for size in sizes])
    if not included:
        axes.text(
            0.5,
            0.5,
            "no task has results of all models\nwith all numbers of demonstrations",
            transform=axes.transAxes,
            ha="center",
        )
    title = f"mean of {len(included)} task{'s' * (len(included) != 1)}" if excluded else "all tasks"
    axes.set(title=title, xlabel="parameters" + _excluded_note(excluded), ylabel="mean score (%)")


def _excluded_note(excluded: Sequence[str]) -> str:
    """Lines below the axis that list the tasks not in the mean."""
    if not excluded:
        return ""
    lines = textwrap.wrap(f"without {', '.join(excluded)}", WRAP_WIDTH)
    lines = lines if len(lines) < 5 else [*lines[:4], f"... {len(excluded)} in all"]
    return "\n" + "\n".join(map(loss_plot.escape, lines))
