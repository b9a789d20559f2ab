"""What the training loop works with: objective, context of a run, compiled functions."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.schema import Config
from gptjax.runtime import errors
from gptjax.training import resume


class Objective(Protocol):
    """What a run optimizes: everything in which pre-training and fine-tuning differ."""

    def open_dataset(self, config: Config, directory: Path, log: Callable[[str], None]) -> Any:
        """Opens the data of a run, as a data.loader.Dataset does. What is not tokenized yet is
        tokenized into `directory`; `log` prints a line of progress."""
        ...

    def build_step(self, config: Config, platform: str, mesh: Any, dataset: Any) -> Any:
        """Returns the training.step.TrainStep. platform: of the devices, as in "cpu"."""
        ...

    def init_state(self, config: Config, step: Any, mesh: Any, dataset: Any, out: Any) -> Any:
        """Returns the state before the first step, sharded over the mesh. Called inside
        jax.set_mesh(mesh)."""
        ...

    def make_program(self, context: "TrainContext", put_on_mesh: Callable) -> "Program":
        """Returns the compiled functions of a run. put_on_mesh(array, letters, n_rows): places a
        host array on the mesh (sharding.rules.put_on_mesh)."""
        ...

    def generate_samples(
        self, context: "TrainContext", state: Any, step: int, is_last: bool
    ) -> list[str]:
        """Returns texts that show a person what the state has learned. is_last: at the end of the
        run."""
        ...


@dataclasses.dataclass
class TrainContext:
    """Everything that the training loop needs of one run."""

    config: Config
    directory: Path
    mesh: Any
    resume_point: resume.ResumePoint
    dataset: Any  # data.loader.Dataset
    step: Any  # training.step.TrainStep
    checkpoints: Any  # training.checkpoint.CheckpointManager
    bucket_sync: Any  # report.sync.BucketSync
    out: Any  # report.console.Console
    processes: Any  # distributed.processes.ProcessGroup
    profiler: Any  # report.profile.Profiler
    objective: Objective
    name: str = ""  # distinguishes the runs of one program; empty if there is one run
    warnings: set[str] = dataclasses.field(default_factory=set)  # those that were printed

    @property
    def batch_schedule(self) -> BatchSchedule:
        return self.resume_point.plan

    @property
    def max_microbatch_rows(self) -> int:
        """Upper bound of the rows of a microbatch, summed over all processes;
        BatchSchedule.microbatch computes the size at each step from it."""
        return self.resume_point.max_microbatch_rows

    @property
    def microbatch_rows(self) -> int:
        """Rows of a microbatch of the last step, summed over all processes."""
        return self.batch_schedule.largest_microbatch(self.max_microbatch_rows)

    def warn(self, line: str) -> None:
        """Prints a warning, which names the run if there are several."""
        self.out.warn(f"{self.name}: {line}" if self.name else line)

    def try_optional(self, description: str, fn: Callable[[], Any]) -> None:
        """Calls fn(), on whose success the training does not depend. The first error of each
        `description` is printed as a warning, later ones are not."""
        try:
            fn()
        except Exception as error:
            if description not in self.warnings:
                self.warnings.add(description)
                self.warn(f"{description}: {errors.classify_error(error)[1]}; the training goes on")


class Program(Protocol):
    """The compiled functions that the training loop calls: for one run (one_run.OneRun), or for
    several runs whose states are stacked along a first axis (sweeps.vmapped_runs.VmappedRuns)."""

    def step(
        self, state: Any, batches: Sequence[dict], guard: Any, progress: Any
    ) -> tuple[Any, dict] | None:
        """Returns (state, metrics) after one step; each metric has one value per run. None if
        `guard`, a distributed.preemption.PreemptionGuard, stopped the step midway. Donates
        `state`. batches: of each run, as data.loader.Dataset.batches yields them. progress: a
        report.console.TrainingDisplay."""
        ...

    def evaluate(self, state: Any) -> list[dict[str, float]]:
        """Returns the validation metrics of each run."""
        ...

    def run_state(self, state: Any, index: int) -> Any:
        """Returns the TrainState of run number `index`."""
        ...
