"""What was found about a step on chips that are not here, for people: at most 100 columns wide."""

import re
from typing import Any

from gptjax.runtime.units import figure, in_bytes, short

COMPUTE = {
    "cycles": "the compiler's cycles, loops counted out",
    "roofline": "products at peak, or memory traffic: the larger",
}


def report(found: dict[str, Any]) -> str:
    """`found`: estimate.summary."""
    chips, mesh = found["chips"], " x ".join(f"{axis} {n}" for axis, n in found["mesh"].items()) or "one device"
    parts = f"{found['microbatches']} x {found['microbatch_rows']} rows"
    rows = [
        ("mesh", mesh, f"sharding {found['sharding']}, remat {found['remat']}"),
        ("batch", f"{found['tokens_per_step']:,} tokens", parts),
        ("compiled in", f"{found['compile_seconds']:.0f} s", ""),
        (),
        ("memory of a chip", in_bytes(found["memory_bytes"]), ""),
        ("  arguments: state and batch", in_bytes(found["argument_bytes"]), ""),
        ("  temporaries", in_bytes(found["temporary_bytes"]), ""),
        ("  peak, by the compiler", in_bytes(found["peak_bytes"]), verdict(found)),
        (),
        ("time of a step: all estimates", "", ""),
        ("  floor: FLOPs at peak", seconds(found["floor_seconds"]), f"{short(found['flops_per_chip'])} FLOPs a chip, by formula"),
        ("  compute", seconds(found["compute_seconds"]), COMPUTE[found["compute_by"]]),
        *_kernels(found),
        *(
            (f"  {row['kind']}", seconds(row["seconds"]), _sent(row))
            for row in found["traffic"]
            if row["seconds"] >= 1e-3 * found["step_seconds"]
        ),
        ("  not hidden of these", seconds(found["exposed_seconds"]), "what is synchronous, or longer than the rest"),
        ("  step", seconds(found["step_seconds"]), "compute + kernels + not hidden"),
        (),
        ("MFU", f"{found['mfu']:.1%}", "floor / step" + (", an upper bound" if found["compute_by"] == "roofline" else "")),
        ("all tokens of the config", f"{figure(found['days'])} days", ""),
    ]
    head = f"{found['config']} on {found['topology']}, {chips} {'chips' if chips > 1 else 'chip'}"
    return "\n".join([head, "", *(f"{a:<32}{b:>14}  {c}".rstrip() for a, b, c in (row or ("", "", "") for row in rows))])


def verdict(found: dict[str, Any]) -> str:
    if found["fits"]:
        return f"fits: {in_bytes(found['memory_bytes'] - found['peak_bytes'])} to spare"
    return f"DOES NOT FIT: {in_bytes(found['over_bytes'])} over; {found['advice']}"


def ranking(rows: list[tuple[str, dict[str, Any] | str]]) -> str:
    """(assignments, summary or why there is none) of each candidate: those that fit first, then by predicted step."""

    def order(row):
        return (2, 0.0) if isinstance(row[1], str) else (0 if row[1]["fits"] else 1, row[1]["step_seconds"])

    width = max(len(name) for name, _ in rows)
    columns = ("step", "compute", "kernels", "sending", "peak", "sent")
    lines = [f"{'':<{width}}" + "".join(f"{column:>10}" for column in columns) + f"{'MFU':>8}"]
    for name, found in sorted(rows, key=order):
        if isinstance(found, str):
            lines.append(f"{name:<{width}}  {found}")
            continue
        figures = [seconds(found[f"{part}_seconds"]) for part in ("step", "compute", "kernel", "exposed")]
        figures += [in_bytes(found[f"{part}_bytes"]) for part in ("peak", "sent")]
        end = "" if found["fits"] else f"  over by {in_bytes(found['over_bytes'])}"
        lines.append(f"{name:<{width}}" + "".join(f"{figure:>10}" for figure in figures) + f"{found['mfu']:>8.1%}{end}")
    return "\n".join(lines)


def seconds(value: float) -> str:
    return f"{figure(value)} s" if value >= 1 else f"{figure(value * 1e3)} ms" if value else "0 s"


def _kernels(found: dict[str, Any]):
    if not found["kernel_runs"]:
        return []
    runs = ", ".join(f"{times:,} x {re.sub('^splash_mha_|(_no)?_residuals$', '', name)}" for name, times in found["kernel_runs"].items())
    time = seconds(found["kernel_seconds"]) if found["kernel_seconds"] else "in compute"
    return [("  kernels", time, runs + ("; at half of peak, assumed" if found["kernel_seconds"] else ""))]


def _sent(row: dict[str, Any]) -> str:
    return f"{in_bytes(row['n_bytes'])} over {row['axes']}{', may hide' if row['asynchronous'] else ''}"
