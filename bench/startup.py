"""Where the time goes from the shell to the first step of `train`, and to the first token of
`sample`.

    python -m bench.startup [--config=smoke] [--rounds=5]

Each program is started several times in a process of its own until its first step is reported or
its first token is shown, in turn. They share a compilation cache, which the first start of each
fills ("cold"); the others are "warm". Prints medians in seconds: of the wall clock, of the
processor, and of the parts of the wall clock. A part does not count what others count within it:
"data" is without the imports that reading data causes. Measured within the programs, whose hooks
cost less than a hundredth.
"""

import builtins
import importlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from gptjax import cli
from gptjax.config import parse

IMPORTS, REST = "interpreter, imports", "rest"
# Events of jax.monitoring, as parts.
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile, or read",
}
# Of each program: (module, function in it, part of the time).
PARTS = {
    "train": [
        ("gptjax.sharding.device_mesh", "make_mesh", "devices"),
        ("gptjax.training.open_run", "OpenRun.open_dataset", "data"),
        ("gptjax.training.pretraining", "PretrainingObjective.init_state", "parameters"),
        ("gptjax.training.one_run", "OneRun.step", "step or token"),
    ],
    "sample": [
        ("gptjax.sharding.device_mesh", "make_mesh", "devices"),
        ("gptjax.weights.load", "load", "parameters"),
        ("gptjax.weights.load", "Weights.load_params", "parameters"),
        ("gptjax.generate.decode", "first_tokens", "step or token"),
    ],
}
# Of each program: (module, function in it, number of the call before which the start is over). The
# first text that `sample` writes is the prompt.
ENDS = {
    "train": ("gptjax.training.loop", "TrainLoop._write", 1),
    "sample": ("gptjax.report.console", "Console.write", 2),
}
NAMES = [IMPORTS, "devices", "data", "parameters", *EVENTS.values(), "step or token", REST]
CHILD = "from bench import startup; startup.measure()"
Interval = tuple[str, float, float]  # part, start, end


def self_seconds(intervals: list[Interval], start: float, end: float) -> dict[str, float]:
    """The seconds of each part between start and end: every moment counts to the interval around
    it that began last, and to REST if there is none."""
    seconds = dict.fromkeys(NAMES, 0.0)
    points = sorted({start, end, *(t for _, *ends in intervals for t in ends if start < t < end)})
    for a, b in zip(points, points[1:], strict=False):
        around = [interval for interval in intervals if interval[1] <= a and b <= interval[2]]
        seconds[max(around, key=lambda interval: interval[1])[0] if around else REST] += b - a
    return seconds


def replace(module: str, path: str, make: Callable[[Any], Any]) -> None:
    """Replaces a function of a module, or of a class in it, by make(function)."""
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    setattr(owner, name, make(getattr(owner, name)))


def measure() -> None:
    """Runs a program until it has started, and prints what that took. sys.argv: when the process
    was started, the program's name, its arguments."""
    start, program, arguments = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    intervals: list[Interval] = [(IMPORTS, start, time.monotonic())]
    n_calls = 0

    def time_calls(part: str, is_outermost: bool = False) -> Callable[[Any], Any]:
        def make(function):
            depth = 0

            def timed(*args, **options):
                nonlocal depth
                if depth and is_outermost:
                    return function(*args, **options)
                depth, begin = depth + 1, time.monotonic()
                try:
                    return function(*args, **options)
                finally:
                    depth -= 1
                    intervals.append((part, begin, time.monotonic()))

            return timed

        return make

    def stop_at(number: int) -> Callable[[Any], Any]:
        def make(function):
            def counted(*args, **options):
                nonlocal n_calls
                n_calls += 1
                if n_calls < number:
                    return function(*args, **options)
                end, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
                result = {"wall": end - start, "processor": usage.ru_utime + usage.ru_stime}
                result |= self_seconds(intervals, start, end)
                print("\n" + json.dumps(result), flush=True)
                os._exit(0)

            return counted

        return make

    def add_event(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event in EVENTS:
            now = time.monotonic()
            intervals.append((EVENTS[event], now - duration_secs, now))

    builtins.__import__ = time_calls(IMPORTS, is_outermost=True)(builtins.__import__)
    import jax

    jax.monitoring.register_event_duration_secs_listener(add_event)
    main = importlib.import_module(f"gptjax.{program}").main
    for module, path, part in PARTS[program]:
        replace(module, path, time_calls(part))
    replace(*ENDS[program][:2], stop_at(ENDS[program][2]))
    main(arguments)


def start_program(program: str, arguments: list[str], cache: str) -> dict[str, float]:
    """Starts a program with a compilation cache; returns what `measure` prints."""
    words = [sys.executable, "-c", CHILD, str(time.monotonic()), program, *arguments]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    output = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main(arguments: list[str]) -> None:
    parser = cli.make_parser("startup", __doc__ or "", "python -m bench.startup --rounds=9")
    parser.prog = "python -m bench.startup"
    parser.add_argument("--config", default="smoke", help="of the run (default: smoke)")
    parser.add_argument(
        "--rounds", type=parse.int_argument(), default=5, help="warm starts (default: 5)"
    )
    args = parser.parse_args(arguments)
    starts: dict[str, list[dict[str, float]]] = {"train": [], "sample": []}
    with tempfile.TemporaryDirectory() as folder:
        run, cache = pathlib.Path(folder) / "run", f"{folder}/compiled"
        flags = [f"--config={args.config}", "train.steps=2", f"--run_dir={run}"]
        done = subprocess.run(
            [sys.executable, "-m", "gptjax.train", *flags], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            sys.exit(done.returncode)  # its error is on the screen
        for i in range(args.rounds + 1):
            flags = [f"--config={args.config}", f"--run_dir={folder}/new_{i}"]
            starts["train"].append(start_program("train", flags, cache))
            starts["sample"].append(start_program("sample", [f"--model={run}"], cache))
    print(f"{args.config}: seconds, one cold start, medians of {args.rounds} warm ones")
    print(f"{'':22}" + "".join(f"{p + end:>15}" for p in starts for end in (", cold", ", warm")))
    for name in ("wall", "processor", *NAMES):
        line = f"{name:22}"
        for cold, *warm in starts.values():
            line += f"{cold[name]:15.2f}{statistics.median(s[name] for s in warm):15.2f}"
        print(line)


if __name__ == "__main__":
    cli.run(main)
