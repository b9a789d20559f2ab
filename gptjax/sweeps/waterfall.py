"""A sweep whose models are steps, each one change after the one before it: what each step changed
in loss, as a table and a waterfall, and what generation costs after it.

A step is shown at its best peak learning rate: the one with the lowest mean loss among the peaks
with the most seeds. The seeds that all peaks have are left out if there are others: with them, the
peaks to try further were chosen, and the best of several losses is too low on average. The change
of a step is the mean over seeds of its loss minus that of the step before with the same seed, with
a 95% interval of Student's t.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import count
from gptjax.config.model import Model
from gptjax.report import loss_plot
from gptjax.sweeps import comparison, generation_cost, report_page, tuning
from gptjax.sweeps.points import run_tokens

BETTER, WORSE, UNCLEAR, TOTAL = "#59A14F", "#D1495B", "#B8BEC7", "#4C78A8"


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The results of one step. losses: seed -> final loss at its best peak, of the seeds that are
    compared; empty if no run has finished. is_at_edge: whether the best peak is the lowest or the
    highest of several. change: from the step before; None if there is none, or no seed in common.
    """

    name: str
    arm: comparison.ArmResult
    losses: dict[int, float]
    is_at_edge: bool
    change: comparison.MeanInterval | None

    @property
    def loss(self) -> comparison.MeanInterval | None:
        return comparison.mean_interval(list(self.losses.values())) if self.losses else None

    @property
    def model(self) -> Model:
        return self.arm.config.model

    @property
    def peak(self) -> float:
        return self.arm.config.train.schedule.peak_lr


def name_arms(
    results: Sequence[comparison.ArmResult], names: Sequence[str]
) -> list[list[comparison.ArmResult]]:
    """Returns the arms of each step, labeled with its name and their peak. ValueError if there are
    not as many models as names."""
    arms = {id(result.runs[0].point): result for result in results}
    groups = tuning.group_by_model([result.runs[0].point for result in results])
    if len(groups) != len(names):
        raise ValueError(f"the sweep names {len(names)} steps, but its points are {len(groups)}")
    return [
        [
            dataclasses.replace(arm, label=f"{name}, peak {arm.config.train.schedule.peak_lr:g}")
            for arm in (arms[id(point)] for point in group)
        ]
        for name, group in zip(names, groups, strict=True)
    ]


def compare_steps(
    steps: Sequence[Sequence[comparison.ArmResult]], names: Sequence[str]
) -> list[StepResult]:
    """Returns the result of each step from its arms, which differ in their peak."""
    results: list[StepResult] = []
    for name, arms in zip(names, steps, strict=True):
        best, losses = choose_arm(arms)
        peaks = sorted(arm.config.train.schedule.peak_lr for arm in arms)
        is_at_edge = len(peaks) > 1 and best.config.train.schedule.peak_lr in (peaks[0], peaks[-1])
        change = paired_change(results[-1].losses, losses) if results else None
        results.append(StepResult(name, best, losses, is_at_edge, change))
    return results


def choose_arm(
    arms: Sequence[comparison.ArmResult],
) -> tuple[comparison.ArmResult, dict[int, float]]:
    """Returns the arm of the best peak and its final losses by seed, those of the seeds that all
    peaks have left out if there are others; the first arm and {} if no run has finished."""
    losses = [
        {run.config.seed: run.final_loss for run in arm.runs if run.final_loss is not None}
        for arm in arms
    ]
    finished = [(arm, found) for arm, found in zip(arms, losses, strict=True) if found]
    if not finished:
        return arms[0], {}
    n_most = max(len(found) for _, found in finished)
    in_all_peaks = set.intersection(*(set(found) for _, found in finished))

    def drop_common_seeds(found: dict[int, float]) -> dict[int, float]:
        return {s: loss for s, loss in found.items() if s not in in_all_peaks} or found

    candidates = [
        (arm, drop_common_seeds(found)) for arm, found in finished if len(found) == n_most
    ]
    return min(candidates, key=lambda pair: statistics.fmean(pair[1].values()))


def paired_change(
    before: dict[int, float], after: dict[int, float]
) -> comparison.MeanInterval | None:
    """Returns the mean of after - before over the seeds of both; None if there is none."""
    differences = [after[seed] - before[seed] for seed in after if seed in before]
    return comparison.mean_interval(differences) if differences else None


# --- report ---------------------------------------------------------------------------------------

COLUMNS = (
    "step",
    "seeds",
    "validation loss",
    "change",
    "peak",
    "parameters",
    "without tables",
    "FLOPs per token",
    "tokens",
    "cache bytes per token",
)
SPEED_COLUMN = "decode tokens/s"
NOTE = (
    "Change: from the step before, seed by seed, with a 95% interval (Student's t); the last row "
    "is the last step against the first. Losses are at the best peak learning rate of each step, "
    "without the seed on which all peaks were tried, if there are others. Cache: bfloat16, one row "
    "of the whole context divided by its tokens."
)


def waterfall_section(
    results: Sequence[comparison.ArmResult], path: Path, names: Sequence[str], decode_rounds: int
) -> report_page.Section:
    """Returns the report's section on the steps. decode_rounds: for the speed of decoding, which is
    left out if 0."""
    steps = compare_steps(name_arms(results, names), names)
    models = [step.model for step in steps]
    speeds = generation_cost.decode_speeds(models, decode_rounds) if decode_rounds else []
    rows: list[tuple[str, ...]] = [
        (
            step.name,
            f"{len(step.losses)}",
            str(step.loss) if step.loss else "not finished",
            "" if number == 0 else report_page.format_difference(step.change),
            f"{step.peak:g}" + (" (edge)" if step.is_at_edge else "") if step.losses else "",
            f"{count.parameters(step.model):,}",
            f"{count.non_embedding_parameters(step.model):,}",
            f"{count.train_flops_per_token(step.model):.3g}",
            f"{run_tokens(step.arm.config):,}",
            f"{generation_cost.cache_bytes_per_token(step.model):,.0f}",
            *([f"{speeds[number]:,.0f}"] if speeds else []),
        )
        for number, step in enumerate(steps)
    ]
    total = paired_change(steps[0].losses, steps[-1].losses)
    columns = (*COLUMNS, *([SPEED_COLUMN] if speeds else []))
    rows.append(
        ("in all", "", "", report_page.format_difference(total), *[""] * (len(columns) - 4))
    )
    unclear = [
        step.name for step in steps[1:] if step.change is None or not step.change.is_significant
    ]
    note = f"{NOTE} Not clear: {', '.join(unclear)}." if unclear else NOTE
    plot_waterfall(steps, path)
    return report_page.Section("Steps", columns, tuple(rows), note, path)


def plot_waterfall(steps: Sequence[StepResult], path: Path) -> None:
    """Draws a bar from the loss of each step to that of the next, with the interval of the change
    at its end; a step whose interval holds 0 is gray."""
    from matplotlib import patches

    figure = loss_plot.new_figure(9, 1.5 + 0.4 * len(steps))
    axes = figure.subplots()
    losses = [step.loss for step in steps]
    for number, (step, before, after) in enumerate(
        zip(steps, [None, *losses], losses, strict=False)
    ):
        if after is None:
            _write(axes, number, "not finished")
            continue
        axes.plot([after.mean] * 2, [number, number + 1], color=loss_plot.LR, lw=0.8, zorder=1)
        if before is None:
            axes.plot([after.mean], [number], "D", color=TOTAL, ms=6)
            _write(axes, number, f"{after.mean:.3f}")
        else:
            _draw_change(axes, number, before.mean, after.mean, step.change)
    if losses[-1] is not None:
        axes.plot([losses[-1].mean], [len(steps)], "D", color=TOTAL, ms=6)
        total = paired_change(steps[0].losses, steps[-1].losses)
        _write(axes, len(steps), f"{losses[-1].mean:.3f}   {_change_text(total)}")
    labels = [*(step.name for step in steps), "in all"]
    axes.set_yticks(range(len(labels)), [loss_plot.escape(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    _limit_axis(axes, steps)
    axes.set_xlabel(
        "validation loss (nats per token); lines: 95% interval of the change", color=loss_plot.INK
    )
    axes.grid(True, axis="x", color=loss_plot.FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    colors = {"better": BETTER, "worse": WORSE, "not clear": UNCLEAR}
    figure.legend(
        handles=[patches.Patch(color=color, label=name) for name, color in colors.items()],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(path, dpi=130)


def _draw_change(
    axes, number: int, start: float, end: float, change: comparison.MeanInterval | None
) -> None:
    is_clear = change is not None and change.is_significant
    color = (BETTER if end < start else WORSE) if is_clear else UNCLEAR
    axes.barh(number, end - start, left=start, height=0.6, color=color, zorder=2)
    if change is not None and change.n > 1:
        half = [change.half_width]
        axes.errorbar(
            [end],
            [number],
            xerr=half,
            fmt="|",
            ms=9,
            color=loss_plot.INK,
            lw=1,
            capsize=3,
            zorder=3,
        )
    _write(axes, number, _change_text(change))


def _change_text(change: comparison.MeanInterval | None) -> str:
    """The change and its interval, to three decimals."""
    if change is None:
        return "no seed in common"
    return f"{change.mean:+.3f}" + (
        f" \N{PLUS-MINUS SIGN} {change.half_width:.3f}" if change.n > 1 else ""
    )


def _limit_axis(axes, steps: Sequence[StepResult]) -> None:
    """The axis shows the means and their intervals, but no interval farther than the means are
    apart."""
    means = [step.loss.mean for step in steps if step.loss is not None]
    if not means:
        return
    span = max(means) - min(means) or 0.01
    ends = [
        (step.loss.mean - half, step.loss.mean + half)
        for step in steps
        if step.loss is not None and step.change is not None and step.change.n > 1
        for half in [min(step.change.half_width, span)]
    ]
    low, high = min(means + [a for a, _ in ends]), max(means + [b for _, b in ends])
    margin = 0.04 * (high - low) or 0.01
    axes.set_xlim(low - margin, high + margin)


def _write(axes, number: int, text: str) -> None:
    """Writes at the end of a row, right of the axes."""
    axes.annotate(
        text,
        (1.01, number),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=9,
        color=loss_plot.INK,
        annotation_clip=False,
    )
