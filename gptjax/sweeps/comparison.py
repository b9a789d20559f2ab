"""What came out of a sweep: each arm's final loss with an interval over seeds, and its difference from the baseline, seed by seed."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from gptjax.config import sweep
from gptjax.config.schema import Config
from gptjax.config.sweep import Arm, Point
from gptjax.sweeps import run_status


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with half the width of its 95% interval, by Student's t; nan for a single seed."""

    mean: float
    half: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if math.isnan(self.half) else f" \N{PLUS-MINUS SIGN} {self.half:.4f}")


def estimate(values: Sequence[float]) -> Estimate:
    import scipy.stats

    n = len(values)
    half = scipy.stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(statistics.fmean(values), float(half), n)


@dataclasses.dataclass(frozen=True)
class Run:
    """One point as it is. curve: (tokens, validation loss) of each evaluation. noise_scale: in tokens, the median over the second half of
    the steps; None where batches are of one microbatch. Losses of points that are not done are not final. why: of standing.FAULTS."""

    point: Point
    config: Config
    state: run_status.State
    step: int
    curve: tuple[tuple[float, float], ...]
    tokens_per_s: float | None
    seconds: float
    noise_scale: float | None = None
    why: str = ""

    @property
    def final(self) -> float | None:
        return self.curve[-1][1] if self.state == "done" and self.curve else None


@dataclasses.dataclass(frozen=True)
class Result:
    """An arm as it came out. difference: to the baseline, over the seeds that both have finished; None for the baseline itself, or where
    there are none."""

    label: str
    runs: tuple[Run, ...]
    loss: Estimate | None
    difference: Estimate | None

    @property
    def config(self) -> Config:
        return self.runs[0].config

    @property
    def check(self) -> bool:
        """Of points that the sweep's laws are to predict."""
        return self.runs[0].point.check

    @property
    def flops(self) -> float:
        """Of one run to its end."""
        return sweep.flops(self.config)

    @property
    def tokens_per_s(self) -> float | None:
        found = [run.tokens_per_s for run in self.runs if run.tokens_per_s is not None]
        return statistics.median(found) if found else None

    @property
    def unfinished(self) -> int:
        return sum(run.final is None for run in self.runs)


def measured(point: Point, directory: Path) -> Run:
    """What lies in the run's directory; of a damaged one, that it is."""
    assert point.config is not None
    now = run_status.standing(point, directory)
    try:
        records = run_status.records(directory / point.name)
    except ValueError as error:
        return Run(point, point.config, "damaged", 0, (), None, 0.0, why=str(error))
    evaluations = [record for record in records if math.isfinite(record.get("validation_loss", math.nan)) and record.get("tokens", 0) > 0]
    curve = tuple((record["tokens"], record["validation_loss"]) for record in evaluations)
    speeds = [r["tokens_per_s"] for r in records if "tokens_per_s" in r]
    seconds = sum(r["seconds"] for r in records if "seconds" in r)
    # The first steps compile.
    speed = statistics.median(speeds[len(speeds) // 10 :]) if speeds else None
    scales = [r["noise_scale"] for r in records if "noise_scale" in r]
    scales = [scale for scale in scales[len(scales) // 2 :] if math.isfinite(scale)]
    noise = statistics.median(scales) if scales else 0.0  # an estimate, which may come out below 0, and then says nothing
    return Run(point, point.config, now.state, now.step, curve, speed, seconds, noise if noise > 0 else None, now.why)


def compared(arms: Sequence[Arm], directory: Path) -> list[Result]:
    """Every arm, the baseline, which is the first, before the others."""
    results: list[Result] = []
    finals: list[dict[int, float]] = []
    for arm in arms:
        runs = tuple(measured(point, directory) for point in arm.points)
        final = {run.config.seed: run.final for run in runs if run.final is not None}
        pairs = [final[seed] - finals[0][seed] for seed in final if seed in finals[0]] if finals else []
        loss = estimate(list(final.values())) if final else None
        results.append(Result(arm.label, runs, loss, estimate(pairs) if pairs else None))
        finals.append(final)
    return results
