"""What each GPT-3 needs and takes at best: its paper's whole recipe, compiled for a fitting TPU slice, as the README's table.

    python -m bench.slices [--configs=gpt3_small,gpt3_175b] [--out=slices.json]

Each is `python -m gptjax.plan --config=NAME --topology=SLICE --json` in a process of its own: 1 to 3 minutes, and no TPU.
"""

import argparse
import json
import subprocess
import sys

from gptjax.runtime.units import figure, in_bytes

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
HEAD = ("config", "slice", "mesh", "remat", "peak / memory of a chip", "compute + kernels + sending = step", "MFU", "run", "compiled in")


def planned(config: str, topology: str) -> dict:
    command = [sys.executable, "-m", "gptjax.plan", f"--config={config}", f"--topology={topology}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def row(found: dict) -> str:
    mesh = " x ".join(f"{axis} {n}" for axis, n in found["mesh"].items())
    memory = f"{in_bytes(found['peak_bytes'])} / {in_bytes(found['memory_bytes'])}{'' if found['fits'] else ': does not fit'}"
    parts = " + ".join(figure(found[f"{name}_seconds"]) for name in ("compute", "kernel", "exposed"))
    cells = [
        found["config"],
        f"{found['topology']}, {found['chips']} chips",
        f"{mesh}, {found['microbatches']} x {found['microbatch_rows']} rows",
    ]
    cells += [
        found["remat"],
        memory,
        f"{parts} = {figure(found['step_seconds'])} s",
        f"{found['mfu']:.0%}",
        f"{figure(found['days'])} days",
    ]
    return "| " + " | ".join([*cells, f"{found['compile_seconds']:.0f} s"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=",".join(SLICES), help="comma-separated (default: all eight)")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    args = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    found = []
    for name in args.configs.split(","):
        found.append(planned(name, SLICES[name]))
        print(row(found[-1]), flush=True)
    if args.out:
        with open(args.out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
