"""Part b of bench.accelerator: does a run train, survive SIGKILL, and generate text?

gpt2_124m, 40 steps of 32 rows, is killed after a checkpoint and continued by the same command;
what it learned before the kill and after is compared, step by step, with a run that nothing
interrupts. Attention dropout is off, so that the kernels for accelerators compute it. Each run is
`python -m gptjax.train` in a process of its own.
"""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bench import accelerator_rows
from bench.accelerator_rows import Figures, Recorder
from bench.parts import sets
from gptjax.report import events
from gptjax.runtime import child

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.05  # nats: sums of GPU kernels may differ in their order from run to run
EVERY_SAVE, KILL_STEP = 10, 25
SETS = {
    "gpt2_124m": (
        "train.steps=40",
        f"train.batch_tokens={32 * 1024}",
        f"train.schedule.warmup_tokens={10 * 32 * 1024}",  # or it would hardly learn
        "model.dropout.attention=0",
        "loop.eval_rows=16",
    ),
    # Long enough to be killed before its end.
    "smoke": ("train.total_tokens=51200", "model.d_model=64", "loop.eval_rows=8"),
}


def train_arguments(config: str, directory: Path, text: Path) -> list[str]:
    """The module and arguments of a run on the text in `directory`."""
    every = (
        f"loop.every_save={EVERY_SAVE}",
        "loop.every_log=1",
        "loop.every_eval=100000",
        "loop.sample_tokens=8",
    )
    source = f"data.sources=Text(path='{text}')"
    return [
        *("gptjax.train", f"--config={config}", f"--run_dir={directory}"),
        *sets(*SETS[config], *every, source, "data.validation=Tail(fraction=0.02)"),
    ]


def losses(directory: Path) -> dict[int, float]:
    """The loss of each step of a run so far."""
    return {record["step"]: record["loss"] for record in events.read(directory) if "loss" in record}


def last_step(directory: Path) -> int:
    """The last step that a run has recorded."""
    return max(losses(directory), default=0)


def run(
    arguments: list[str], recorder: Recorder, is_over: Callable[[], bool] = lambda: False
) -> tuple[Figures, str]:
    """Runs a module with arguments, and kills it as soon as is_over(). Returns (its seconds and
    status, its output). RuntimeError with its last line if it fails, OutOfTime if it is not done in
    time."""
    start, path = time.monotonic(), recorder.work / "output.txt"
    with path.open("wb") as output:
        command = child.command(["-m", *arguments])
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        while process.poll() is None and not is_over() and recorder.seconds_left > 1:
            time.sleep(0.05)
        is_late = process.poll() is None and recorder.seconds_left <= 1
        process.kill()
        status = process.wait()
    text = path.read_text(errors="replace").strip()
    print(text, flush=True)
    if is_late:
        raise accelerator_rows.OutOfTime(f"{arguments[0]} killed at the end of the part's time")
    if status not in (0, -signal.SIGKILL):
        last = text.splitlines()[-1] if text else "no output"
        raise RuntimeError(f"{arguments[0]} ended with status {status}: {last}")
    return {"seconds": time.monotonic() - start, "status": status}, text


def compare(found: dict[int, float], expected: dict[int, float]) -> Figures:
    """The largest difference over the steps that both have."""
    steps = found.keys() & expected.keys()
    if not steps:
        return {"verdict": "failed", "note": "no step in common"}
    difference = max(abs(found[step] - expected[step]) for step in steps)
    is_right = difference <= TOLERANCE  # false for NaN
    note = f"{len(steps)} steps, {'bitwise equal' if difference == 0 else 'not bitwise equal'}"
    return {"difference": difference, "note": note, "verdict": "ok" if is_right else "WRONG"}


def measure(recorder: Recorder, _: list[str]) -> None:
    """Records a row for the killed run, its continuation, text of it, and both comparisons."""
    config = "smoke" if recorder.is_toy else "gpt2_124m"
    text = recorder.work / "text.txt"
    text.write_text("\n".join(path.read_text() for path in sorted(ROOT.glob("gptjax/**/*.py"))))
    killed, whole = recorder.work / "killed", recorder.work / "whole"
    before: dict[int, float] = {}

    def first():
        # The checkpoint of step 10 is complete, since that of step 20 has begun.
        figures, _ = run(
            train_arguments(config, killed, text), recorder, lambda: last_step(killed) >= KILL_STEP
        )
        before.update(losses(killed))
        if figures["status"] == 0:
            return figures | {"verdict": "failed", "note": "over before it could be killed"}
        return figures | {"verdict": "ok", "note": f"killed after step {max(before)}"}

    def resumed():
        figures, output = run(train_arguments(config, killed, text), recorder)
        match = re.search(r"continuing from step (\d+)", output)
        first_step = int(match[1]) if match else 0
        note = f"from step {first_step} to step {last_step(killed)}"
        words = {"verdict": "ok" if first_step else "failed", "note": note}
        recorder.add(f"{config} resumed", **figures, **words)
        repeated = {step: loss for step, loss in before.items() if step > first_step}
        return compare(repeated, losses(killed))

    def sampled():
        words = ["--prompt=def main", f"--max_new_tokens={16 if recorder.is_toy else 64}"]
        figures, _ = run(["gptjax.sample", f"--model={killed}", *words], recorder)
        return figures | {"verdict": "ok"}

    def uninterrupted():
        figures, _ = run(train_arguments(config, whole, text), recorder)
        recorder.add(f"{config} uninterrupted", **figures, verdict="ok")
        return compare(losses(killed), losses(whole))

    recorder.measure(
        [
            (f"{config} trained and killed", first),
            (f"{config} losses before the kill and after", resumed),
            (f"{config} sampled", sampled),
            (f"{config} losses with and without a kill", uninterrupted),
        ]
    )


if __name__ == "__main__":
    accelerator_rows.run_part(measure)
