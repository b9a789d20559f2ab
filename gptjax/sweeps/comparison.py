"""Results of a sweep: the final loss of each arm with a confidence interval over seeds, and its
difference from the baseline, paired by seed."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from gptjax.config.schema import Config
from gptjax.sweeps import run_status
from gptjax.sweeps.points import Arm, Point, run_flops


@dataclasses.dataclass(frozen=True)
class MeanInterval:
    """A mean over seeds and half the width of its 95% confidence interval (Student's t); NaN for a
    single seed."""

    mean: float
    half_width: float
    n: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (
            "" if math.isnan(self.half_width) else f" \N{PLUS-MINUS SIGN} {self.half_width:.4f}"
        )


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Returns the mean with the half width of its 95% interval (Student's t; NaN for one value)."""
    import scipy.stats

    n = len(values)
    half_width = (
        scipy.stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
        if n > 1
        else math.nan
    )
    return MeanInterval(statistics.fmean(values), float(half_width), n)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """The results of one point so far. curve: (tokens, validation loss in nats per token) of each
    evaluation; the last is final only if the state is "done". noise_scale: the gradient noise scale
    in tokens, the median over the second half of the steps; None if batches have one microbatch.
    reason: why the run has one of run_status.ERROR_STATES."""

    point: Point
    config: Config
    state: run_status.State
    step: int
    curve: tuple[tuple[float, float], ...]
    tokens_per_s: float | None
    seconds: float
    noise_scale: float | None = None
    reason: str = ""

    @property
    def final_loss(self) -> float | None:
        return self.curve[-1][1] if self.state == "done" and self.curve else None


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """The results of an arm. difference: from the baseline, over the seeds that both have finished;
    None for the baseline itself, or if there are no such seeds."""

    label: str
    runs: tuple[RunResult, ...]
    loss: MeanInterval | None
    difference: MeanInterval | None

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def holdout(self) -> bool:
        """Whether the arm's points are predicted by scaling laws instead of fitted."""
        return self.runs[0].point.holdout

    @property
    def flops(self) -> float:
        """Training FLOPs of one complete run."""
        return run_flops(self.config)

    @property
    def tokens_per_s(self) -> float | None:
        speeds = [run.tokens_per_s for run in self.runs if run.tokens_per_s is not None]
        return statistics.median(speeds) if speeds else None

    @property
    def n_unfinished(self) -> int:
        return sum(run.final_loss is None for run in self.runs)


def load_run(point: Point, directory: Path) -> RunResult:
    """Reads the results of one point from its directory; a damaged run has the state "damaged"."""
    assert point.config is not None
    status = run_status.read_status(point, directory)
    try:
        records = run_status.read_records(directory / point.name)
    except ValueError as error:
        return RunResult(point, point.config, "damaged", 0, (), None, 0.0, reason=str(error))
    evaluations = [
        record
        for record in records
        if math.isfinite(record.get("validation_loss", math.nan)) and record.get("tokens", 0) > 0
    ]
    curve = tuple((record["tokens"], record["validation_loss"]) for record in evaluations)
    speeds = [r["tokens_per_s"] for r in records if "tokens_per_s" in r]
    seconds = sum(r["seconds"] for r in records if "seconds" in r)
    # The first steps compile.
    speed = statistics.median(speeds[len(speeds) // 10 :]) if speeds else None
    scales = [r["noise_scale"] for r in records if "noise_scale" in r]
    scales = [scale for scale in scales[len(scales) // 2 :] if math.isfinite(scale)]
    # an estimate, which may come out below 0, and then says nothing
    noise_scale = statistics.median(scales) if scales else 0.0
    return RunResult(
        point,
        point.config,
        status.state,
        status.step,
        curve,
        speed,
        seconds,
        noise_scale if noise_scale > 0 else None,
        status.reason,
    )


def compare_arms(arms: Sequence[Arm], directory: Path) -> list[ArmResult]:
    """Returns the results of every arm. The first arm is the baseline of the others."""
    results: list[ArmResult] = []
    all_final_losses: list[dict[int, float]] = []
    for arm in arms:
        runs = tuple(load_run(point, directory) for point in arm.points)
        final_losses = {
            run.config.seed: run.final_loss for run in runs if run.final_loss is not None
        }
        differences = (
            [
                final_losses[seed] - all_final_losses[0][seed]
                for seed in final_losses
                if seed in all_final_losses[0]
            ]
            if all_final_losses
            else []
        )
        loss = mean_interval(list(final_losses.values())) if final_losses else None
        results.append(
            ArmResult(arm.label, runs, loss, mean_interval(differences) if differences else None)
        )
        all_final_losses.append(final_losses)
    return results
