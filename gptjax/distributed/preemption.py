"""Orderly stop of a training on a signal: all processes stop after the same step."""

import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.distributed.processes import ProcessGroup


class PreemptionGuard:
    """A context in which the first SIGTERM, SIGINT (Ctrl-C) or SIGHUP (the terminal was closed)
    requests an orderly stop of the loop; a second one ends the program as usual.

    Several processes vote on the devices before each step. Each reads the result after that step is
    dispatched and the previous one has ended, so nothing waits for the vote, and all processes stop
    after the same step."""

    def __init__(
        self, print_line: Callable[[str], None], processes: ProcessGroup, mesh: jax.sharding.Mesh
    ):
        self.stop_requested = False
        self._print_line, self._processes, self._n_devices = print_line, processes, mesh.size
        self._per_device = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._max_vote = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._votes: jax.Array | None = None

    def __enter__(self):
        numbers = [signal.SIGTERM, signal.SIGINT]
        # Windows has no SIGHUP; nohup ignores it.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._old_handlers = {
            number: signal.signal(number, self._handle_signal) for number in numbers
        }
        return self

    def __exit__(self, *error):
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _handle_signal(self, number, frame):
        self.stop_requested = True
        self._print_line(
            f"{signal.Signals(number).name}: stopping after this step, with a checkpoint; a second "
            "signal stops at once"
        )
        signal.signal(number, self._old_handlers[number])

    @property
    def may_stop_mid_step(self) -> bool:
        """Whether this process may stop in the middle of a step: only if it is alone."""
        return self.stop_requested and self._processes.num_processes == 1

    def vote(self) -> None:
        """Starts the vote of all processes; call it before each step."""
        if self._processes.num_processes > 1:
            mine = np.array(
                [self._processes.process_id + 1 if self.stop_requested else 0], np.int32
            )
            with jax.transfer_guard_host_to_device("allow"):
                self._votes = self._max_vote(
                    jax.make_array_from_callback(
                        (self._n_devices,), self._per_device, lambda index: mine
                    )
                )

    def should_stop(self) -> bool:
        """Whether all processes stop after the step that was dispatched last; call it after each
        step."""
        if self._processes.num_processes == 1:
            return self.stop_requested
        first = 0 if self._votes is None else int(jax.device_get(self._votes))
        if first and not self.stop_requested:
            self._print_line(
                f"process {first - 1} received a stop signal: stopping too, with a checkpoint"
            )
        return first > 0
