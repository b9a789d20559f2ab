"""Step times that others measured on TPUs, with what `gptjax.plan` says of the same model, batch,
mesh and chips.

    python -m bench.published_steps [--only=v6e] [--out=docs/results]

Each is `python -m gptjax.plan --topology=SLICE --json` in its own process: 1 to 3 minutes, without
a TPU. Results are kept in step-times.json, so that a second run compiles what is missing; table and
picture are made of that file. Measured are MaxText's steps, with its own program; what a layer
saves is the nearest of gptjax's choices that fits the memory (MaxText moves some activations to the
host, which gptjax does not), so that a difference is one of programs, too.
"""

import argparse
import itertools
import json
import math
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from gptjax.aot import step_time
from gptjax.config import count, overrides, parse
from gptjax.configs import registry
from gptjax.runtime.units import sig3
from gptjax.sharding import topology

Row = dict[str, Any]

RECIPES = "AI-Hypercomputer/tpu-recipes c8cfe2f, training/"
MAXTEXT = "AI-Hypercomputer/maxtext e591f30, src/maxtext/configs/tpu/"
TIERS = "AI-Hypercomputer/maxtext e591f30, docs/reference/models/tiering.md"
LLAMA31 = ("train.batch_ramp=None", "mesh=Mesh()")
# What a layer saves: MaxText's policy, or the next that fits.
MATMULS = ("attention+qkv+mid+up", "attention+qkv+mid", "attention+qkv", "attention", "full")
OUTPUTS = ("attention+qkv", "attention", "full")  # of projections, in part moved to the host
HEADS = ("attention", "full")
INPUTS = ("full",)


class Constants(NamedTuple):
    """Of a prediction. cycle_share: of the time by the compiler's cycles; kernel_share: of peak
    that kernels reach; hidden_share: of asynchronous communication that computation hides."""

    cycle_share: float
    kernel_share: float
    hidden_share: float


class Point(NamedTuple):
    """A step that was measured. changes: of the config of gptjax. rows: of a device, as jax counts
    devices. in_tflops: `measured` is TFLOP/s of a chip by MaxText's formula, not seconds."""

    config: str
    topology: str
    n_ctx: int
    rows: int
    measured: float  # seconds, or TFLOP/s
    saves: tuple[str, ...]
    source: str
    changes: tuple[str, ...] = ()
    label: str = ""  # of the model, if config is not its name
    in_tflops: bool = False
    published_rows: int = 0  # of the step that was measured, if not `rows`


def fewer(rows: int, point: Point) -> Point:
    """The point with its measured seconds in proportion to its rows, of `rows` in the step that was
    measured, which gptjax's program does not fit into the memory."""
    return point._replace(measured=point.measured * point.rows / rows, published_rows=rows)


def scaled(log_scale: int) -> tuple[str, ...]:
    """Changes of MaxText's global_parameter_scale=2**log_scale (its get_individual_scales)."""
    base, rest = divmod(log_scale, 3)
    heads, width, layers = base + (rest > 0), base + (rest > 1), base
    return (
        f"model.n_layers={16 << layers}",
        f"model.d_model={2048 << width}",
        f"model.n_heads={16 << heads}",
        f"model.mlp=SwiGLU(d_ff={7168 << heads})",
        "model.heads=AttentionHeads(d_head=128)",
        "model.n_vocab=32000",
    )


def scaled_points() -> list[Point]:
    """MaxText's models by scale on v5e and v5p."""
    points = []
    for log_scale, rows, saves, tensor, speeds in (
        (4, 6, INPUTS, 1, {1: 120, 2: 117}),
        (5, 4, INPUTS, 1, {1: 132}),
        (6, 2, INPUTS, 1, {1: 118}),
        (7, 1, OUTPUTS, 16, {1: 110}),
    ):
        for slices, speed in speeds.items():
            points.append(
                scaled_point(log_scale, "v5e-256", slices, rows, tensor, saves, speed, "v5e")
            )
    for log_scale, size, rows, saves, tensor, speeds in (
        (5, 128, 6, MATMULS, 4, {1: 328, 2: 319}),
        (6, 128, 3, MATMULS, 4, {1: 323}),
        (7, 256, 1, MATMULS, 8, {1: 315}),
        (7, 512, 1, MATMULS, 8, {1: 316}),
        (8, 1024, 1, MATMULS, 8, {1: 308}),
        (9, 1024, 2, INPUTS, 8, {1: 294}),
    ):
        for slices, speed in speeds.items():
            points.append(
                scaled_point(log_scale, f"v5p-{size}", slices, rows, tensor, saves, speed, "v5p")
            )
    return points


def scaled_point(log_scale, topology, slices, rows, tensor, saves, tflops, folder) -> Point:
    """A point of one of MaxText's models by scale."""
    mesh = [f"mesh.data={slices}"] if slices > 1 else []
    if tensor > 1:
        mesh += [f"mesh.tensor={tensor}", "mesh.sharding=fsdp_tensor"]
    name = topology if slices == 1 else f"{slices}x{topology}"
    source = f"{MAXTEXT}{folder}/README.md"
    changes = (*scaled(log_scale), *mesh)
    label = f"{1 << log_scale}B"
    return Point("llama3_8b", name, 2048, rows, tflops, saves, source, changes, label, True)


def v6e(config, topology, n_ctx, rows, seconds, saves, folder, changes=(), label="") -> Point:
    """A point of the recipes for v6e."""
    source = f"{RECIPES}trillium/{folder}/README.md"
    return Point(config, topology, n_ctx, rows, seconds, saves, source, LLAMA31 + changes, label)


WORDS_32K = ("model.n_vocab=32000",)  # of Llama 2 and Mistral
LLAMA_405B = (
    "model.n_layers=126",
    "model.d_model=16384",
    "model.n_heads=128",
    "model.mlp=SwiGLU(d_ff=53248)",
)
GPT3 = ("train.batch_ramp=None", "mesh=Mesh()", "model.attention=Dense()")
POINTS = [
    *scaled_points(),
    # fmt: off
    v6e("llama31_8b", "v6e-8", 8192, 3, 3.443, INPUTS, "Llama3.1-8B-MaxText/v6e-8"),
    v6e("llama31_8b", "v6e-16", 8192, 3, 3.393, HEADS, "Llama3.1-8B-MaxText/v6e-16"),
    v6e("llama31_8b", "v6e-32", 8192, 3, 3.495, HEADS, "Llama3.1-8B-MaxText/v6e-32"),
    v6e("llama31_8b", "v6e-64", 8192, 5, 5.652, HEADS, "Llama3.1-8B-MaxText/v6e-64"),
    v6e("llama31_8b", "v6e-256", 8192, 4, 4.546, HEADS, "Llama3.1-8B-MaxText/v6e-256"),
    # fmt: on
    v6e("llama3_70b", "v6e-256", 4096, 3, 9.052, INPUTS, "Llama2-70B-MaxText", WORDS_32K,
        "llama2_70b"),
    fewer(3, Point(
        "gpt3_175b", "v6e-256", 2048, 2, 17.182, INPUTS,
        f"{RECIPES}trillium/GPT3-175B-MaxText/bf16/README.md", GPT3,
    )),
    fewer(5, v6e("llama31_70b", "v6e-256", 8192, 1, 42.656, INPUTS,
        "Llama3.1-70B-MaxText/v6e-256")),
    fewer(6, v6e("llama3_8b", "v6e-8", 8192, 3, 6.320, INPUTS, "Mistral-7B-MaxText", WORDS_32K,
        "mistral_7b")),
    Point(
        "llama3_70b", "v5p-1024", 4096, 4, 4 * 4096 / 692, OUTPUTS, TIERS,
        LLAMA31 + WORDS_32K, "llama2_70b",
    ),
    fewer(2, Point(
        "llama31_70b", "v5p-1024", 8192, 1, 131.474, INPUTS,
        f"{RECIPES}v5p/Llama3.1-405B-MaxText/README.md", (*LLAMA31, *LLAMA_405B), "llama31_405b",
    )),
    Point(
        "llama31_70b", "tpu7x:4x4x4", 8192, 2, 12.20, OUTPUTS,
        f"{RECIPES}ironwood/README.md", LLAMA31,
    ),
]  # fmt: skip


# --- measured and compiled ------------------------------------------------------------------------


def config_of(point: Point, remat: str) -> tuple[str, ...]:
    """The changes of a point's config that saves `remat`: one microbatch, as MaxText."""
    batch = point.rows * topology.from_name(point.topology).n_devices
    return (
        f"model.n_ctx={point.n_ctx}",
        f"train.batch_tokens={batch * point.n_ctx}",
        "train.total_tokens=300000000000",  # of short rows no more are counted
        f"train.microbatch_rows={batch}",
        f"compute.remat={remat}",
        *point.changes,
    )


def measured_seconds(point: Point) -> float:
    """Seconds of the step that was measured. By MaxText's formula of 2024 a token takes 6 FLOPs a
    weight of matrices, and 12 n_ctx for each unit of the heads' width: no causal half."""
    if not point.in_tflops:
        return point.measured
    changes = config_of(point, "full")
    model = overrides.override(registry.config(point.config), *changes).model
    weights = count.parameters(model) - model.n_vocab * model.d_model
    attention = 12 * point.n_ctx * model.n_layers * model.n_heads * model.d_head
    flops = point.rows * point.n_ctx * (6 * weights + attention)
    return flops / point.measured / 1e12


def compile_point(point: Point) -> Row:
    """Returns the plan of the first of the point's `saves` that fits, and what was measured."""
    row: Row = {
        "model": point.label or point.config,
        "topology": point.topology,
        "rows": point.rows,
        "published_rows": point.published_rows or point.rows,
        "measured_seconds": measured_seconds(point),
        "source": point.source,
    }
    for remat in point.saves:
        command = [sys.executable, "-m", "gptjax.plan", f"--config={point.config}"]
        command += [f"--topology={point.topology}", "--json"]
        command += [part for text in config_of(point, remat) for part in ("--set", text)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            print(f"{shlex.join(command)}: {done.stderr.strip()[-2000:]}", file=sys.stderr)
            return row | {"reason": done.stderr.strip()[-200:]}
        row["command"] = shlex.join(command[1:])
        if done.returncode == 0:
            plan = json.loads(done.stdout)
            row |= {name: plan[name] for name in ("chips", "remat", "peak_bytes")}
            for name in ("floor", "compile"):
                row[f"{name}_seconds"] = plan[f"{name}_seconds"]
            for name in ("compute", "recomputed"):  # by the compiler's cycles
                row[f"{name}_seconds"] = plan[f"{name}_seconds"] / step_time.CYCLE_SHARE
            row["kernel_peak_seconds"] = plan["kernel_seconds"] * step_time.KERNEL_SHARE
            for name, is_async in (("synchronous", False), ("asynchronous", True)):
                parts = [t["seconds"] for t in plan["traffic"] if t["asynchronous"] == is_async]
                row[f"{name}_seconds"] = sum(parts)
            return row
    return row | {"reason": "nothing that gptjax saves fits"}


# --- predictions ----------------------------------------------------------------------------------


def predict(row: Row, constants: Constants) -> float:
    """Seconds of a step, without what the compiler repeats for lack of memory, since the program
    that was measured moves activations to the host instead."""
    compute = (row["compute_seconds"] - row["recomputed_seconds"]) * constants.cycle_share
    compute += row["kernel_peak_seconds"] / constants.kernel_share
    sending = row["asynchronous_seconds"]
    exposed = max((1 - constants.hidden_share) * sending, sending - compute)
    return compute + row["synchronous_seconds"] + exposed


def ratios(rows: list[Row], constants: Constants) -> list[float]:
    """Measured / predicted of each."""
    return [row["measured_seconds"] / predict(row, constants) for row in rows]


def fit(rows: list[Row]) -> Constants:
    """The constants of the least mean error, of a grid."""
    shares, twentieths = [n / 10 for n in range(3, 11)], [n / 20 for n in range(10, 31)]
    choices = map(Constants._make, itertools.product(twentieths, shares, (0.0, 0.5, 1.0)))
    return min(choices, key=lambda c: statistics.mean(errors(rows, c)))


def errors(rows: list[Row], constants: Constants) -> list[float]:
    """|log(measured / predicted)| of each."""
    return [abs(math.log(ratio)) for ratio in ratios(rows, constants)]


def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Rows to fit and rows to test with: every second model on a kind of chip, so that no row to
    test with has a sibling among those to fit."""
    kinds = [(row["model"], topology.from_name(row["topology"]).chip.kinds) for row in rows]
    numbers = {kind: i for i, kind in enumerate(dict.fromkeys(kinds))}
    parts: tuple[list[Row], list[Row]] = [], []
    for row, kind in zip(rows, kinds, strict=True):
        parts[numbers[kind] % 2].append(row)
    return parts


def summarize(rows: list[Row]) -> dict[str, Any]:
    """The constants that half of the rows give, and the errors of the other half."""
    learned, held_out = halves(rows)
    found = {}
    for name, constants in {
        "as assumed before": Constants(1.0, 0.5, 1.0),
        "of the first half": fit(learned),
        "of all": fit(rows),
    }.items():
        parts = {"fitted": learned, "held out": held_out}
        found[name] = {"constants": constants._asdict()} | {
            part: {
                "points": len(some),
                "median error": math.expm1(statistics.median(errors(some, constants))),
                "largest error": math.expm1(max(errors(some, constants))),
                "measured / predicted": (
                    min(ratios(some, constants)),
                    max(ratios(some, constants)),
                ),
            }
            for part, some in parts.items()
        }
    return found


# --- shown ----------------------------------------------------------------------------------------


def table(rows: list[Row], constants: Constants) -> list[str]:
    """The lines of the table, in Markdown."""
    lines = [
        "| model | chips | saved | measured | MFU | predicted | measured / predicted | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    learned, _ = halves(rows)
    for row in rows:
        seconds, measured = predict(row, constants), row["measured_seconds"]
        share = "" if row["rows"] == row["published_rows"] else " in proportion"
        cells = [row["model"], row["topology"], row["remat"], f"{sig3(measured)} s{share}"]
        cells += [f"{row['floor_seconds'] / measured:.0%}", f"{sig3(seconds)} s"]
        cells += [f"{measured / seconds:.2f}", "fitted" if row in learned else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(rows: list[Row], constants: Constants, path: Path) -> None:
    """Draws predicted against measured."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5.2), layout="constrained")
    ends = [min(r["measured_seconds"] for r in rows) / 1.3]
    ends.append(max(r["measured_seconds"] for r in rows) * 1.3)
    axes.plot(ends, ends, color="0.4", lw=1)
    for factor in (1 / 1.15, 1.15):
        axes.plot(ends, [x * factor for x in ends], color="0.7", lw=1, ls="--")
    learned, _ = halves(rows)
    colors = {"v5e": "C0", "v5p": "C1", "v6e": "C2", "tpu7x": "C3"}
    for name, color in colors.items():
        for part, face in ((learned, "none"), ([r for r in rows if r not in learned], color)):
            some = [row for row in part if name in row["topology"]]
            seconds = [predict(row, constants) for row in some]
            axes.scatter([r["measured_seconds"] for r in some], seconds, 40, fc=face, ec=color)
        axes.scatter([], [], 40, color=color, label=name)
    axes.scatter([], [], 40, fc="none", ec="0.3", label="fitted")
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(xlabel="step measured by others, s", ylabel="step predicted by gptjax.plan, s")
    ticks = [n for n in (2, 3, 5, 10, 20, 50, 100) if ends[0] < n < ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, list(map(str, ticks)))
        axis.set_ticks([], minor=True)
    axes.legend(frameon=False)
    axes.set_title("Dashed: 15% off", loc="left", fontsize=10)
    figure.savefig(path, dpi=120)


def main(arguments: list[str]) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="compile those whose topology has this in it")
    parser.add_argument("--out", default="docs/results", type=parse.path_argument)
    args = parser.parse_args(arguments)
    file = args.out / "step-times.json"
    known = json.loads(file.read_text()) if file.exists() else []
    for point in POINTS:
        name = [point.label or point.config, point.topology]
        if args.only in point.topology and name not in [[r["model"], r["topology"]] for r in known]:
            print(*name, file=sys.stderr, flush=True)
            known.append(compile_point(point))
            file.write_text(json.dumps(known, indent=1) + "\n")
    rows = [row for row in known if "reason" not in row]
    found = summarize(rows)
    for name, figures in found.items():
        print(name, json.dumps(figures, indent=1))
    constants = fit(halves(rows)[0])
    print("\n".join(table(rows, constants)))
    draw(rows, constants, args.out / "step-times.png")


if __name__ == "__main__":
    main(sys.argv[1:])
