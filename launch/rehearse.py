"""Rehearse a pod on one machine, with simulated CPU devices.

N processes with M devices each connect like hosts:
`python -m gptjax.launch.rehearse --num_processes=2 --devices=4 -- --config=smoke --run_dir=DIR`:
arguments after `--` go to gptjax.train.
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

from gptjax import cli
from gptjax.config import parse
from gptjax.distributed import cluster
from gptjax.launch import checks

EXAMPLE = (
    "python -m gptjax.launch.rehearse --num_processes=2 --devices=4 -- --config=smoke "
    "--run_dir=/tmp/rehearsal --set train.steps=20"
)
EXIT_TIMEOUT = 60.0  # seconds that the others have to end by themselves when one has failed


def main(arguments: list[str]) -> int:
    """Runs the processes; returns the exit status."""
    parser = cli.make_parser(
        "rehearse",
        "Run gptjax.train, given what stands after --, as N processes of M devices.",
        EXAMPLE,
    )
    parser.prog = "python -m gptjax.launch.rehearse"
    count = parse.int_argument(1, 64)  # each has its Python, its jax and its copy of the model
    parser.add_argument(
        "--num_processes", metavar="N", type=count, default=2, help="how many hosts (default: 2)"
    )
    parser.add_argument(
        "--devices", metavar="M", type=count, default=4, help="devices of each (default: 4)"
    )
    own_args, train_args = checks.split_arguments(
        arguments, "rehearse", "--config=smoke --run_dir=DIR"
    )
    args = parser.parse_args(own_args)
    flags = distributed_flags(args.num_processes)
    commands = [
        [sys.executable, "-m", "gptjax.train", *train_args, *flags[process]]
        for process in range(args.num_processes)
    ]
    with start_workers(
        commands, args.devices, lambda process, line: print(f"[{process}] {line}", flush=True)
    ) as workers:
        return exit_status(workers.wait())


def distributed_flags(processes: int) -> list[list[str]]:
    """Returns for each process the flags by which it finds the others, on free ports."""
    port = free_port()
    return [
        [f"--coordinator=localhost:{port}", f"--num_processes={processes}", f"--process_id={i}"]
        for i in range(processes)
    ]


def free_port() -> int:
    """Returns a free port whose predecessor is free too."""
    while True:
        with socket.socket() as above, socket.socket() as below:
            above.bind(("", 0))
            port = above.getsockname()[1]
            with contextlib.suppress(OSError):
                below.bind(("", port - 1))
                return port


class Workers:
    """Running processes and their output. Made by `start_workers`."""

    def __init__(
        self,
        commands: list[list[str]],
        environment: dict[str, str],
        on_line: Callable[[int, str], None],
    ):
        self.processes = [
            subprocess.Popen(
                command_line,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            for command_line in commands
        ]
        self._output: list[list[str]] = [[] for _ in commands]
        self._listeners = [
            threading.Thread(target=self._listen, args=(i, on_line), daemon=True)
            for i in range(len(commands))
        ]
        for listener in self._listeners:
            listener.start()

    def _listen(self, number: int, on_line: Callable[[int, str], None]) -> None:
        stdout = self.processes[number].stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                if not line.startswith("[Gloo]"):  # which narrates on standard output
                    self._output[number].append(line)
                    on_line(number, line.rstrip("\n"))

    def output(self, number: int) -> str:
        """All lines of one process so far."""
        return "".join(self._output[number])

    def wait(self, seconds: float | None = None) -> list[int]:
        """Returns the exit statuses once all have ended; a negative status is the signal that
        killed it.

        When one fails, the others have EXIT_TIMEOUT to end before they are killed; after `seconds`,
        all are killed.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes):
            if any(process.poll() for process in self.processes):
                deadline = min(deadline or float("inf"), time.monotonic() + EXIT_TIMEOUT)
                break
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for process in self.processes:
            try:
                process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for listener in self._listeners:
            listener.join()
        return [process.wait() for process in self.processes]


@contextlib.contextmanager
def start_workers(
    commands: list[list[str]],
    devices: int,
    on_line: Callable[[int, str], None] = lambda number, line: None,
) -> Iterator[Workers]:
    """Runs the commands on `devices` simulated devices each; calls on_line(index, line) with their
    output. Leaving kills those that still run.
    """
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        "PYTHONUNBUFFERED": "1",
        cluster.NONCE_ENV: checks.new_nonce(),
    }
    workers = Workers(commands, environment, on_line)
    old_handler = signal.signal(
        signal.SIGTERM, lambda number, frame: [process.terminate() for process in workers.processes]
    )
    try:
        yield workers
    except KeyboardInterrupt:  # a terminal has sent it to the processes too
        workers.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        for process in workers.processes:
            if process.poll() is None:
                process.kill()
        workers.wait()


def exit_status(statuses: list[int]) -> int:
    """Exit status of all: that of the first failure, as a shell reports it."""
    first_failure = next((status for status in statuses if status), 0)
    return 128 - first_failure if first_failure < 0 else first_failure


if __name__ == "__main__":
    cli.run(main)
