"""Plot of a run that learns from a reward, reward.png, from metrics.jsonl."""

import math
from pathlib import Path

from gptjax.report import events, loss_plot

TRAIN, VALID, INK, FAINT = loss_plot.TRAIN, loss_plot.VALID, loss_plot.INK, loss_plot.FAINT
OTHER = "#6B7280"
# title -> (name in metrics.jsonl, label, color), the first on the left axis
PANELS = {
    "score of an answer": [
        ("score", "training", TRAIN),
        ("validation_score", "held-out prompts", VALID),
    ],
    "KL to the reference (nats of an answer)": [
        ("kl", "training", TRAIN),
        ("validation_kl", "held-out prompts", VALID),
    ],
    "KL coefficient": [("kl_coef", "", OTHER)],
    "entropy (nats of an answer)": [("entropy", "", TRAIN)],
    "tokens of an answer": [("length", "", TRAIN)],
    "shares": [
        ("clip_fraction", "ratios cut", TRAIN),
        ("value_clip_fraction", "values cut", OTHER),
        ("no_ending", "without an end", VALID),
    ],
    "explained variance of the value function": [("explained_variance", "", TRAIN)],
    "loss on text (nats per token)": [
        ("lm_loss", "training", TRAIN),
        ("validation_loss", "validation", VALID),
    ],
}


def draw(run: Path) -> Path:
    """Draws run/reward.png, replacing it atomically, and returns its path. Panels without values
    are left out."""
    from matplotlib.ticker import MaxNLocator

    run = Path(run)
    records = events.read(run)
    panels = {
        title: found
        for title, lines in PANELS.items()
        if (found := [(points(records, name), *rest) for name, *rest in lines])
        and any(line[0] for line in found)
    }
    rows = max(1, math.ceil(len(panels) / 2))
    figure = loss_plot.new_figure(11.0, 0.8 + 2.1 * rows)
    for number, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, 2, number)
        for line, label, color in lines:
            if line:
                dots = "o" if len(line) <= 40 else ""
                axes.plot(*zip(*line, strict=True), color=color, label=label, marker=dots, ms=3)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.grid(True, color=FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(colors=INK, length=0, labelsize=9)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
        if sum(bool(line) for line, *_ in lines) > 1:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        if number > len(panels) - 2:
            axes.set_xlabel("iterations", fontsize=9, color=INK)
    name = loss_plot.escape(loss_plot.run_title(run))
    figure.suptitle(name, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    temporary, picture = run / "reward.tmp.png", run / "reward.png"
    try:
        figure.savefig(temporary, dpi=110)
        temporary.replace(picture)
    finally:
        temporary.unlink(missing_ok=True)
    return picture


def points(records: list[dict], name: str) -> list[tuple[int, float]]:
    """Returns (iteration, value) of each record that has a finite value of this name."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    return [(step, value) for step, value in pairs if math.isfinite(value)]
