"""The scaling laws of a sweep: which of its arms they go through, what they say of a larger model,
and their picture.

N: parameters without the two tables, as Kaplan et al. count them. D: tokens that a run has read. C
= 6 N D, in PF-days: GPT-3's Figure 3.1 leaves the embedding out too. Of arms of equal N and D the
best counts, so that learning rates may be searched as well. L(N) is fitted at the largest D that
three sizes have, L(D) at the largest such N, L(C) to the final losses that no cheaper arm reaches:
final, since before its end a run is worse by a learning rate that has not fallen yet.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gptjax.config import count
from gptjax.report import formats, loss_plot
from gptjax.sweeps import comparison, report_page, scaling_fit
from gptjax.sweeps.points import run_tokens

# times the largest size: what is predicted where the sweep has no points to check
EXTRAPOLATION_FACTOR = 2.0


@dataclasses.dataclass(frozen=True)
class ScalePoint:
    """Size N, tokens D and cost of an arm, and the final loss of each of its runs; losses is empty
    for an arm that is not trained."""

    N: float
    D: float
    losses: tuple[float, ...] = ()
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()  # (D, loss) of each run

    @property
    def C(self) -> float:
        return 6 * self.N * self.D / count.PF_DAY

    @property
    def mean_loss(self) -> float:
        return sum(self.losses) / len(self.losses)


@dataclasses.dataclass(frozen=True)
class Law:
    """A fit, with the arms that it goes through. inputs: an arm's variables of the law; applies_to:
    whether it covers such an arm.
    """

    name: str
    fit: scaling_fit.Fit
    arms: tuple[ScalePoint, ...]
    inputs: Callable[[ScalePoint], tuple[float, ...]]
    applies_to: Callable[[ScalePoint], bool]


def scaling_section(
    results: Sequence[comparison.ArmResult], path: Path
) -> report_page.Section | None:
    """Returns the report's section on scaling laws and their predictions, with its picture at
    `path`; None for a sweep of fewer than three sizes."""
    arms = scale_points([result for result in results if not result.holdout])
    if len({arm.N for arm in arms}) < 3:
        return None
    targets = scale_points([result for result in results if result.holdout], only_finished=False)
    targets = targets or [
        ScalePoint(EXTRAPOLATION_FACTOR * max(arm.N for arm in arms), max(arm.D for arm in arms))
    ]
    laws = fit_all(arms)
    plot_laws(laws, arms, targets, path)
    rows = [row for law in laws for row in _law_rows(law, targets)]
    scale, exponent = scaling_fit.GPT3_LAW
    rows += [
        (
            f"GPT-3's own: {scale} C^-{exponent}",
            "",
            "",
            *_format_scale(arm),
            f"{scale * arm.C**-exponent:.3f}",
            "",
        )
        for arm in targets
    ]
    return report_page.Section("Scaling laws", COLUMNS, tuple(rows), NOTE, path)


COLUMNS = (
    "law",
    "fitted, with 95% intervals",
    "error",
    "N",
    "D",
    "predicted, with 95% interval",
    "found",
)
NOTE = (
    "N: parameters without embeddings; D: tokens; C = 6 N D in PF-days. error: root mean square, "
    "relative to the loss. Intervals are of "
    "the law; a run's seed comes on top. GPT-3's own law is of its vocabulary and its text: "
    "compare its slope, not its level."
)


def scale_points(
    results: Sequence[comparison.ArmResult], only_finished: bool = True
) -> list[ScalePoint]:
    """Returns arms by N and D, in ascending order, the best one of equals. only_finished: leave out
    arms without a final loss."""
    best: dict[tuple[float, float], ScalePoint] = {}
    for result in results:
        finished_runs = [run for run in result.runs if run.final_loss is not None]
        if only_finished and not finished_runs:
            continue
        D = finished_runs[0].curve[-1][0] if finished_runs else run_tokens(result.config)
        arm = ScalePoint(
            float(count.non_embedding_parameters(result.config.model)),
            float(D),
            tuple(run.final_loss for run in finished_runs if run.final_loss is not None),
            tuple(run.curve for run in finished_runs),
        )
        other = best.setdefault((arm.N, arm.D), arm)
        if arm.losses and (not other.losses or arm.mean_loss < other.mean_loss):
            best[arm.N, arm.D] = arm
    return [best[key] for key in sorted(best)]


def fit_all(arms: Sequence[ScalePoint]) -> list[Law]:
    """Returns every law for which there are enough arms."""
    sizes, lengths = sorted({arm.N for arm in arms}), sorted({arm.D for arm in arms})
    longest = next((D for D in reversed(lengths) if sum(arm.D == D for arm in arms) >= 3), None)
    largest = next((N for N in reversed(sizes) if sum(arm.N == N for arm in arms) >= 3), None)
    cheapest = scaling_fit.pareto_frontier([[(arm.C, arm.mean_loss)] for arm in arms])
    candidates = [
        (
            f"L(N) at D = {formats.si(longest or 0)}",
            "power",
            [a for a in arms if a.D == longest],
            "N",
            lambda a: a.D == longest,
        ),
        (
            f"L(D) at N = {formats.si(largest or 0)}",
            "power",
            [a for a in arms if a.N == largest],
            "D",
            lambda a: a.N == largest,
        ),
        ("L(C)", "power", [a for a in arms if (a.C, a.mean_loss) in cheapest], "C", lambda a: True),
        (
            "L(N, D), Kaplan et al.",
            "kaplan",
            arms if len(lengths) > 1 else [],
            "ND",
            lambda a: True,
        ),
        (
            "L(N, D), Hoffmann et al.",
            "chinchilla",
            arms if len(lengths) > 2 else [],
            "ND",
            lambda a: True,
        ),
    ]
    laws = []
    for name, form, points, variables, applies in candidates:
        if len(points) <= len(scaling_fit.FORMS[form].parameters):
            continue

        def inputs(arm, variables=variables):
            return tuple(getattr(arm, name) for name in variables)

        runs = [
            (inputs(arm), loss, number) for number, arm in enumerate(points) for loss in arm.losses
        ]
        coordinates, losses, numbers = zip(*runs, strict=True)
        laws.append(
            Law(
                name,
                scaling_fit.fit(
                    scaling_fit.FORMS[form], list(zip(*coordinates, strict=True)), losses, numbers
                ),
                tuple(points),
                inputs,
                applies,
            )
        )
    return laws


def _law_rows(law: Law, targets: Sequence[ScalePoint]) -> list[tuple[str, ...]]:
    parameters = ", ".join(
        f"{name.replace('x', law.name[2])} = {v:.3g} ({low:.2g} to {high:.2g})"
        for name, (v, low, high) in law.fit.parameter_intervals().items()
    )
    formula = (
        law.fit.form.formula.replace("x", law.name[2])
        if len(law.fit.form.variables) == 1
        else law.fit.form.formula
    )
    rows = []
    for arm in [arm for arm in targets if law.applies_to(arm)] or [None]:
        head_cells = (
            (f"{law.name}: {formula}", parameters, f"{100 * law.fit.relative_error:.2f}%")
            if not rows
            else ("", "", "")
        )
        if arm is None:
            rows.append((*head_cells, "", "", "", ""))
            continue
        value, (low, high) = (
            law.fit.predict(*law.inputs(arm)),
            law.fit.predict_interval(*law.inputs(arm)),
        )
        found = (
            f"{arm.mean_loss:.3f} ({100 * (arm.mean_loss / value - 1):+.1f}%)"
            if arm.losses
            else "not trained"
        )
        rows.append(
            (*head_cells, *_format_scale(arm), f"{value:.3f} ({low:.3f} to {high:.3f})", found)
        )
    return rows


def _format_scale(arm: ScalePoint) -> tuple[str, str]:
    return formats.si(arm.N), formats.si(arm.D)


def plot_laws(
    laws: Sequence[Law], arms: Sequence[ScalePoint], targets: Sequence[ScalePoint], path: Path
) -> None:
    """Draws the laws and their predictions. Left: loss by size, for each number of tokens, with the
    better fitting law of both. Right: loss by compute with the curve of every run, as in GPT-3's
    Figure 3.1. A star is the measured loss of a target, a bar its predicted interval."""
    figure = loss_plot.new_figure(12, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    joint_law = min(
        (law for law in laws if len(law.fit.form.variables) == 2),
        key=lambda law: law.fit.relative_error,
        default=None,
    )
    single_laws = {law.name[:4]: law for law in laws if len(law.fit.form.variables) == 1}
    by_size, by_compute = joint_law or single_laws.get("L(N)"), single_laws.get("L(C)")
    _plot_by_size(left, by_size, arms, targets)
    _plot_by_compute(right, by_compute, arms, targets)
    for axes, law, quantity in ((left, by_size, "N"), (right, by_compute, "C")):
        _plot_predictions(axes, law, quantity, targets)
        if axes.get_legend_handles_labels()[0]:  # neither a law nor a target: nothing to explain
            axes.legend(frameon=False, fontsize=9)
        report_page.style_axes(axes)
    left.set_xlabel("parameters without embeddings", color=loss_plot.INK)
    right.set_xlabel("PF-days, 6 N D", color=loss_plot.INK)
    left.set_ylabel("validation loss (nats per token)", color=loss_plot.INK)
    figure.savefig(path, dpi=130)


def _plot_by_size(
    axes: Any, law: Law | None, arms: Sequence[ScalePoint], targets: Sequence[ScalePoint]
) -> None:
    import numpy as np

    sizes = np.geomspace(min(arm.N for arm in arms), max(arm.N for arm in [*arms, *targets]))
    for number, D in enumerate(sorted({arm.D for arm in arms})):
        color = report_page.COLORS[number % len(report_page.COLORS)]
        own_points = [arm for arm in arms if arm.D == D]
        axes.plot(
            [arm.N for arm in own_points],
            [arm.mean_loss for arm in own_points],
            "o",
            color=color,
            label=f"{formats.si(D)} tokens",
        )
        if law and law.applies_to(own_points[0]):
            axes.plot(
                sizes,
                [law.fit.predict(*law.inputs(ScalePoint(N, D))) for N in sizes],
                color=color,
                lw=1.2,
            )


def _plot_by_compute(
    axes: Any, law: Law | None, arms: Sequence[ScalePoint], targets: Sequence[ScalePoint]
) -> None:
    import numpy as np

    for arm in arms:
        for curve in arm.curves:
            points = [
                (6 * arm.N * tokens / count.PF_DAY, loss) for tokens, loss in curve if tokens > 0
            ]
            axes.plot(*zip(*points, strict=True), color="#9CA3AF", lw=0.9)
    if law is None:
        return
    costs = np.geomspace(
        min(arm.C for arm in law.arms), max(arm.C for arm in [*law.arms, *targets])
    )
    lows, highs = zip(*(law.fit.predict_interval(C) for C in costs), strict=True)
    axes.plot(
        [arm.C for arm in law.arms],
        [arm.mean_loss for arm in law.arms],
        "o",
        color=report_page.COLORS[0],
    )
    axes.plot(
        costs,
        [law.fit.predict(C) for C in costs],
        color=report_page.COLORS[0],
        label=f"L(C), exponent {law.fit.parameters[1]:.3f}",
    )
    axes.fill_between(costs, lows, highs, color=report_page.COLORS[0], alpha=0.15, lw=0)
    scale, exponent = scaling_fit.GPT3_LAW
    level = law.fit.predict(costs[0]) / (scale * costs[0] ** -exponent)
    slope = [level * scale * C**-exponent for C in costs]
    axes.plot(
        costs,
        slope,
        "--",
        color=loss_plot.INK,
        lw=1.2,
        label=f"GPT-3's slope, {exponent}, from the same start",
    )


def _plot_predictions(
    axes: Any, law: Law | None, quantity: str, targets: Sequence[ScalePoint]
) -> None:
    """Draws predicted intervals and measured losses of the targets. quantity: the field of
    ScalePoint on the horizontal axis."""
    for arm in targets:
        if law and law.applies_to(arm):
            value, (low, high) = (
                law.fit.predict(*law.inputs(arm)),
                law.fit.predict_interval(*law.inputs(arm)),
            )
            bar = [[value - min(low, value)], [max(high, value) - value]]
            axes.errorbar(
                [getattr(arm, quantity)],
                [value],
                yerr=bar,
                fmt="_",
                color=loss_plot.INK,
                capsize=5,
                label="predicted",
            )
        if arm.losses:
            axes.plot(
                [getattr(arm, quantity)],
                [arm.mean_loss],
                "*",
                ms=13,
                color=report_page.COLORS[1],
                label="found",
            )
