"""Memory and step time of each GPT-3 at best: its paper's whole recipe, compiled for a TPU slice
that fits, as the table in the documentation.

    python -m bench.slices [--configs=gpt3_small,gpt3_175b] [--out=slices.json]

Each is `python -m gptjax.plan --config=NAME --topology=SLICE --json` in its own process: 1 to 3
minutes, without a TPU.
"""

import argparse
import json
import subprocess
import sys

from gptjax.runtime.units import human_bytes, sig3

SLICES = {
    "gpt3_small": "v5p-8",
    "gpt3_medium": "v5p-16",
    "gpt3_large": "v5p-32",
    "gpt3_xl": "v5p-64",
    "gpt3_2b7": "v5p-128",
    "gpt3_6b7": "v5p-256",
    "gpt3_13b": "v5p-512",
    "gpt3_175b": "v5p-1024",
}
COLUMNS = (
    "config",
    "slice",
    "mesh",
    "remat",
    "peak / memory of a chip",
    "compute + kernels + sending = step",
    "MFU",
    "run",
    "compiled in",
)


def run_plan(config: str, topology: str) -> dict:
    """Returns the summary of gptjax.plan for a config on a topology."""
    command = [
        sys.executable,
        "-m",
        "gptjax.plan",
        f"--config={config}",
        f"--topology={topology}",
        "--json",
    ]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: {process.stderr.strip()}")
    return json.loads(process.stdout)


def format_row(plan: dict) -> str:
    """Formats a summary as a row of the Markdown table."""
    mesh = " x ".join(f"{axis} {n}" for axis, n in plan["mesh"].items())
    memory_text = (
        f"{human_bytes(plan['peak_bytes'])} / "
        f"{human_bytes(plan['memory_bytes'])}{'' if plan['fits'] else ': does not fit'}"
    )
    parts = " + ".join(sig3(plan[f"{name}_seconds"]) for name in ("compute", "kernel", "exposed"))
    cells = [
        plan["config"],
        f"{plan['topology']}, {plan['chips']} chips",
        f"{mesh}, {plan['microbatches']} x {plan['microbatch_rows']} rows",
    ]
    cells += [
        plan["remat"],
        memory_text,
        f"{parts} = {sig3(plan['step_seconds'])} s",
        f"{plan['mfu']:.0%}",
        f"{sig3(plan['days'])} days",
    ]
    return "| " + " | ".join([*cells, f"{plan['compile_seconds']:.0f} s"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--configs", default=",".join(SLICES), help="comma-separated (default: all eight)"
    )
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    args = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    plans = []
    for name in args.configs.split(","):
        plans.append(run_plan(name, SLICES[name]))
        print(format_row(plans[-1]), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(plans, file, indent=1)


if __name__ == "__main__":
    main()
