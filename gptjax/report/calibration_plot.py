"""Plot of how well the probabilities of a reward model are calibrated, calibration.png."""

from pathlib import Path
from typing import Any

import numpy as np

from gptjax.report.loss_plot import DPI, FAINT, INK, TRAIN, escape, new_figure


def draw(path: Path, title: str, accuracy: Any, calibration: Any) -> None:
    """Draws the observed share of right pairs by the predicted probability, with intervals of 95%,
    and below the number of pairs in each bin; replaces `path` atomically.

    accuracy, calibration: training.pair_accuracy.Accuracy and Calibration."""
    figure = new_figure(6.0, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    upper.plot([0.5, 1], [0.5, 1], color=INK, linewidth=1, linestyle=":", label="calibrated")
    spread = np.stack(
        [calibration.observed - calibration.low, calibration.high - calibration.observed]
    )
    upper.errorbar(
        calibration.predicted,
        calibration.observed,
        yerr=np.maximum(spread, 0),
        color=TRAIN,
        marker="o",
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        capsize=2,
        label="observed, 95%",
    )
    upper.set_ylabel("share in which it was better")
    upper.legend(frameon=False, loc="upper left", labelcolor=INK)
    upper.set_ylim(max(0.0, min(0.5, float(calibration.low.min())) - 0.02), 1.02)
    width = 0.5 * 0.5 / 10
    lower.bar(calibration.predicted, calibration.n_pairs, width=width, color=TRAIN)
    lower.set_ylabel("pairs")
    lower.set_xlabel("predicted probability that the higher score is the better completion")
    lower.set_xlim(0.48, 1.02)
    for axes in (upper, lower):
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0)
        for side in axes.spines.values():
            side.set_visible(False)
    upper.set_title(escape(title), loc="left", fontsize=14, fontweight="bold", color=INK, pad=28)
    facts = f"{accuracy}, calibration error {calibration.error:.3f}"
    upper.text(0, 1.03, facts, transform=upper.transAxes, fontsize=9, color=INK)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        figure.savefig(temporary, dpi=DPI)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
