"""Learning rates and batch sizes of a sweep: the best of each, and what the gradient noise scale
predicts.

McCandlish et al. 2018 (1812.06162): with B a batch and B_noise the noise scale, both in tokens, the
tokens to a loss are E = E_min (1 + B / B_noise), and the best learning rate is eps_max / (1 +
B_noise / B)^a, a = 1 for SGD (section 2), between 1/2 and 1 for Adam as they found. E_min and
eps_max, which the scale does not determine, are fitted; B_noise is measured: B_simple of each run,
the median over the second half of its steps.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import overrides
from gptjax.config.schema import Config
from gptjax.report import formats, loss_plot
from gptjax.sweeps import comparison, report_page
from gptjax.sweeps.points import labels as distinct_labels

PEAK_PATH = "train.schedule.peak_lr"
# What follows from the batch's size.
BATCH_DEPENDENT_EDITS = (
    "train.microbatch_rows=None",
    "loop.every_eval=1",
    "loop.every_log=1",
    "loop.every_save=1",
)


@dataclasses.dataclass(frozen=True)
class LRSearch:
    """Arms that differ only in their peak learning rate, in ascending order."""

    label: str
    arms: tuple[comparison.ArmResult, ...]

    @property
    def batch_tokens(self) -> int:
        return self.arms[0].config.train.batch_tokens

    @property
    def best_arm(self) -> comparison.ArmResult:
        return min(self.arms, key=_mean_loss)

    @property
    def is_at_edge(self) -> bool:
        return self.best_arm in (self.arms[0], self.arms[-1])

    @property
    def fitted_peak(self) -> float:
        """The peak at the minimum of the parabola, in log peak, through the best arm and its
        neighbors; that of the best at an edge.
        """
        if self.is_at_edge:
            return peak_lr(self.best_arm)
        index = self.arms.index(self.best_arm)
        (x0, y0), (x1, y1), (x2, y2) = (
            (math.log(peak_lr(arm)), _mean_loss(arm)) for arm in self.arms[index - 1 : index + 2]
        )
        left_slope, right_slope = (y0 - y1) / (x0 - x1), (y2 - y1) / (x2 - x1)
        return math.exp((x0 + x1) / 2 - left_slope * (x2 - x0) / (2 * (right_slope - left_slope)))

    @property
    def noise_scale(self) -> float | None:
        """B_noise of the best arm, in tokens."""
        scales = [run.noise_scale for run in self.best_arm.runs if run.noise_scale is not None]
        return statistics.median(scales) if scales else None


def peak_lr(arm: comparison.ArmResult) -> float:
    """Returns the peak learning rate of an arm."""
    return arm.config.train.schedule.peak_lr


def _mean_loss(arm: comparison.ArmResult) -> float:
    assert arm.loss is not None
    return arm.loss.mean


def group_searches(results: Sequence[comparison.ArmResult]) -> list[LRSearch]:
    """Groups finished arms that differ only in their peak learning rate."""
    groups: dict[Config, list[comparison.ArmResult]] = {}
    for result in results:
        if result.loss is not None:
            key = overrides.override(dataclasses.replace(result.config, seed=0), f"{PEAK_PATH}=1")
            groups.setdefault(key, []).append(result)
    labels = distinct_labels(list(groups))
    return [
        LRSearch(label, tuple(sorted(arms, key=peak_lr)))
        for label, arms in zip(labels, groups.values(), strict=True)
    ]


def group_by_batch(searches: Sequence[LRSearch]) -> list[list[LRSearch]]:
    """Groups searches that differ only in their batch size, in ascending order; groups of fewer
    than three batch sizes or with a batch ramp are left out."""
    groups: dict[Config, list[LRSearch]] = {}
    for search in searches:
        config = search.arms[0].config
        if config.train.batch_ramp is None:
            edits = (
                f"{PEAK_PATH}=1",
                *BATCH_DEPENDENT_EDITS,
                f"train.batch_tokens={config.model.n_ctx}",
            )
            groups.setdefault(
                overrides.override(dataclasses.replace(config, seed=0), *edits), []
            ).append(search)
    return [
        sorted(group, key=lambda search: search.batch_tokens)
        for group in groups.values()
        if len(group) > 2
    ]


# --- learning rates -------------------------------------------------------------------------------


def lr_section(results: Sequence[comparison.ArmResult], path: Path) -> report_page.Section | None:
    """Returns the report's section on the best peak learning rate of each search with three or more
    peaks; None if there is no such search."""
    searches = [search for search in group_searches(results) if len(search.arms) > 2]
    if not searches:
        return None
    rows = [
        (
            search.label,
            f"{peak_lr(search.best_arm):g}",
            f"{_mean_loss(search.best_arm):.4f}",
            "at the edge: search further" if search.is_at_edge else f"{search.fitted_peak:.2g}",
        )
        for search in searches
    ]
    figure, (axes,) = _new_figure(1)
    for number, search in enumerate(searches):
        color = report_page.COLORS[number % len(report_page.COLORS)]
        axes.plot(
            [peak_lr(arm) for arm in search.arms],
            [_mean_loss(arm) for arm in search.arms],
            "o-",
            color=color,
            label=loss_plot.escape(search.label or "loss"),
        )
        axes.plot(
            [peak_lr(search.best_arm)],
            [_mean_loss(search.best_arm)],
            "o",
            ms=11,
            mfc="none",
            color=color,
        )
    axes.set_xlabel("peak learning rate", color=loss_plot.INK)
    axes.set_ylabel("final validation loss (nats per token)", color=loss_plot.INK)
    axes.legend(frameon=False, fontsize=9)
    report_page.style_axes(axes)
    figure.savefig(path, dpi=130)
    note = (
        "parabola: its minimum, in log rate, through the best and its neighbours. Circles: the "
        "best of each."
    )
    return report_page.Section(
        "Learning rates", ("arms", "best peak", "its loss", "parabola"), tuple(rows), note, path
    )


# --- batches --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """Results of one batch size. tokens_to_loss: tokens that its fastest run needs to the loss that
    all batch sizes reach. Predictions are None if no noise scale was measured."""

    search: LRSearch
    tokens_to_loss: float
    predicted_tokens: float | None
    predicted_peaks: tuple[float, float] | None  # exponents 1/2 and 1


def compare_batches(group: Sequence[LRSearch]) -> tuple[list[BatchResult], float, float | None]:
    """Returns (results of each batch size, the loss that all of them reach, the noise scale as the
    median over batch sizes)."""
    target = max(_mean_loss(search.best_arm) for search in group)
    tokens_to_loss = [
        min(
            tokens_to_reach(run.curve, target)
            for arm in search.arms
            for run in arm.runs
            if run.curve
        )
        for search in group
    ]
    scales = [search.noise_scale for search in group if search.noise_scale is not None]
    if not scales:
        return (
            [
                BatchResult(search, tokens, None, None)
                for search, tokens in zip(group, tokens_to_loss, strict=True)
            ],
            target,
            None,
        )
    noise = statistics.median(scales)
    predicted_tokens = _fit_factor(
        tokens_to_loss, [1 + search.batch_tokens / noise for search in group]
    )
    adam_peaks = _fit_factor(
        [s.fitted_peak for s in group], [(1 + noise / s.batch_tokens) ** -0.5 for s in group]
    )
    sgd_peaks = _fit_factor(
        [s.fitted_peak for s in group], [1 / (1 + noise / s.batch_tokens) for s in group]
    )
    results = []
    for i, (search, tokens) in enumerate(zip(group, tokens_to_loss, strict=True)):
        results.append(
            BatchResult(search, tokens, predicted_tokens[i], (adam_peaks[i], sgd_peaks[i]))
        )
    return results, target, noise


def _fit_factor(targets: Sequence[float], predicted: Sequence[float]) -> list[float]:
    """Scales `predicted` by the factor that brings it closest to the measured values, by least
    squares of logarithms."""
    factor = statistics.geometric_mean([a / b for a, b in zip(targets, predicted, strict=True)])
    return [factor * value for value in predicted]


def tokens_to_reach(curve: Sequence[tuple[float, float]], loss: float) -> float:
    """Returns the tokens at which the curve first reaches a loss, interpolated linearly between
    evaluations; infinity if it never does."""
    last = None
    for tokens, value in curve:
        if value <= loss:
            if last is None or last[1] == value:
                return tokens
            return last[0] + (tokens - last[0]) * (last[1] - loss) / (last[1] - value)
        last = (tokens, value)
    return math.inf


def batch_section(
    results: Sequence[comparison.ArmResult], path: Path
) -> report_page.Section | None:
    """Tokens and best peak by batch size, compared with the noise scale's prediction; None for
    fewer than three batch sizes. Of several groups the first is drawn.
    """
    groups = group_by_batch(group_searches(results))
    if not groups:
        return None
    batches, target, noise = compare_batches(groups[0])
    rows = []
    for batch in batches:
        peaks = (
            ""
            if batch.predicted_peaks is None
            else " to ".join(f"{value:.2g}" for value in sorted(batch.predicted_peaks))
        )
        rows.append(
            (
                f"{batch.search.batch_tokens:,}",
                f"{_mean_loss(batch.search.best_arm):.4f}",
                f"{batch.search.fitted_peak:.2g}" + (" (edge)" if batch.search.is_at_edge else ""),
                peaks,
                "" if batch.search.noise_scale is None else formats.si(batch.search.noise_scale),
                formats.si(batch.tokens_to_loss),
                "" if batch.predicted_tokens is None else formats.si(batch.predicted_tokens),
            )
        )
    _plot_batches(batches, target, noise, path)
    noise_note = (
        "no noise scale was measured: it needs batches of two microbatches or more"
        if noise is None
        else f"noise scale {noise:,.0f} tokens"
    )
    return report_page.Section(
        "Batch sizes",
        BATCH_COLUMNS,
        tuple(rows),
        f"Tokens are to a loss of {target:.4f}, which all batches reach; {noise_note}. "
        f"{BATCH_NOTE}",
        path,
    )


BATCH_COLUMNS = (
    "batch, tokens",
    "best loss",
    "best peak",
    "predicted, Adam to SGD",
    "noise scale",
    "tokens to the loss",
    "predicted",
)
BATCH_NOTE = (
    "Predictions have the noise scale's shape; their level is fitted (McCandlish et al. 2018)."
)


def _plot_batches(
    batches: Sequence[BatchResult], target: float, noise: float | None, path: Path
) -> None:
    figure, (left, right) = _new_figure(2)
    sizes = [batch.search.batch_tokens for batch in batches]
    left.plot(
        sizes,
        [batch.tokens_to_loss for batch in batches],
        "o",
        color=report_page.COLORS[0],
        label="found",
    )
    right.plot(
        sizes,
        [batch.search.fitted_peak for batch in batches],
        "o",
        color=report_page.COLORS[0],
        label="found",
    )
    if noise is not None:
        left.plot(
            sizes,
            [batch.predicted_tokens for batch in batches],
            color=report_page.COLORS[1],
            label="predicted by the noise scale",
        )
        lows, highs = zip(*(batch.predicted_peaks or () for batch in batches), strict=True)
        right.plot(sizes, lows, color=report_page.COLORS[1], label="predicted, exponent 1/2 (Adam)")
        right.plot(
            sizes, highs, "--", color=report_page.COLORS[1], label="predicted, exponent 1 (SGD)"
        )
        for axes in (left, right):
            axes.axvline(noise, color=loss_plot.LR, lw=0.9, ls=":", label="noise scale")
    left.set_ylabel(f"tokens to a loss of {target:.3f}", color=loss_plot.INK)
    right.set_ylabel("best peak learning rate", color=loss_plot.INK)
    for axes in (left, right):
        axes.set_xlabel("batch (tokens)", color=loss_plot.INK)
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=9)
        report_page.style_axes(axes)
    figure.savefig(path, dpi=130)


def _new_figure(n: int):
    figure = loss_plot.new_figure(6 * n if n > 1 else 7.5, 4.6)
    return figure, figure.subplots(1, n, squeeze=False)[0]
