"""How metrics and tables are shown on the console."""

from collections.abc import Sequence
from typing import Any

TASK_METRICS = ("accuracy", "f1", "matthews", "pearson")  # in percent
VALIDATION_FORMATS = {
    "validation_score": "held-out prompts: score {:.4f}",
    "validation_kl": "KL {:.3f}",
    "validation_loss": "validation loss {:.4f}",
    **{name: f"{name} {{:.2f}}" for name in TASK_METRICS},
    "validation_accuracy": "",
    "perplexity": "perplexity {:,.2f}",
    "bits_per_byte": "bits per byte {:.4f}",
}  # metric of an evaluation -> how it is shown


def format_validation(values: dict[str, Any]) -> list[str]:
    """Returns what the line of an evaluation says of its metrics."""
    return [
        _format_accuracy(values) if name == "validation_accuracy" else form.format(values[name])
        for name, form in VALIDATION_FORMATS.items()
        if name in values
    ]


def format_values(values: dict[str, Any], aligned: bool = False) -> dict[str, str]:
    """Formats each value. aligned: in a fixed width and including lr, for lines in a column."""
    if "kl" in values:  # its rows are answers, shorter than the context
        values = {name: value for name, value in values.items() if name not in ("tokens", "mfu")}
    if aligned:
        formatters = {
            "tokens": lambda n: f"tokens {si(n):>5}",
            "loss": lambda x: f"loss {x:7.4f}",
            "accuracy": lambda x: f"accuracy {x:6.1%}",
            "margin": lambda x: f"margin {x:7.3f}",
            "score": lambda x: f"score {x:7.4f}",
            "kl": lambda x: f"KL {x:6.3f}",
            "lr": lambda x: f"lr {x:.2e}",
            "tokens_per_s": lambda x: f"{_format_speed(x):>7} tok/s",
            "mfu": lambda x: f"MFU {x:5.1%}",
        }
    else:
        formatters = {
            "tokens": lambda n: f"{si(n)} tokens",
            "loss": lambda x: f"loss {x:.3f}",
            "accuracy": lambda x: f"accuracy {x:.1%}",
            "score": lambda x: f"score {x:.3f}",
            "kl": lambda x: f"KL {x:.2f}",
            "tokens_per_s": lambda x: f"{_format_speed(x)} tok/s",
            "mfu": lambda x: f"MFU {x:.0%}",
        }
    return {
        name: formatter(values[name])
        for name, formatter in formatters.items()
        if values.get(name) is not None
    }


def _format_accuracy(values: dict[str, Any]) -> str:
    """The share of right pairs, with its interval if it has one."""
    line = f"accuracy {values['validation_accuracy']:.1%}"
    if "validation_accuracy_low" in values:
        low, high = (100 * values[f"validation_accuracy_{end}"] for end in ("low", "high"))
        line += f" ({low:.1f} to {high:.1f})"
    return line


def _format_speed(x: float) -> str:
    return f"{x:.1f}" if x < 10 else f"{x:,.0f}" if x < 100_000 else si(x)


def si(n: float) -> str:
    """Formats a count with three digits: 512, 12.3k, 4.1M, 300B, 1.2T."""
    value = float(f"{n:.3g}")
    size, unit = next(
        (
            pair
            for pair in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
            if abs(value) >= pair[0]
        ),
        (1.0, ""),
    )
    return f"{value / size:g}{unit}"


def format_table(rows: Sequence[tuple[str, ...]]) -> str:
    """Formats a table with the first column left-aligned, the others right-aligned, followed by an
    empty line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"
