"""The data of a run that has streams among its sources, and where they are at each step, for its
checkpoints."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gptjax.data import loader, stream_rows

Positions = list[stream_rows.Position | None]  # of each source; None: a row's number is enough


class StreamDataset(loader.Dataset):
    """A loader.Dataset with streams, whose rows are read in order."""

    _start: Positions | None = None  # where `batches` begins; None: at the beginning of all
    _positions: dict[int, Positions] = {}  # before some steps

    def batches(
        self,
        plan: loader.BatchPlan,
        max_microbatch_rows: int,
        first_step: int = 0,
        local_rows: Callable[[int], Sequence[int]] = range,
    ) -> Iterator[dict[str, Any]]:
        """Returns the batches as loader.Dataset.batches does. Each call reads anew, from the
        position of `seek`. Every process tokenizes all rows and takes its own: they are the same on
        any number of processes, and more processes do not read faster."""
        reader = copy.copy(self)  # an iterator of before may still read ahead
        starts = self._start or [stream_rows.Position()] * len(self._train)
        reader._source_rows = [
            rows.begin(start) if isinstance(rows, stream_rows.StreamRows) and start else rows
            for rows, start in zip(self._source_rows, starts, strict=True)
        ]

        def positions(step: int) -> Positions:
            n_rows = self._mixture.rows_before(plan.first_row(step))
            return [
                rows.position(n) if isinstance(rows, stream_rows.StreamRows) else None
                for rows, n in zip(reader._source_rows, n_rows, strict=True)
            ]

        self._positions = {first_step: positions(first_step)}
        batches = loader.iterate_steps(
            plan,
            max_microbatch_rows,
            first_step,
            local_rows,
            self._config.model.n_ctx + 1,
            reader.fill,
            positions,
        )
        return self._track(batches, first_step)

    def _track(
        self, batches: Iterable[dict[str, Any]], first_step: int
    ) -> Iterator[dict[str, Any]]:
        """Yields the batches, and keeps the positions before and after the newest. A batch that is
        read ahead brings its own: reading ahead moves nothing here."""
        for step, batch in enumerate(batches, first_step):
            after = batch.pop("next_positions")
            self._positions = {step: self._positions[step], step + 1: after}
            yield batch

    def position(self, step: int) -> list[dict[str, Any] | None]:
        """Returns what a checkpoint of `step` holds to find the rows after it: a JSON object for
        each stream. `step` is the one before or after the newest batch."""
        return [
            opened.to_json(position)
            if isinstance(opened, stream_rows.OpenStream) and position is not None
            else None
            for opened, position in zip(self._train, self._positions[step], strict=True)
        ]

    def seek(self, position: list[dict[str, Any] | None]) -> None:
        """Makes `batches` begin at what `position` returned in an earlier process, with that step.
        Raises ValueError if a stream is not what it was."""
        self._start = [
            opened.from_json(saved)
            if isinstance(opened, stream_rows.OpenStream) and saved is not None
            else None
            for opened, saved in zip(self._train, position, strict=True)
        ]
