"""Learning rates and batch sizes of a sweep: the best of each, and what the gradient noise scale predicts.

McCandlish et al. 2018 (1812.06162): with B a batch and B_noise the noise scale, both in tokens, the tokens to a loss are
E = E_min (1 + B / B_noise), and the best learning rate is eps_max / (1 + B_noise / B)^a, a = 1 for SGD (section 2), between 1/2 and 1 for
Adam as they found. E_min and eps_max, which the scale does not tell, are fitted; B_noise is measured: B_simple of each run, the median over
the second half of its steps.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import overrides, sweep
from gptjax.config.schema import Config
from gptjax.report import console, loss_plot
from gptjax.sweeps import comparison, report_page

PEAK = "train.schedule.peak"
BESIDE_BATCH = ("train.microbatch_rows=None", "loop.every_eval=1", "loop.every_log=1", "loop.every_save=1")  # follow from the batch's size


@dataclasses.dataclass(frozen=True)
class Search:
    """Arms that differ in their peak learning rate alone, the lowest first."""

    label: str
    arms: tuple[comparison.Result, ...]

    @property
    def batch(self) -> int:
        return self.arms[0].config.train.batch_tokens

    @property
    def best(self) -> comparison.Result:
        return min(self.arms, key=_mean)

    @property
    def at_edge(self) -> bool:
        return self.best in (self.arms[0], self.arms[-1])

    @property
    def minimum(self) -> float:
        """The peak at the minimum of the parabola, in log peak, through the best arm and its neighbours; that of the best at an edge."""
        if self.at_edge:
            return peak(self.best)
        at = self.arms.index(self.best)
        (x0, y0), (x1, y1), (x2, y2) = ((math.log(peak(arm)), _mean(arm)) for arm in self.arms[at - 1 : at + 2])
        up, down = (y0 - y1) / (x0 - x1), (y2 - y1) / (x2 - x1)
        return math.exp((x0 + x1) / 2 - up * (x2 - x0) / (2 * (down - up)))

    @property
    def noise(self) -> float | None:
        """B_noise of the best arm, in tokens."""
        found = [run.noise_scale for run in self.best.runs if run.noise_scale is not None]
        return statistics.median(found) if found else None


def peak(arm: comparison.Result) -> float:
    return arm.config.train.schedule.peak


def _mean(arm: comparison.Result) -> float:
    assert arm.loss is not None
    return arm.loss.mean


def searches(results: Sequence[comparison.Result]) -> list[Search]:
    """The finished arms by all but their peak."""
    gathered: dict[Config, list[comparison.Result]] = {}
    for result in results:
        if result.loss is not None:
            same = overrides.override(dataclasses.replace(result.config, seed=0), f"{PEAK}=1")
            gathered.setdefault(same, []).append(result)
    labels = sweep.labels(list(gathered))
    return [Search(label, tuple(sorted(arms, key=peak))) for label, arms in zip(labels, gathered.values(), strict=True)]


def by_batch(found: Sequence[Search]) -> list[list[Search]]:
    """Those that differ in their batch alone, smallest first; of three batches or more, and without ramps."""
    gathered: dict[Config, list[Search]] = {}
    for search in found:
        config = search.arms[0].config
        if config.train.ramp is None:
            edits = (f"{PEAK}=1", *BESIDE_BATCH, f"train.batch_tokens={config.model.n_ctx}")
            gathered.setdefault(overrides.override(dataclasses.replace(config, seed=0), *edits), []).append(search)
    return [sorted(group, key=lambda search: search.batch) for group in gathered.values() if len(group) > 2]


# --- learning rates -----------------------------------------------------------------------------------------------------


def rates(results: Sequence[comparison.Result], path: Path) -> report_page.Section | None:
    """The best peak of each arm that has three or more; None if there is none."""
    found = [search for search in searches(results) if len(search.arms) > 2]
    if not found:
        return None
    rows = [
        (
            search.label,
            f"{peak(search.best):g}",
            f"{_mean(search.best):.4f}",
            "at the edge: search further" if search.at_edge else f"{search.minimum:.2g}",
        )
        for search in found
    ]
    figure, (axes,) = _figure(1)
    for number, search in enumerate(found):
        colour = report_page.COLOURS[number % len(report_page.COLOURS)]
        axes.plot(
            [peak(arm) for arm in search.arms],
            [_mean(arm) for arm in search.arms],
            "o-",
            color=colour,
            label=loss_plot.escape(search.label or "loss"),
        )
        axes.plot([peak(search.best)], [_mean(search.best)], "o", ms=11, mfc="none", color=colour)
    axes.set_xlabel("peak learning rate", color=loss_plot.INK)
    axes.set_ylabel("final validation loss (nats per token)", color=loss_plot.INK)
    axes.legend(frameon=False, fontsize=9)
    report_page.dressed(axes)
    figure.savefig(path, dpi=130)
    note = "parabola: its minimum, in log rate, through the best and its neighbours. Circles: the best of each."
    return report_page.Section("Learning rates", ("arms", "best peak", "its loss", "parabola"), tuple(rows), note, path)


# --- batches ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch size. tokens: that its quickest run needs to the loss which all reach; None of predictions: no noise scale was measured."""

    search: Search
    tokens: float
    predicted_tokens: float | None
    predicted_peaks: tuple[float, float] | None  # exponents 1/2 and 1


def batches(group: Sequence[Search]) -> tuple[list[Batch], float, float | None]:
    """(each batch size, the loss that all reach, the noise scale: the median over batch sizes)."""
    target = max(_mean(search.best) for search in group)
    needed = [min(reached(run.curve, target) for arm in search.arms for run in arm.runs if run.curve) for search in group]
    scales = [search.noise for search in group if search.noise is not None]
    if not scales:
        return [Batch(search, tokens, None, None) for search, tokens in zip(group, needed, strict=True)], target, None
    noise = statistics.median(scales)
    E = _through(needed, [1 + search.batch / noise for search in group])
    halves = _through([s.minimum for s in group], [(1 + noise / s.batch) ** -0.5 for s in group])
    wholes = _through([s.minimum for s in group], [1 / (1 + noise / s.batch) for s in group])
    made = []
    for i, (search, tokens) in enumerate(zip(group, needed, strict=True)):
        made.append(Batch(search, tokens, E[i], (halves[i], wholes[i])))
    return made, target, noise


def _through(measured: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """`predicted` times the factor that brings it nearest to what was measured, in logarithms."""
    factor = statistics.geometric_mean([a / b for a, b in zip(measured, predicted, strict=True)])
    return [factor * value for value in predicted]


def reached(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """Tokens at which the curve is first as low, between evaluations on a line; infinity if it never is."""
    before = None
    for tokens, value in curve:
        if value <= loss:
            if before is None or before[1] == value:
                return tokens
            return before[0] + (tokens - before[0]) * (before[1] - loss) / (before[1] - value)
        before = (tokens, value)
    return math.inf


def batch_sizes(results: Sequence[comparison.Result], path: Path) -> report_page.Section | None:
    """Tokens and best peak by batch size, beside the noise scale's prediction; None for fewer than three batch sizes. Of several groups
    the first is drawn."""
    groups = by_batch(searches(results))
    if not groups:
        return None
    made, target, noise = batches(groups[0])
    rows = []
    for batch in made:
        peaks = "" if batch.predicted_peaks is None else " to ".join(f"{value:.2g}" for value in sorted(batch.predicted_peaks))
        rows.append(
            (
                f"{batch.search.batch:,}",
                f"{_mean(batch.search.best):.4f}",
                f"{batch.search.minimum:.2g}" + (" (edge)" if batch.search.at_edge else ""),
                peaks,
                "" if batch.search.noise is None else console.quantity(batch.search.noise),
                console.quantity(batch.tokens),
                "" if batch.predicted_tokens is None else console.quantity(batch.predicted_tokens),
            )
        )
    _draw_batches(made, target, noise, path)
    known = (
        "no noise scale was measured: it needs batches of two microbatches or more" if noise is None else f"noise scale {noise:,.0f} tokens"
    )
    return report_page.Section(
        "Batch sizes",
        BATCH_HEAD,
        tuple(rows),
        f"Tokens are to a loss of {target:.4f}, which all batches reach; {known}. {BATCH_NOTE}",
        path,
    )


BATCH_HEAD = ("batch, tokens", "best loss", "best peak", "predicted, Adam to SGD", "noise scale", "tokens to the loss", "predicted")
BATCH_NOTE = "Predictions have the noise scale's shape; their level is fitted (McCandlish et al. 2018)."


def _draw_batches(made: Sequence[Batch], target: float, noise: float | None, path: Path) -> None:
    figure, (left, right) = _figure(2)
    sizes = [batch.search.batch for batch in made]
    left.plot(sizes, [batch.tokens for batch in made], "o", color=report_page.COLOURS[0], label="found")
    right.plot(sizes, [batch.search.minimum for batch in made], "o", color=report_page.COLOURS[0], label="found")
    if noise is not None:
        left.plot(sizes, [batch.predicted_tokens for batch in made], color=report_page.COLOURS[1], label="predicted by the noise scale")
        lows, highs = zip(*(batch.predicted_peaks or () for batch in made), strict=True)
        right.plot(sizes, lows, color=report_page.COLOURS[1], label="predicted, exponent 1/2 (Adam)")
        right.plot(sizes, highs, "--", color=report_page.COLOURS[1], label="predicted, exponent 1 (SGD)")
        for axes in (left, right):
            axes.axvline(noise, color=loss_plot.RATE, lw=0.9, ls=":", label="noise scale")
    left.set_ylabel(f"tokens to a loss of {target:.3f}", color=loss_plot.INK)
    right.set_ylabel("best peak learning rate", color=loss_plot.INK)
    for axes in (left, right):
        axes.set_xlabel("batch (tokens)", color=loss_plot.INK)
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=9)
        report_page.dressed(axes)
    figure.savefig(path, dpi=130)


def _figure(n: int):
    figure = loss_plot.canvas(6 * n if n > 1 else 7.5, 4.6)
    return figure, figure.subplots(1, n, squeeze=False)[0]
