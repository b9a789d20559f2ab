"""Formats the estimate of a compiled step, at most 100 columns wide."""

import re
from typing import Any

from gptjax.aot import step_time
from gptjax.runtime.units import human_bytes, si, sig3

COMPUTE_SOURCES = {
    "cycles": f"the compiler's cycles x {step_time.CYCLE_SHARE}",
    "roofline": "matmuls at peak or memory traffic: the longer",
}


def render(summary: dict[str, Any]) -> str:
    """Formats the estimate of one step. summary: from step_time.summarize."""
    chips, mesh = (
        summary["chips"],
        " x ".join(f"{axis} {n}" for axis, n in summary["mesh"].items()) or "one device",
    )
    microbatches = f"{summary['microbatches']} x {summary['microbatch_rows']} rows"
    rows = [
        ("mesh", mesh, f"sharding {summary['sharding']}, remat {summary['remat']}"),
        *([("keys of a row", *summary["context_exchange"])] if summary["context_exchange"] else []),
        ("batch", f"{summary['tokens_per_step']:,} tokens", microbatches),
        ("compiled in", f"{summary['compile_seconds']:.0f} s", ""),
        (),
        ("memory of a chip", human_bytes(summary["memory_bytes"]), ""),
        ("  arguments: state and batch", human_bytes(summary["argument_bytes"]), ""),
        ("  temporaries", human_bytes(summary["temporary_bytes"]), ""),
        ("  peak, by the compiler", human_bytes(summary["peak_bytes"]), memory_verdict(summary)),
        (),
        ("time of a step (estimates)", "", ""),
        (
            "  floor: FLOPs at peak",
            format_seconds(summary["floor_seconds"]),
            f"{si(summary['flops_per_chip'])} FLOPs a chip, by formula",
        ),
        (
            "  compute",
            format_seconds(summary["compute_seconds"]),
            COMPUTE_SOURCES[summary["compute_by"]],
        ),
        *_recompute_rows(summary),
        *_kernel_rows(summary),
        *(
            (f"  {row['kind']}", format_seconds(row["seconds"]), _format_traffic(row))
            for row in summary["traffic"]
            if row["seconds"] >= 1e-3 * summary["step_seconds"]
        ),
        (
            "  not hidden of these",
            format_seconds(summary["exposed_seconds"]),
            "synchronous, or longer than the rest",
        ),
        ("  step", format_seconds(summary["step_seconds"]), "compute + kernels + not hidden"),
        *_interval_rows(summary),
        (),
        (
            "MFU",
            f"{summary['mfu']:.1%}",
            "floor / step" + (", an upper bound" if summary["compute_by"] == "roofline" else ""),
        ),
        ("all tokens of the config", f"{sig3(summary['days'])} days", ""),
    ]
    head = (
        f"{summary['config']} on {summary['topology']}, {chips} {'chips' if chips > 1 else 'chip'}"
    )
    return "\n".join(
        [
            head,
            "",
            *(f"{a:<32}{b:>14}  {c}".rstrip() for a, b, c in (row or ("", "", "") for row in rows)),
        ]
    )


def memory_verdict(summary: dict[str, Any]) -> str:
    """Whether the step fits in memory, and what to change if not."""
    if summary["fits"]:
        return f"fits: {human_bytes(summary['memory_bytes'] - summary['peak_bytes'])} to spare"
    return f"DOES NOT FIT: {human_bytes(summary['over_bytes'])} over; {summary['advice']}"


def render_ranking(rows: list[tuple[str, dict[str, Any] | str]]) -> str:
    """Formats the candidates, each (assignments, summary or the reason for none): those that fit
    first, then by estimated step time.
    """

    def order(row):
        return (
            (2, 0.0)
            if isinstance(row[1], str)
            else (0 if row[1]["fits"] else 1, row[1]["step_seconds"])
        )

    width = max(len(name) for name, _ in rows)
    columns = ("step", "compute", "kernels", "sending", "peak", "sent")
    lines = [f"{'':<{width}}" + "".join(f"{column:>10}" for column in columns) + f"{'MFU':>8}"]
    for name, summary in sorted(rows, key=order):
        if isinstance(summary, str):
            lines.append(f"{name:<{width}}  {summary}")
            continue
        cells = [
            format_seconds(summary[f"{part}_seconds"])
            for part in ("step", "compute", "kernel", "exposed")
        ]
        cells += [human_bytes(summary[f"{part}_bytes"]) for part in ("peak", "sent")]
        suffix = "" if summary["fits"] else f"  over by {human_bytes(summary['over_bytes'])}"
        lines.append(
            f"{name:<{width}}"
            + "".join(f"{cell:>10}" for cell in cells)
            + f"{summary['mfu']:>8.1%}{suffix}"
        )
    return "\n".join(lines)


def format_seconds(value: float) -> str:
    """Formats a duration in s or ms; less than 1 ns is nothing."""
    if value < 1e-9:
        return "0 s"
    return f"{sig3(value)} s" if value >= 1 else f"{sig3(value * 1e3)} ms"


def _recompute_rows(summary: dict[str, Any]):
    if summary["recomputed_seconds"] < 1e-3 * summary["step_seconds"]:
        return []
    time = format_seconds(summary["recomputed_seconds"])
    return [("    of it repeated", time, "for lack of memory: fewer rows, or more remat")]


def _interval_rows(summary: dict[str, Any]):
    if summary["step_interval"] is None:
        return []
    least, most = map(format_seconds, summary["step_interval"])
    ratios = "{} to {}".format(*step_time.RATIOS)
    return [("    interval", f"{least} to", f"{most}: 12 published steps were {ratios} x")]


def _kernel_rows(summary: dict[str, Any]):
    if not summary["kernel_runs"]:
        return []
    runs = ", ".join(
        f"{times:,} x {re.sub('^splash_mha_|(_no)?_residuals$', '', name)}"
        for name, times in summary["kernel_runs"].items()
    )
    time = format_seconds(summary["kernel_seconds"]) if summary["kernel_seconds"] else "in compute"
    return [
        (
            "  kernels",
            time,
            runs
            + (f"; at {step_time.KERNEL_SHARE:.0%} of peak" if summary["kernel_seconds"] else ""),
        )
    ]


def _format_traffic(row: dict[str, Any]) -> str:
    return (
        f"{human_bytes(row['n_bytes'])} over "
        f"{row['axes']}{', may hide' if row['asynchronous'] else ''}"
    )
