"""Rehearse a pod on one machine: N processes of M simulated CPU devices each, which meet as hosts do.

`python -m launch.rehearse --processes=2 --devices=4 -- --config=smoke --run=DIR`: what stands after `--` goes to gptjax.train.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gptjax.config import command, parse
from gptjax.distributed import rendezvous
from launch import checks

CHECKOUT = Path(__file__).parents[1]
EXAMPLE = "python -m launch.rehearse --processes=2 --devices=4 -- --config=smoke --run=/tmp/rehearsal --set train.steps=20"
PATIENCE = 60.0  # seconds that the others have to end by themselves when one has failed


def main(arguments: list[str]) -> int:
    parser = command.bare_parser("rehearse", "Run gptjax.train, given what stands after --, as N processes of M devices.", EXAMPLE)
    parser.prog = "python -m launch.rehearse"
    few = parse.whole_argument(1, 64)  # each has its Python, its jax and its copy of the model
    parser.add_argument("--processes", metavar="N", type=few, default=2, help="how many hosts (default: 2)")
    parser.add_argument("--devices", metavar="M", type=few, default=4, help="devices of each (default: 4)")
    own, theirs = checks.split_arguments(arguments, "rehearse", "--config=smoke --run=DIR")
    args = parser.parse_args(own)
    flags = joining(args.processes)
    commands = [[sys.executable, "-m", "gptjax.train", *theirs, *flags[process]] for process in range(args.processes)]
    with started(commands, args.devices, lambda process, line: print(f"[{process}] {line}", flush=True)) as workers:
        return status(workers.wait())


def joining(processes: int) -> list[list[str]]:
    """For each process the flags by which it finds the others, on ports that are free now."""
    port = free_port()
    return [[f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={i}"] for i in range(processes)]


def free_port() -> int:
    """A port that is free, as is the one below it."""
    while True:
        with socket.socket() as above, socket.socket() as below:
            above.bind(("", 0))
            port = above.getsockname()[1]
            with contextlib.suppress(OSError):
                below.bind(("", port - 1))
                return port


class Workers:
    """Processes that run, and what they have said. Made by `started`."""

    def __init__(self, commands: list[list[str]], environment: dict[str, str], hear: Callable[[int, str], None]):
        self.processes = [
            subprocess.Popen(
                words, env=environment, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
            for words in commands
        ]
        self._said: list[list[str]] = [[] for _ in commands]
        self._listeners = [threading.Thread(target=self._listen, args=(i, hear), daemon=True) for i in range(len(commands))]
        for listener in self._listeners:
            listener.start()

    def _listen(self, number: int, hear: Callable[[int, str], None]) -> None:
        stdout = self.processes[number].stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                if not line.startswith("[Gloo]"):  # which narrates on standard output
                    self._said[number].append(line)
                    hear(number, line.rstrip("\n"))

    def said(self, number: int) -> str:
        """All lines of one process so far."""
        return "".join(self._said[number])

    def wait(self, seconds: float | None = None) -> list[int]:
        """Each one's exit status, when all have ended. When one fails, the others have PATIENCE to follow before they are killed; after
        `seconds`, all are. A negative status is the signal that killed it."""
        until = None if seconds is None else time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if any(process.poll() for process in self.processes):
                until = min(until or float("inf"), time.monotonic() + PATIENCE)
                break
            if until is not None and time.monotonic() > until:
                break
            time.sleep(0.05)
        for process in self.processes:
            try:
                process.wait(None if until is None else max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for listener in self._listeners:
            listener.join()
        return [process.wait() for process in self.processes]


@contextlib.contextmanager
def started(commands: list[list[str]], devices: int, hear: Callable[[int, str], None] = lambda number, line: None) -> Iterator[Workers]:
    """The commands, running on so many simulated devices each; hear(number, line) is told what they say. Leaving kills what still runs."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        "PYTHONUNBUFFERED": "1",
        rendezvous.NONCE: checks.nonce(),
    }
    workers = Workers(commands, environment, hear)
    before = signal.signal(signal.SIGTERM, lambda number, frame: [process.terminate() for process in workers.processes])
    try:
        yield workers
    except KeyboardInterrupt:  # a terminal has sent it to the processes too
        workers.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in workers.processes:
            if process.poll() is None:
                process.kill()
        workers.wait()


def status(statuses: list[int]) -> int:
    """Of all: the first that is no success, as a shell would say it."""
    failed = next((status for status in statuses if status), 0)
    return 128 - failed if failed < 0 else failed


if __name__ == "__main__":
    command.run(main)
