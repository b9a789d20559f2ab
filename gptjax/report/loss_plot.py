"""Plot of a run's loss by tokens, loss.png, from metrics.jsonl."""

import functools
import math
import re
import statistics
from pathlib import Path

from gptjax.config import parse
from gptjax.report import events, formats

TRAIN, VALID, LR, INK, FAINT = "#4C78A8", "#D1495B", "#6B7280", "#1F2937", "#E5E7EB"
WIDTH, HEIGHT, DPI = 9.0, 6.0, 150  # inches: 1350 x 900 pixels, still legible at 900 x 600
# Points drawn at most: more cannot be distinguished, and take time.
MAX_RAW_POINTS, MAX_SMOOTH_POINTS = 3000, 400
MAX_NAME_LENGTH = 100  # characters of a name in a plot


def draw(run: Path) -> Path:
    """Draws run/loss.png, replacing it atomically, and returns its path."""
    run = Path(run)
    records = events.read(run)
    figure = _make_figure(run_title(run), records)
    temporary, picture = run / "loss.tmp.png", run / "loss.png"
    try:
        figure.savefig(temporary, dpi=DPI)
        temporary.replace(picture)
    finally:
        temporary.unlink(missing_ok=True)
    return picture


def new_figure(width: float, height: float):
    """Returns an empty matplotlib figure of this size in inches, without a window system or global
    state.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def escape(text: str) -> str:
    """Makes a user's text safe for a plot: no $ starts mathematics, characters missing in the font
    become U+FFFD, and the result is one line of at most MAX_NAME_LENGTH.
    """
    line = "".join(c if c in _glyphs() else " " if c.isspace() else "\ufffd" for c in text)
    line = line if len(line) <= MAX_NAME_LENGTH else f"{line[: MAX_NAME_LENGTH - 3]}..."
    return line.replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[str]:
    """The printable characters in both weights of matplotlib's own font."""
    from matplotlib import font_manager

    faces = [
        font_manager.get_font(font_manager.findfont(f"DejaVu Sans:{weight}"))
        for weight in ("regular", "bold")
    ]
    return frozenset(
        c
        for code in set.intersection(*(set(face.get_charmap()) for face in faces))
        if (c := chr(code)).isprintable()
    )


def _make_figure(name: str, records: list[dict]):
    """Builds the figure: losses above, learning rate in a small panel below."""
    figure = new_figure(WIDTH, HEIGHT)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    train, valid, lr = (_points(records, value) for value in ("loss", "validation_loss", "lr"))
    token_counts = [tokens for tokens, _ in train + valid if tokens > 0]
    # Not for fine-tuning, which has few epochs and no early drop to make visible.
    has_metrics = any(score in record for record in records for score in formats.TASK_METRICS)
    log_scale = (
        bool(token_counts) and max(token_counts) > 30 * min(token_counts) and not has_metrics
    )
    if log_scale:
        # The evaluation before the first token has no place on a logarithmic axis.
        valid = [point for point in valid if point[0] > 0]
        lower.set_xscale("log")
        lower.set_xlim(min(token_counts), max(token_counts) * 1.1)
    is_short = len(train) < 20
    _plot_line(
        upper,
        _subsample(train, MAX_RAW_POINTS, log_scale),
        TRAIN,
        "training",
        1.8 if is_short else 0.8,
        alpha=1.0 if is_short else 0.4,
        dots=is_short,
    )
    smooth = [] if is_short else _smooth(train, log_scale)
    _plot_line(upper, smooth, TRAIN, "training, smoothed", 2)
    _plot_line(
        upper,
        valid,
        VALID,
        "validation, the classifier alone" if has_metrics else "validation",
        1.8,
        dots=len(valid) <= 40,
    )
    _plot_line(lower, _subsample(lr, MAX_RAW_POINTS, log_scale), LR, "learning rate", 1.5)
    losses = [loss for _, loss in (smooth or train) + valid]
    if losses:  # limits follow the smoothed curves: spikes may leave the plot
        margin = 0.06 * (max(losses) - min(losses)) or 0.1
        upper.set_ylim(min(losses) - margin, max(losses) + margin)
    _style_axes(figure, upper, lower, "loss (nats)" if has_metrics else "loss (nats per token)")
    _set_title(upper, name, records, train)
    return figure


def _plot_line(axes, points, color, label, width, alpha=1.0, dots=False):
    if points:
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            label=label,
            lw=width,
            alpha=alpha,
            marker="o" if dots else "",
            ms=4,
        )


def _style_axes(figure, upper, lower, unit):
    """Labels, ticks, grid and legend."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    upper.set_ylabel(unit, color=INK)
    lower.set_ylabel("lr", color=INK)
    lower.set_xlabel("tokens", color=INK)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda n, _: formats.si(n)))
    lower.xaxis.set_minor_formatter(NullFormatter())
    lower.tick_params(axis="x", pad=8)  # away from the 0 next to the corner
    for axes in (upper, lower):
        axes.grid(True, color=FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=INK, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#9CA3AF")
    if upper.get_legend_handles_labels()[0]:
        upper.legend(
            frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK, loc="upper right"
        )
    figure.align_ylabels()


def _set_title(axes, name, records, train):
    """Sets the title: the run's name, and below it the last results."""
    last = next((record for record in reversed(records) if "validation_loss" in record), None)
    if last is not None:
        facts = [f"validation loss {last['validation_loss']:.4f}"]
        facts += [f"{score} {last[score]:.2f}%" for score in formats.TASK_METRICS if score in last]
        facts += [f"perplexity {last['perplexity']:,.2f}"] if "perplexity" in last else []
        facts += [f"{last['bits_per_byte']:.3f} bits per byte"] if "bits_per_byte" in last else []
    else:
        facts = [
            f"training loss {train[-1][1]:.4f}" if train else "no loss yet",
            "no validation yet",
        ]
    axes.set_title(escape(name), loc="left", fontsize=15, fontweight="bold", color=INK, pad=28)
    axes.text(
        0, 1.03, " \N{MIDDLE DOT} ".join(facts), transform=axes.transAxes, fontsize=11, color=INK
    )


def run_title(run: Path) -> str:
    """The config's name and the texts that it reads, from the run's config.json; without that file,
    the name of the directory.
    """
    file = run / "config.json"
    if not file.exists():
        return run.absolute().name
    config = parse.read_json(file)
    name = parse.member(config, "name", str, str(file))
    texts = (
        re.findall(r"path='([^']*)'", parse.member(config, "data.sources", str, str(file)))
        if "data.sources" in config
        else []
    )
    return f"{name} on {', '.join(texts)}" if texts else name


def _points(records, value):
    """Returns (tokens, value) pairs with finite values."""
    pairs = [(r["tokens"], r[value]) for r in records if "tokens" in r and value in r]
    return [(t, v) for t, v in pairs if math.isfinite(v)]


def _subsample(points, max_points, log_scale):
    """Returns at most `max_points` of the points, evenly spread along the axis they are drawn on,
    including the last.
    """
    if len(points) <= max_points:
        return points
    if log_scale:
        ratio = len(points) ** (1 / (max_points - 1))
        return [points[i] for i in sorted({round(ratio**k) - 1 for k in range(max_points)})]
    return [points[round(k * (len(points) - 1) / (max_points - 1))] for k in range(max_points)]


def _smooth(points, log_scale):
    """Returns the running median at MAX_SMOOTH_POINTS points. The window is 8% of the run or, on a
    logarithmic axis, 8% of the tokens so far, so that it has a constant width in the plot. It
    shrinks at both ends, to avoid bias there.
    """
    smooth = []
    for tokens, i in _subsample(
        [(tokens, i) for i, (tokens, _) in enumerate(points)], MAX_SMOOTH_POINTS, log_scale
    ):
        half_window = min(i, len(points) - 1 - i, 1 + (i if log_scale else len(points)) // 25)
        smooth.append(
            (
                tokens,
                statistics.median(
                    value for _, value in points[i - half_window : i + half_window + 1]
                ),
            )
        )
    return smooth
