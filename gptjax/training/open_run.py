"""A run's directory, locked, before anything is written to it: does a run continue there, and from
what?"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from gptjax.config import overrides
from gptjax.training import resume
from gptjax.training.context import Objective


@dataclasses.dataclass
class OpenRun:
    """A run's directory that this program has locked, before anything is written to it."""

    request: resume.Request  # with the config that the run goes on with
    continues: bool  # from a checkpoint
    checkpoints: Any  # training.checkpoint.CheckpointManager
    bucket_sync: Any  # report.sync.BucketSync

    def remove_new_data(self, processes: Any) -> contextlib.AbstractContextManager[None]:
        """A context that removes newly tokenized data if the continuation is refused within it."""
        is_first = processes.process_id == 0
        return resume.remove_new_data(self.request.directory / "data", self.continues and is_first)

    def open_dataset(
        self, objective: Objective, processes: Any, print_line: Callable[[str], None]
    ) -> Any:
        """Returns the run's data.loader.Dataset. ValueError if processes have different data."""
        processes.heartbeat("the preparation of its data")
        dataset = processes.zero_first(
            lambda: objective.open_dataset(
                self.request.config, self.request.directory / "data", print_line
            )
        )
        processes.assert_equal(
            {"text": dataset.digest()},
            "prepare it once with python -m gptjax.prepare, and give the shards to all",
        )
        return dataset

    def restore(
        self, train_step: Any, mesh: Any, dataset: Any, shards: int, processes: Any
    ) -> resume.ResumePoint:
        """Returns the resume point of a run that continues, from its newest intact checkpoint.
        shards: number of devices with rows of their own."""
        return resume.restore_run(
            self.request,
            self.checkpoints,
            train_step.abstract_state(mesh),
            dataset,
            shards,
            processes,
        )

    def begin_record(self, resume_point: resume.ResumePoint, dataset: Any, processes: Any) -> None:
        """Writes the run's description, and makes its directory ready for metrics and
        checkpoints."""
        from gptjax.report import events

        self.checkpoints.prepare()
        if processes.process_id == 0:
            if resume_point.record_bytes is None:
                events.move_aside(self.request.directory, resume_point.step)
            resume.write_description(self.request.directory, self.request.config, dataset)


@contextlib.contextmanager
def open_run(
    request: resume.Request, bucket: str | None, processes: Any, out: Any
) -> Iterator[OpenRun]:
    """Locks the directory of a run and finds out whether it continues. bucket: as in `train`.
    ValueError if another program has the directory, or if the run there cannot be continued as
    requested."""
    from gptjax.report import sync
    from gptjax.training import checkpoint

    directory, loop = request.directory, request.config.loop
    bucket_sync = sync.BucketSync(directory, bucket)
    checkpoint_dir = directory / "checkpoints" if bucket is None else f"{bucket}/checkpoints"
    with (
        resume.hold_lock(directory, bucket is None, processes, out.warn),
        checkpoint.CheckpointManager(
            checkpoint_dir, loop.keep_last, loop.every_keep, out.warn, processes
        ) as checkpoints,
    ):
        _, continues, leaves = processes.broadcast_from_zero(
            lambda: [bucket_sync.download(), *resume.find_run(request, checkpoints, out.warn)]
        )
        request = dataclasses.replace(request, config=overrides.unflatten(leaves))
        yield OpenRun(request, continues, checkpoints, bucket_sync)
