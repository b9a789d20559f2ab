"""Which process of a run this is, of how many: by flags, or by the cluster that jax detects."""

import argparse
import dataclasses
import hashlib
import hmac
import os
import re

from gptjax.config import parse
from gptjax.runtime import errors

NONCE_ENV = (
    "GPTJAX_NONCE"  # environment variable with the secret that a launcher gives all processes
)
MAX_PROCESSES = 100_000
HOST_PATTERN = (
    r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f:.]{1,44}\]?"
)


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """One process's place among all, as for jax.distributed.initialize. coordinator: HOST:PORT of
    process 0. nonce: a secret that only the processes of the run know.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: list[int] | None = None
    nonce: str = ""

    def proof(self, process_id: int) -> str:
        """HMAC by which the process with this id proves that it knows the nonce."""
        return hmac.new(
            self.nonce.encode("utf-8", "replace"),
            f"gptjax {process_id} of a run".encode(),
            hashlib.sha256,
        ).hexdigest()


def add_distributed_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a program that may run on multiple hosts; `detect` interprets them."""
    group = parser.add_argument_group(
        "many hosts", "Detected on TPU pods, GKE and Slurm; elsewhere give them to each process."
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens, on this port and the one below",
    )
    group.add_argument(
        "--num_processes",
        metavar="N",
        type=parse.int_argument(1, MAX_PROCESSES),
        help="how many there are; 1 asks no cluster",
    )
    group.add_argument(
        "--process_id",
        metavar="I",
        type=parse.int_argument(0, MAX_PROCESSES - 1),
        help="which one this is, from 0",
    )
    seconds = parse.float_argument(0, 1e7, above=True)
    group.add_argument(
        "--initialization_timeout",
        metavar="S",
        type=seconds,
        default=300.0,
        help="how long they wait for each other (default: 300)",
    )


def detect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> ProcessInfo | None:
    """Returns this process's place: from the flags or else from what jax detects (TPU pods, GKE,
    Slurm, Open MPI, Kubernetes jobs). None: a single process.

    Raises ValueError if only part of it is given, or if the coordinator's name cannot be resolved
    within `seconds`.
    """
    if num_processes == 1:
        return None
    coordinator, ids = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"), None
    if None in (coordinator, num_processes, process_id):
        coordinator, num_processes, process_id, ids = _detect_cluster(
            coordinator, num_processes, process_id, seconds
        )
    if num_processes == 1 or (coordinator, num_processes, process_id) == (None, None, None):
        return None
    if coordinator is None or num_processes is None or process_id is None:
        flags = [
            f"--{name}={value}"
            for name, value in zip(
                ("coordinator", "num_processes", "process_id"),
                (coordinator, num_processes, process_id),
                strict=True,
            )
            if value is not None
        ]
        raise ValueError(
            f"{' '.join(flags)}: give --coordinator, --num_processes and --process_id, or none of "
            "them on a TPU pod, GKE or Slurm"
        )
    host, _, port = coordinator.rpartition(":")
    if (
        not re.fullmatch(HOST_PATTERN, host)
        or not re.fullmatch("[0-9]{1,5}", port)
        or not 2 <= int(port) < 65536
    ):
        raise ValueError(
            f"--coordinator={parse.one_line(coordinator, 100)}: give HOST:PORT of process 0; the "
            "port below is used too"
        )
    if not 0 <= process_id < num_processes <= MAX_PROCESSES:
        raise ValueError(
            f"--process_id={process_id}: with --num_processes={num_processes} give one from 0 to "
            f"{min(num_processes, MAX_PROCESSES) - 1}"
        )
    return ProcessInfo(
        coordinator,
        num_processes,
        process_id,
        ids,
        os.environ[NONCE_ENV] if NONCE_ENV in os.environ else "",
    )


def _detect_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None, seconds: float
) -> tuple:
    """Returns (coordinator, num_processes, process_id, local device ids), each None filled in from
    the cluster that jax detects.
    """
    if "KUBERNETES_SERVICE_HOST" in os.environ and not {
        "JOB_COMPLETION_INDEX",
        "TPU_WORKER_HOSTNAMES",
    } & {*os.environ}:
        # A standalone pod: jax would fail, since it expects one of an indexed job.
        return coordinator, num_processes, process_id, None
    # jax.distributed.initialize uses it too, but fails if there is no cluster.
    from jax._src import clusters

    try:
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, num_processes, process_id, None, None, max(1, int(seconds))
        )
    # Malformed environment variables raise any of these.
    except (RuntimeError, ValueError, LookupError, TypeError, OSError) as error:
        raise ValueError(
            f"jax found a cluster here but not its processes ({errors.first_line(error)}); give "
            "--coordinator, --num_processes and --process_id"
        ) from error
