"""loss.png: the loss of a run against the tokens it has seen, drawn from metrics.jsonl."""

import functools
import math
import re
import statistics
from pathlib import Path

from gptjax.config import parse
from gptjax.report import console, events

TRAIN, VALID, RATE, INK, FAINT = "#4C78A8", "#D1495B", "#6B7280", "#1F2937", "#E5E7EB"
WIDTH, HEIGHT, DPI = 9.0, 6.0, 150  # inches: 1350 x 900 pixels, still legible when shown at 900 x 600
RAW_POINTS, SMOOTH_POINTS = 3000, 400  # drawn at most: more cannot be told apart, and cost time
LONGEST = 100  # characters of a name in a picture


def loss_curve(run: Path) -> Path:
    """Draw run/loss.png and return its path; who looks meanwhile sees the old picture or the new one, never half of one."""
    run = Path(run)
    records = events.read(run)
    figure = _figure(_name(run), records)
    fresh, picture = run / "loss.tmp.png", run / "loss.png"
    try:
        figure.savefig(fresh, dpi=DPI)
        fresh.replace(picture)
    finally:
        fresh.unlink(missing_ok=True)
    return picture


def canvas(width: float, height: float):
    """An empty matplotlib figure of that many inches; no window system, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def escape(text: str) -> str:
    """A user's text as a picture shows it: no $ is mathematics, what the font lacks is U+FFFD, and it is one line of at most LONGEST."""
    line = "".join(c if c in _glyphs() else " " if c.isspace() else "\ufffd" for c in text)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
    return line.replace("$", r"\$")


@functools.cache
def _glyphs() -> frozenset[str]:
    """The visible characters, and the space, that matplotlib's own font has in its two weights."""
    from matplotlib import font_manager

    faces = [font_manager.get_font(font_manager.findfont(f"DejaVu Sans:{weight}")) for weight in ("regular", "bold")]
    return frozenset(c for code in set.intersection(*(set(face.get_charmap()) for face in faces)) if (c := chr(code)).isprintable())


def _figure(name: str, records: list[dict]):
    """The matplotlib figure: losses above, learning rate in a slim panel below."""
    figure = canvas(WIDTH, HEIGHT)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    train, valid, rate = (_points(records, value) for value in ("loss", "validation_loss", "lr"))
    seen = [tokens for tokens, _ in train + valid if tokens > 0]
    scored = any(score in record for record in records for score in console.SCORES)  # fine-tuning: a few epochs, and no early fall
    logarithmic = bool(seen) and max(seen) > 30 * min(seen) and not scored  # else the early fall would hide in the first pixels
    if logarithmic:
        valid = [point for point in valid if point[0] > 0]  # the evaluation before the first token has no place on this axis
        lower.set_xscale("log")
        lower.set_xlim(min(seen), max(seen) * 1.1)
    few = len(train) < 20
    _line(upper, _thinned(train, RAW_POINTS, logarithmic), TRAIN, "training", 1.8 if few else 0.8, alpha=1.0 if few else 0.4, dots=few)
    smooth = [] if few else _smoothed(train, logarithmic)
    _line(upper, smooth, TRAIN, "training, smoothed", 2)
    _line(upper, valid, VALID, "validation, the classifier alone" if scored else "validation", 1.8, dots=len(valid) <= 40)
    _line(lower, _thinned(rate, RAW_POINTS, logarithmic), RATE, "learning rate", 1.5)
    losses = [loss for _, loss in (smooth or train) + valid]
    if losses:  # the limits are those of the smooth curves: a spike may leave the picture
        margin = 0.06 * (max(losses) - min(losses)) or 0.1
        upper.set_ylim(min(losses) - margin, max(losses) + margin)
    _dress(figure, upper, lower, "loss (nats)" if scored else "loss (nats per token)")
    _title(upper, name, records, train)
    return figure


def _line(axes, points, colour, label, width, alpha=1.0, dots=False):
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, lw=width, alpha=alpha, marker="o" if dots else "", ms=4)


def _dress(figure, upper, lower, unit):
    """Labels, ticks, grid and legend."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    upper.set_ylabel(unit, color=INK)
    lower.set_ylabel("lr", color=INK)
    lower.set_xlabel("tokens", color=INK)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}"))
    lower.xaxis.set_major_formatter(FuncFormatter(lambda n, _: console.quantity(n)))
    lower.xaxis.set_minor_formatter(NullFormatter())
    lower.tick_params(axis="x", pad=8)  # clear of the 0 beside the corner
    for axes in (upper, lower):
        axes.grid(True, color=FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=INK, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#9CA3AF")
    if upper.get_legend_handles_labels()[0]:
        upper.legend(frameon=True, framealpha=0.9, edgecolor="none", labelcolor=INK, loc="upper right")
    figure.align_ylabels()


def _title(axes, name, records, train):
    """The run's name, and under it the last figures."""
    last = next((record for record in reversed(records) if "validation_loss" in record), None)
    if last is not None:
        facts = [f"validation loss {last['validation_loss']:.4f}"]
        facts += [f"{score} {last[score]:.2f}%" for score in console.SCORES if score in last]
        facts += [f"perplexity {last['perplexity']:,.2f}"] if "perplexity" in last else []
        facts += [f"{last['bits_per_byte']:.3f} bits per byte"] if "bits_per_byte" in last else []
    else:
        facts = [f"training loss {train[-1][1]:.4f}" if train else "no loss yet", "no validation yet"]
    axes.set_title(escape(name), loc="left", fontsize=15, fontweight="bold", color=INK, pad=28)
    axes.text(0, 1.03, " \N{MIDDLE DOT} ".join(facts), transform=axes.transAxes, fontsize=11, color=INK)


def _name(run: Path) -> str:
    """The config's name and the texts that it reads, from the run's config.json; of a run without one, its directory's."""
    file = run / "config.json"
    if not file.exists():
        return run.absolute().name
    config = parse.json_file(file)
    name = parse.member(config, "name", str, str(file))
    texts = re.findall(r"path='([^']*)'", parse.member(config, "data.sources", str, str(file))) if "data.sources" in config else []
    return f"{name} on {', '.join(texts)}" if texts else name


def _points(records, value):
    """(tokens, value) wherever both are finite numbers."""
    pairs = [(r["tokens"], r[value]) for r in records if "tokens" in r and value in r]
    return [(t, v) for t, v in pairs if math.isfinite(v)]


def _thinned(points, most, logarithmic):
    """At most `most` of the points, evenly spread along the axis that they are drawn on, the last one included."""
    if len(points) <= most:
        return points
    if logarithmic:
        ratio = len(points) ** (1 / (most - 1))
        return [points[i] for i in sorted({round(ratio**k) - 1 for k in range(most)})]
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def _smoothed(points, logarithmic):
    """The median around SMOOTH_POINTS of the points: over 8% of the run, or on a logarithmic axis over 8% of the way to the point, so that
    the window has one width in the picture. It shrinks at the ends, so that neither is bent."""
    smooth = []
    for tokens, i in _thinned([(tokens, i) for i, (tokens, _) in enumerate(points)], SMOOTH_POINTS, logarithmic):
        reach = min(i, len(points) - 1 - i, 1 + (i if logarithmic else len(points)) // 25)
        smooth.append((tokens, statistics.median(value for _, value in points[i - reach : i + reach + 1])))
    return smooth
