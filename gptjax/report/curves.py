"""The picture of in-context learning, from the results of evaluations: accuracy against demonstrations, a line a model, with and without
the task's description (GPT-3 Figure 1.2); and the mean over tasks against parameters, zero-, one- and few-shot (Figure 1.3)."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gptjax.report import plots

COLOURS = ("#9CC5E8", "#4C78A8", "#1F3A5F", "#D1495B", "#6B7280", "#E8A33D", "#3C8D5A", "#7B4FA3")
SHOTS = {"zero-shot": min, "one-shot": lambda ks: 1 if 1 in ks else None, "few-shot": max}
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "bits_per_character")
Record = dict[str, Any]


def read(folders: Iterable[Path]) -> list[Record]:
    """All records in these folders. ValueError if there are none."""
    folders = list(folders)
    found = [json.loads(path.read_text()) for folder in folders for path in sorted(folder.glob("*.json"))]
    if not found:
        raise ValueError(f"no results are in {', '.join(map(str, folders))}: let python -m gptjax.evaluate make some")
    return found


def draw(folders: Iterable[Path], path: Path) -> None:
    """A panel a task, and one of their mean against parameters, as a .png. ValueError if there is nothing to draw."""
    records = read(folders)
    tasks = list(dict.fromkeys(record["task"] for record in records))
    models = sorted({(record["model"]["parameters"], record["model"]["name"]) for record in records})
    wide = min(3, len(tasks) + 1)
    high = -(-(len(tasks) + 1) // wide)
    figure = plots.canvas(4.2 * wide, 3.4 * high)
    panels = figure.subplots(high, wide, squeeze=False).flatten()
    for axes, task in zip(panels, tasks, strict=False):
        by_shots(axes, [record for record in records if record["task"] == task], models)
    by_size(panels[len(tasks)], records)
    for axes in panels[len(tasks) + 1 :]:
        axes.remove()
    lines = {label: line for axes in panels[: len(tasks)] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(len(lines), wide), frameon=False, fontsize=9)
    panels[len(tasks)].legend(frameon=False, fontsize=8)
    for axes in panels[: len(tasks) + 1]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main_score(record: Record) -> dict[str, Any]:
    """The score of the protocol's own metric."""
    return next(iter(record["scores"].values()))


def by_shots(axes: Any, records: Sequence[Record], models: Sequence[tuple[int, str]]) -> None:
    """Figure 1.2: a line a model; dashed where there was no description though others of the task had one."""
    from gptjax.report import console

    described = any(record["described"] for record in records)
    for (parameters, name), colour in zip(models, COLOURS * len(models), strict=False):
        for with_it in (True, False):
            mine = [record for record in records if record["model"]["name"] == name and record["described"] == with_it]
            points = sorted((record["mean_shots"], main_score(record)["value"], main_score(record)["error"] or 0.0) for record in mine)
            if not points:
                continue
            ks, values, errors = zip(*points, strict=True)
            style = "--" if described and not with_it else "-"
            label = f"{console.quantity(parameters)} parameters{', no description' if style == '--' else ''}"
            axes.errorbar(ks, values, errors, color=colour, ls=style, marker="o", ms=3, lw=1.6, capsize=2, label=label)
    ks = {record["mean_shots"] for record in records}
    axes.set_xscale("symlog", linthresh=1, base=2) if max(ks) > 4 else None
    axes.xaxis.set_major_formatter(lambda k, _: f"{k:g}")
    top = max(main_score(record)["value"] for record in records)
    if all(main_score(record)["metric"] not in LOWER_IS_BETTER for record in records):
        axes.set_ylim(0, max(1.08 * top, 5))  # or a task that nobody does would look like any other
    axes.set(title=records[0]["task"], xlabel="demonstrations (K)", ylabel=next(iter(records[0]["scores"])))


def by_size(axes: Any, records: Sequence[Record]) -> None:
    """Figure 1.3: the mean over those tasks that every model was asked, against parameters."""
    from gptjax.report import console

    sizes = sorted({record["model"]["parameters"] for record in records})
    for (name, choose), colour in zip(SHOTS.items(), COLOURS[::2], strict=False):
        found: dict[tuple[str, int], float] = {}
        for task in {record["task"] for record in records}:
            for size in sizes:
                these = [r for r in records if (r["task"], r["model"]["parameters"]) == (task, size)]
                mine = {r["shots"]: r for r in sorted(these, key=lambda r: r["described"])}  # described ones where there are both
                k = choose(mine) if mine else None
                if k is not None and (name != "zero-shot" or k == 0) and (name != "few-shot" or k > 1):
                    found[task, size] = main_score(mine[k])["value"]
        tasks = [task for task in {task for task, _ in found} if all((task, size) in found for size in sizes)]
        if tasks:
            means = [statistics.fmean(found[task, size] for task in tasks) for size in sizes]
            axes.plot(sizes, means, marker="o", color=colour, label=name)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, [console.quantity(size) for size in sizes])
    axes.set(title="all tasks", xlabel="parameters", ylabel="mean score")
