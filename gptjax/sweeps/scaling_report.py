"""The scaling laws of a sweep: which of its arms they go through, what they say of a larger model, and their picture.

N: parameters without the two tables, as Kaplan et al. count them. D: tokens that a run has read. C = 6 N D, in PF-days: GPT-3's Figure
3.1 leaves the embedding out too. Of arms of equal N and D the best counts, so that learning rates may be searched beside. L(N) is fitted at
the largest D that three sizes have, L(D) at the largest such N, L(C) to the final losses that no cheaper arm reaches: final, since before
its end a run is worse by a learning rate that has not fallen yet.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from gptjax.config import count, sweep
from gptjax.report import console, loss_plot
from gptjax.sweeps import comparison, report_page, scaling_fit

LARGER = 2.0  # times the largest size: what is predicted where the sweep has no points to check


@dataclasses.dataclass(frozen=True)
class Amounts:
    """Where an arm lies, and the final loss of each of its runs; losses is empty for what has not been trained."""

    N: float
    D: float
    losses: tuple[float, ...] = ()
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()  # (D, loss) of each run

    @property
    def C(self) -> float:
        return 6 * self.N * self.D / count.PF_DAY

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)


@dataclasses.dataclass(frozen=True)
class Law:
    """A fit, with the arms that it goes through. at: an arm's variables of the law; applies: whether it speaks of such an arm."""

    name: str
    fit: scaling_fit.Fit
    arms: tuple[Amounts, ...]
    at: Callable[[Amounts], tuple[float, ...]]
    applies: Callable[[Amounts], bool]


def section(results: Sequence[comparison.Result], path: Path) -> report_page.Section | None:
    """Laws and predictions with their picture at `path`; None for a sweep of fewer than three sizes."""
    arms = amounts([result for result in results if not result.check])
    if len({arm.N for arm in arms}) < 3:
        return None
    wanted = amounts([result for result in results if result.check], finished=False)
    wanted = wanted or [Amounts(LARGER * max(arm.N for arm in arms), max(arm.D for arm in arms))]
    fitted = found(arms)
    drawn(fitted, arms, wanted, path)
    rows = [row for law in fitted for row in _rows(law, wanted)]
    scale, exponent = scaling_fit.GPT3
    rows += [(f"GPT-3's own: {scale} C^-{exponent}", "", "", *_where(arm), f"{scale * arm.C**-exponent:.3f}", "") for arm in wanted]
    return report_page.Section("Scaling laws", HEAD, tuple(rows), NOTE, path)


HEAD = ("law", "fitted, with 95% intervals", "error", "N", "D", "predicted, with 95% interval", "found")
NOTE = (
    "N: parameters without embeddings; D: tokens; C = 6 N D in PF-days. error: root mean square, relative to the loss. Intervals are of "
    "the law; a run's seed comes on top. GPT-3's own law is of its vocabulary and its text: compare its slope, not its level."
)


def amounts(results: Sequence[comparison.Result], finished: bool = True) -> list[Amounts]:
    """Arms by N and D, smallest first, the best of equals; finished: only those that have a final loss."""
    best: dict[tuple[float, float], Amounts] = {}
    for result in results:
        ends = [run for run in result.runs if run.final is not None]
        if finished and not ends:
            continue
        D = ends[0].curve[-1][0] if ends else sweep.tokens(result.config)
        arm = Amounts(
            float(count.non_embedding_parameters(result.config.model)),
            float(D),
            tuple(run.final for run in ends if run.final is not None),
            tuple(run.curve for run in ends),
        )
        other = best.setdefault((arm.N, arm.D), arm)
        if arm.losses and (not other.losses or arm.mean < other.mean):
            best[arm.N, arm.D] = arm
    return [best[key] for key in sorted(best)]


def found(arms: Sequence[Amounts]) -> list[Law]:
    """Every law that these arms are enough for."""
    sizes, lengths = sorted({arm.N for arm in arms}), sorted({arm.D for arm in arms})
    longest = next((D for D in reversed(lengths) if sum(arm.D == D for arm in arms) >= 3), None)
    largest = next((N for N in reversed(sizes) if sum(arm.N == N for arm in arms) >= 3), None)
    cheapest = scaling_fit.frontier([[(arm.C, arm.mean)] for arm in arms])
    tried = [
        (f"L(N) at D = {console.quantity(longest or 0)}", "power", [a for a in arms if a.D == longest], "N", lambda a: a.D == longest),
        (f"L(D) at N = {console.quantity(largest or 0)}", "power", [a for a in arms if a.N == largest], "D", lambda a: a.N == largest),
        ("L(C)", "power", [a for a in arms if (a.C, a.mean) in cheapest], "C", lambda a: True),
        ("L(N, D), Kaplan et al.", "kaplan", arms if len(lengths) > 1 else [], "ND", lambda a: True),
        ("L(N, D), Hoffmann et al.", "chinchilla", arms if len(lengths) > 2 else [], "ND", lambda a: True),
    ]
    made = []
    for name, form, through, variables, applies in tried:
        if len(through) <= len(scaling_fit.FORMS[form].parameters):
            continue

        def at(arm, variables=variables):
            return tuple(getattr(arm, name) for name in variables)

        runs = [(at(arm), loss, number) for number, arm in enumerate(through) for loss in arm.losses]
        places, losses, numbers = zip(*runs, strict=True)
        made.append(
            Law(
                name,
                scaling_fit.fit(scaling_fit.FORMS[form], list(zip(*places, strict=True)), losses, numbers),
                tuple(through),
                at,
                applies,
            )
        )
    return made


def _rows(law: Law, wanted: Sequence[Amounts]) -> list[tuple[str, ...]]:
    told = ", ".join(
        f"{name.replace('x', law.name[2])} = {v:.3g} ({low:.2g} to {high:.2g})" for name, (v, low, high) in law.fit.intervals().items()
    )
    formula = law.fit.form.formula.replace("x", law.name[2]) if len(law.fit.form.variables) == 1 else law.fit.form.formula
    rows = []
    for arm in [arm for arm in wanted if law.applies(arm)] or [None]:
        said = (f"{law.name}: {formula}", told, f"{100 * law.fit.error:.2f}%") if not rows else ("", "", "")
        if arm is None:
            rows.append((*said, "", "", "", ""))
            continue
        value, (low, high) = law.fit.loss(*law.at(arm)), law.fit.interval(*law.at(arm))
        outcome = f"{arm.mean:.3f} ({100 * (arm.mean / value - 1):+.1f}%)" if arm.losses else "not trained"
        rows.append((*said, *_where(arm), f"{value:.3f} ({low:.3f} to {high:.3f})", outcome))
    return rows


def _where(arm: Amounts) -> tuple[str, str]:
    return console.quantity(arm.N), console.quantity(arm.D)


def drawn(fitted: Sequence[Law], arms: Sequence[Amounts], wanted: Sequence[Amounts], path: Path) -> None:
    """Left: loss by size, for each length, with the law of both that fits better. Right: by compute, with every run's curve, as GPT-3's
    Figure 3.1. A star is a run that was predicted; the bar through it, or in its place, is the prediction."""
    import numpy as np

    figure = loss_plot.canvas(12, 4.8)
    left, right = figure.subplots(1, 2, sharey=True)
    both = min((law for law in fitted if len(law.fit.form.variables) == 2), key=lambda law: law.fit.error, default=None)
    alone = {law.name[:4]: law for law in fitted if len(law.fit.form.variables) == 1}
    by_size = both or alone.get("L(N)")
    sizes = np.geomspace(min(arm.N for arm in arms), max(arm.N for arm in [*arms, *wanted]))
    for number, D in enumerate(sorted({arm.D for arm in arms})):
        colour = report_page.COLOURS[number % len(report_page.COLOURS)]
        mine = [arm for arm in arms if arm.D == D]
        left.plot([arm.N for arm in mine], [arm.mean for arm in mine], "o", color=colour, label=f"{console.quantity(D)} tokens")
        if by_size and by_size.applies(mine[0]):
            left.plot(sizes, [by_size.fit.loss(*by_size.at(Amounts(N, D))) for N in sizes], color=colour, lw=1.2)
    for arm in arms:
        for curve in arm.curves:
            points = [(6 * arm.N * tokens / count.PF_DAY, loss) for tokens, loss in curve if tokens > 0]
            right.plot(*zip(*points, strict=True), color="#9CA3AF", lw=0.9)
    if "L(C)" in alone:
        law = alone["L(C)"]
        costs = np.geomspace(min(arm.C for arm in law.arms), max(arm.C for arm in [*law.arms, *wanted]))
        lows, highs = zip(*(law.fit.interval(C) for C in costs), strict=True)
        right.plot([arm.C for arm in law.arms], [arm.mean for arm in law.arms], "o", color=report_page.COLOURS[0])
        right.plot(
            costs, [law.fit.loss(C) for C in costs], color=report_page.COLOURS[0], label=f"L(C), exponent {law.fit.parameters[1]:.3f}"
        )
        right.fill_between(costs, lows, highs, color=report_page.COLOURS[0], alpha=0.15, lw=0)
        scale, exponent = scaling_fit.GPT3
        level = law.fit.loss(costs[0]) / (scale * costs[0] ** -exponent)
        slope = [level * scale * C**-exponent for C in costs]
        right.plot(costs, slope, "--", color=loss_plot.INK, lw=1.2, label=f"GPT-3's slope, {exponent}, from the same start")
    for axes, law, place in ((left, by_size, "N"), (right, alone.get("L(C)"), "C")):
        for arm in wanted:
            if law and law.applies(arm):
                value, (low, high) = law.fit.loss(*law.at(arm)), law.fit.interval(*law.at(arm))
                bar = [[value - min(low, value)], [max(high, value) - value]]
                axes.errorbar([getattr(arm, place)], [value], yerr=bar, fmt="_", color=loss_plot.INK, capsize=5, label="predicted")
            if arm.losses:
                axes.plot([getattr(arm, place)], [arm.mean], "*", ms=13, color=report_page.COLOURS[1], label="found")
        if axes.get_legend_handles_labels()[0]:  # no law and no wanted arm: nothing to explain
            axes.legend(frameon=False, fontsize=9)
        report_page.dressed(axes)
    left.set_xlabel("parameters without embeddings", color=loss_plot.INK)
    right.set_xlabel("PF-days, 6 N D", color=loss_plot.INK)
    left.set_ylabel("validation loss (nats per token)", color=loss_plot.INK)
    figure.savefig(path, dpi=130)
