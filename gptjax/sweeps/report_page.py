"""The report of a sweep: report.md with the table, report.html with the table and all pictures in
one file, and the pictures as files."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import count
from gptjax.report import console, formats, html_page, loss_plot
from gptjax.sweeps import comparison, run_status

COLORS = ("#4C78A8", "#D1495B", "#59A14F", "#B07AA1", "#F28E2B", "#76B7B2", "#9C755F", "#1F2937")
COLUMNS = (
    "arm",
    "seeds",
    "validation loss",
    "difference from baseline",
    "parameters",
    "FLOPs of a run",
    "tokens/s",
    "time of a run",
)


@dataclasses.dataclass(frozen=True)
class Section:
    """An additional part of the report: a table, remarks on it, and its picture."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    picture: Path


def table_rows(results: Sequence[comparison.ArmResult]) -> list[tuple[str, ...]]:
    """Returns the cells of the table of arms, one row per arm, under COLUMNS."""
    rows = []
    for number, result in enumerate(results):
        n = len(result.runs)
        label = f"{result.label} (to check the laws)" if result.holdout else result.label
        seeds = f"{n}" if not result.n_unfinished else f"{n - result.n_unfinished} of {n} finished"
        difference = "baseline" if number == 0 else format_difference(result.difference)
        durations = [run.seconds for run in result.runs if run.final_loss is not None]
        rows.append(
            (
                label,
                seeds,
                str(result.loss) if result.loss else "not finished",
                difference,
                f"{count.parameters(result.config.model):,}",
                f"{result.flops:.2e}",
                f"{result.tokens_per_s:,.0f}" if result.tokens_per_s else "",
                console.human_duration(statistics.fmean(durations)) if durations else "",
            )
        )
    return rows


def format_difference(interval: comparison.MeanInterval | None) -> str:
    """Returns a difference with its interval, and whether that excludes 0."""
    if interval is None:
        return "no seed in common"
    text = f"{interval.mean:+.4f}" + (
        "" if math.isnan(interval.half_width) else f" \N{PLUS-MINUS SIGN} {interval.half_width:.4f}"
    )
    return text + (
        ""
        if math.isnan(interval.half_width)
        else ", clear"
        if interval.is_significant
        else ", not clear"
    )


def render_markdown(
    name: str,
    description: str,
    results: Sequence[comparison.ArmResult],
    failures: Sequence[str],
    sections: Sequence[Section],
) -> str:
    """Returns report.md. Its columns are aligned, so that it is readable as plain text too."""
    notes = [NOTE, *failures]
    lines = [
        f"# {run_status.one_line(name)}",
        "",
        run_status.one_line(description),
        "",
        *_markdown_table(COLUMNS, table_rows(results)),
        "",
        *map(run_status.one_line, notes),
    ]
    for part in sections:
        lines += [
            "",
            f"## {part.title}",
            "",
            *_markdown_table(part.columns, part.rows),
            "",
            part.note,
        ]
    return "\n".join([*lines, ""])


def _markdown_table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [
        head,
        *([run_status.one_line(cell).replace("|", "\\|") for cell in row] for row in body),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


NOTE = (
    "Mean and 95% interval over seeds, by Student's t; the differences are taken seed by seed. "
    "FLOPs are those of the model's formula, without the pairs of positions that a pattern masks."
)


def plot_curves(results: Sequence[comparison.ArmResult], path: Path) -> Path:
    """Draws the validation loss of every arm against tokens and against FLOPs: the mean over seeds,
    with a band from the lowest to the highest."""
    n_legend_rows = -(-len(results) // 2)
    figure = loss_plot.new_figure(12, 4.8 + 0.22 * n_legend_rows)
    left, right = figure.subplots(1, 2, sharey=True)
    for number, result in enumerate(results):
        flops = count.train_flops_per_token(result.config.model)
        points = _mean_curve(result)
        for axes, factor in ((left, 1.0), (right, flops)):
            if points:
                x, means, low, high = zip(*points, strict=True)
                x = [tokens * factor for tokens in x]
                color = COLORS[number % len(COLORS)]
                style = {
                    "color": color,
                    "ls": "-" if number < len(COLORS) else "--",
                    "marker": "o" if len(points) == 1 else "",
                }
                axes.plot(
                    x, means, lw=1.8, label=loss_plot.escape(result.label), **style
                )  # a line of one point is not seen
                axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    for axes, unit in ((left, "tokens"), (right, "FLOPs")):
        axes.set_xlabel(unit, color=loss_plot.INK)
        style_axes(axes)
    left.set_ylabel("validation loss (nats per token)", color=loss_plot.INK)
    if left.get_legend_handles_labels()[0]:
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=9,
        )
    figure.savefig(path, dpi=130)
    return path


def style_axes(axes) -> None:
    """Gives axes a logarithmic x axis and a grid; ticks at 1, 2 and 5 if the axis spans less than
    two decades."""
    import matplotlib.ticker

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 100 * low:
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(
            matplotlib.ticker.FuncFormatter(
                lambda x, _: formats.si(x) if 1 <= x < 1e15 else f"{x:g}"
            )
        )
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.grid(True, which="both", color=loss_plot.FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _mean_curve(result: comparison.ArmResult) -> list[tuple[float, float, float, float]]:
    """Returns (tokens, mean, lowest, highest) at the tokens, above 0, at which every run of the arm
    that has a curve was evaluated."""
    curves = [dict(run.curve) for run in result.runs if run.curve]
    common_tokens = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return [
        (tokens, statistics.fmean(losses), min(losses), max(losses))
        for tokens in common_tokens
        if tokens > 0
        for losses in [[curve[tokens] for curve in curves]]
    ]


def plot_bars(results: Sequence[comparison.ArmResult], path: Path) -> Path:
    """Draws the final losses of every arm: a dot per seed, and the mean with its interval."""
    figure = loss_plot.new_figure(9, 1.2 + 0.45 * len(results))
    axes = figure.subplots()
    for number, result in enumerate(results):
        finals = [run.final_loss for run in result.runs if run.final_loss is not None]
        axes.plot(finals, [number] * len(finals), "o", ms=4, color=COLORS[0], alpha=0.45)
        if result.loss is not None:
            half = 0.0 if math.isnan(result.loss.half_width) else result.loss.half_width
            axes.errorbar(
                [result.loss.mean], [number], xerr=[half], fmt="D", ms=5, color=COLORS[1], capsize=4
            )
    axes.set_yticks(range(len(results)), [loss_plot.escape(result.label) for result in results])
    axes.set_ylim(len(results) - 0.4, -0.6)  # the first arm on top
    axes.set_xlabel(
        "validation loss (nats per token): seeds, mean and 95% interval", color=loss_plot.INK
    )
    axes.grid(True, axis="x", color=loss_plot.FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    return path


def render_html(
    name: str,
    description: str,
    results: Sequence[comparison.ArmResult],
    failures: Sequence[str],
    pictures: Sequence[Path],
    sections: Sequence[Section],
) -> str:
    """Returns report.html, a single file that contains the pictures."""

    title = run_status.one_line(name)
    lines = [run_status.one_line(description), NOTE, *map(run_status.one_line, failures)]
    about, note, *problems = (f"<p>{html_page.escape(line)}</p>" for line in lines)
    parts = [
        f"<h2>{part.title}</h2>\n{html_page.table(part.columns, part.rows)}\n"
        f"<p>{html_page.escape(part.note)}</p>\n{_image(part.picture)}"
        for part in sections
    ]
    return html_page.page(
        title,
        [
            f"<h1>{html_page.escape(title)}</h1>{about}",
            html_page.table(COLUMNS, table_rows(results)),
            "".join([note, *problems]),
            *map(_image, pictures),
            *parts,
        ],
    )


def _image(picture: Path) -> str:
    return html_page.image(picture.read_bytes(), picture.stem)
