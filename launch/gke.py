"""Print a JobSet that trains on TPU slices or H100 hosts of GKE, for `kubectl apply -f -`."""

import argparse
import math
import re
import shlex
import sys

from gptjax import cli, train
from gptjax.config import parse
from gptjax.distributed import cluster
from gptjax.launch import checks
from gptjax.sharding import topology

EXAMPLE = """python -m gptjax.launch.gke --name=gpt3 --image=IMAGE --accelerator=v5p:8x8x8 -- --config=gpt3_175b --run_dir=gs://b/r | kubectl apply -f -
  kubectl logs --follow --selector=jobset.sigs.k8s.io/jobset-name=gpt3,batch.kubernetes.io/job-completion-index=0
  kubectl delete jobset gpt3"""  # noqa: E501
# as GKE's node selector calls them, and how many dimensions their topologies have
TPU_SELECTORS = {
    "v4": ("tpu-v4-podslice", 3),
    "v5e": ("tpu-v5-lite-podslice", 2),
    "v5p": ("tpu-v5p-slice", 3),
    "v6e": ("tpu-v6e-slice", 2),
    "tpu7x": ("tpu7x", 3),
}
CHIPS_PER_HOST, GPUS_PER_HOST = 4, 8  # of a host
PORT = 8476  # of the coordinator on GPUs; on TPUs jax chooses
GRACE_SECONDS = 600  # from SIGTERM to SIGKILL, for the checkpoint


def main(arguments: list[str]) -> int:
    """Prints the JobSet manifest of the arguments."""
    own_args, train_args = checks.split_arguments(
        arguments, "gke", "--config=gpt3_small --run_dir=gs://bucket/run"
    )
    manifest = make_jobset(**vars(make_parser().parse_args(own_args)), arguments=train_args)
    if not (train.read_arguments(train_args, local=False)[0].run_dir or "").startswith("gs://"):
        print(
            "warning: the run lies in the container, and goes with it: give "
            "--run_dir=gs://BUCKET/FOLDER, or add a volume",
            file=sys.stderr,
        )
    import yaml

    yaml.safe_dump(manifest, sys.stdout, sort_keys=False)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the job's settings."""
    parser = cli.make_parser(
        "gke", "Print a JobSet that runs gptjax.train with what stands after --.", EXAMPLE
    )
    parser.prog = "python -m gptjax.launch.gke"
    parser.add_argument(
        "--name", required=True, help="of the JobSet: letters a to z, digits and -, at most 40"
    )
    parser.add_argument(
        "--image",
        required=True,
        help=(
            "a container image with gptjax installed, or a checkout and its packages in its "
            "working directory"
        ),
    )
    parser.add_argument(
        "--accelerator",
        metavar="KIND",
        required=True,
        help="FAMILY:TOPOLOGY, as v5p:8x8x8, or h100:HOSTS, as h100:4",
    )
    parser.add_argument(
        "--slices",
        metavar="N",
        type=parse.int_argument(1, checks.MAX_COUNT),
        default=1,
        help="how many TPU slices (default: 1)",
    )
    restart_count = parse.int_argument(0, 10**6)
    parser.add_argument(
        "--restarts",
        metavar="N",
        type=restart_count,
        default=100,
        help="how often all may start again when one fails (default: 100)",
    )
    return parser


def make_jobset(
    name: str, image: str, accelerator: str, slices: int, restarts: int, arguments: list[str]
) -> dict:
    """Returns the JobSet for Kubernetes: a job per slice, a pod per host (on GPUs one jax process
    per host).

    Raises ValueError for an unknown accelerator, and for names that Kubernetes would refuse. A pod
    that fails restarts them all; the same command continues the run.
    """
    checks.check_kubernetes_name(name)  # of hosts, too: NAME-hosts-0-0-xxxxx
    checks.check_image(image)
    hosts, selector, resource, tail = accelerator_spec(name, accelerator, slices)
    container = {
        "name": "train",
        "image": image,
        "command": ["sh", "-c", f"exec python -m gptjax.train {shlex.join(arguments)}{tail}"],
        "env": [{"name": cluster.NONCE_ENV, "value": checks.new_nonce()}],
        "ports": [{"containerPort": port} for port in (8471, 8080, 8431)]
        if "google.com/tpu" in resource
        else [],
        "resources": {"requests": resource, "limits": resource},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": selector,
        "containers": [container],
    }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts},
            "replicatedJobs": [{"name": "hosts", "replicas": slices, "template": {"spec": job}}],
        },
    }


def accelerator_spec(name: str, accelerator: str, slices: int) -> tuple[int, dict, dict, str]:
    """Returns (hosts of a slice, node selector, resources of each pod, flags added to
    the command).
    """
    family, _, size = accelerator.partition(":")
    if family == "h100" and re.fullmatch(r"[1-9][0-9]{0,4}", size):
        if slices != 1:
            raise ValueError(
                f"--slices={slices} is for TPUs; give the hosts in --accelerator=h100:HOSTS"
            )
        flags = (
            f" --coordinator={name}-hosts-0-0.{name}:{PORT} --num_processes={size} "
            "--process_id=$JOB_COMPLETION_INDEX"
        )
        return (
            int(size),
            {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
            {"nvidia.com/gpu": GPUS_PER_HOST},
            flags,
        )
    layout = (
        [int(n) for n in size.split("x")]
        if re.fullmatch(r"[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})+", size)
        else []
    )
    is_valid = layout == [1, 1] or all(
        n % 2 == 0 for n in layout[:2]
    )  # hosts of 2 x 2 chips, or one chip alone
    n_dimensions = TPU_SELECTORS[family][1] if family in TPU_SELECTORS else None
    if (
        len(layout) != n_dimensions
        or not is_valid
        or math.prod(layout) > topology.MAX_POD_CHIPS[family]
    ):
        known = ", ".join(
            f"{other}:{'x'.join('ABC'[:dimensions])}"
            for other, (_, dimensions) in TPU_SELECTORS.items()
        )
        chip_limit = (
            f"; {family} has at most {topology.MAX_POD_CHIPS[family]:,} chips"
            if family in TPU_SELECTORS
            else ""
        )
        raise ValueError(
            f"--accelerator={parse.one_line(accelerator, 100)}: give one of {known}, "
            f"h100:HOSTS{chip_limit}"
        )
    hosts, chips = (
        max(1, math.prod(layout) // CHIPS_PER_HOST),
        min(CHIPS_PER_HOST, math.prod(layout)),
    )
    selector = {
        "cloud.google.com/gke-tpu-accelerator": TPU_SELECTORS[family][0],
        "cloud.google.com/gke-tpu-topology": size,
    }
    return hosts, selector, {"google.com/tpu": chips}, ""


if __name__ == "__main__":
    cli.run(main)
