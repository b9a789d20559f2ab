"""An orderly stop when a signal asks for one: of all processes, after the same step."""

import signal
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.distributed import processes


class Stop:
    """While entered, the first SIGTERM or Ctrl-C asks the loop for an orderly stop; a second one ends the program as usual.

    Many processes vote on the devices before each step, and read the result when that step has been dispatched and the one before it has
    ended: so nothing waits for it, and all stop after the same step."""

    def __init__(self, say: Callable[[str], None], party: processes.Hosts, mesh: jax.sharding.Mesh):
        self.asked = False
        self._say, self._party, self._n_devices = say, party, mesh.size
        self._each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._votes: jax.Array | None = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        self.asked = True
        self._say(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint; once more stops at once")
        signal.signal(number, self._before[number])

    @property
    def at_once(self) -> bool:
        """May this process stop in the midst of a step?"""
        return self.asked and self._party.processes == 1

    def vote(self) -> None:
        """Call it before each step."""
        if self._party.processes > 1:
            mine = np.array([self._party.process + 1 if self.asked else 0], np.int32)
            with jax.transfer_guard("allow"):
                self._votes = self._largest(jax.make_array_from_callback((self._n_devices,), self._each, lambda index: mine))

    def agreed(self) -> bool:
        """Call it after each step: is it the last, on every process?"""
        if self._party.processes == 1:
            return self.asked
        first = 0 if self._votes is None else int(jax.device_get(self._votes))
        if first and not self.asked:
            self._say(f"process {first - 1} was asked to stop: stopping too, with a checkpoint")
        return first > 0
