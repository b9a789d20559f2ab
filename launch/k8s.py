"""Print a Kubernetes Deployment and Service that serve a model."""

import argparse
import json
import math
import posixpath
import sys
from pathlib import Path

from gptjax import cli, serve
from gptjax.config import parse
from gptjax.configs import registry
from gptjax.launch import checks

EXAMPLE = """python -m gptjax.launch.k8s --name=chat --image=IMAGE --keys=chat-keys --claim=models --replicas=3 -- --model=/data/smollm2 | kubectl apply -f -
  kubectl port-forward service/chat 8000:80"""  # noqa: E501
PORT = 8000  # of the container
DATA, KEYS = "/data", "/keys"  # folders where the claim and the secret are mounted
STDOUT = "/dev/stdout"  # which a pod's log has
UNROUTE_SECONDS = 5  # from when a pod is to end until no balancer sends it requests any more
EXIT_SECONDS = 15  # for the rest of an end, after the drain
LOAD_SECONDS = 1800  # the longest that reading the model may take
OWN_FLAGS = ("host", "port", "api_keys", "allow_unauthenticated", "add_user")


def main(arguments: list[str]) -> int:
    """Prints the manifests of the arguments."""
    own_args, serve_args = cli.split_at_dashes(arguments)
    args = make_parser().parse_args(own_args)
    manifests = make_manifests(**vars(args), arguments=serve_args)
    import yaml

    apart = json.loads(json.dumps(manifests))  # else yaml writes anchors for what is there twice
    yaml.safe_dump_all(apart, sys.stdout, sort_keys=False)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of the deployment's settings."""
    parser = cli.make_parser(
        "k8s",
        "Print a Deployment and a Service that run gptjax.serve with what stands after --.",
        EXAMPLE,
    )
    parser.prog = "python -m gptjax.launch.k8s"
    parser.add_argument(
        "--name", required=True, help="of both: letters a to z, digits and -, at most 40"
    )
    parser.add_argument(
        "--image", required=True, help="a container image with gptjax and its serve extra installed"
    )
    parser.add_argument(
        "--keys",
        metavar="SECRET",
        required=True,
        help="a Secret whose entry `keys` is the file of gptjax.serve's --api_keys",
    )
    parser.add_argument(
        "--claim",
        help=f"a PersistentVolumeClaim that is mounted at {DATA}, with the model and, for the chat "
        "page, the accounts",
    )
    parser.add_argument(
        "--replicas",
        metavar="N",
        type=parse.int_argument(1, checks.MAX_COUNT),
        default=2,
        help="how many servers (default: 2)",
    )
    parser.add_argument(
        "--cpus",
        metavar="N",
        type=parse.int_argument(1, checks.MAX_COUNT),
        default=4,
        help="CPUs of each (default: 4)",
    )
    parser.add_argument(
        "--memory",
        metavar="GIB",
        type=parse.int_argument(1, checks.MAX_COUNT),
        default=16,
        help="memory of each, in GiB (default: 16)",
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=parse.int_argument(0, checks.MAX_COUNT),
        default=0,
        help="NVIDIA GPUs of each (default: 0)",
    )
    return parser


def make_manifests(
    name: str,
    image: str,
    keys: str,
    claim: str | None,
    replicas: int,
    cpus: int,
    memory: int,
    gpus: int,
    arguments: list[str],
) -> list[dict]:
    """Returns the Deployment and the Service. arguments: gptjax.serve's.

    Raises ValueError for names that Kubernetes would refuse, and for arguments that gptjax.serve
    would, or that are set here.
    """
    check_names(name, image, keys, claim)
    args = read_arguments(arguments, claim, replicas)
    labels = {"app.kubernetes.io/name": "gptjax-serve", "app.kubernetes.io/instance": name}
    volumes = {"keys": (KEYS, {"secret": {"secretName": keys}})}
    if claim is not None:
        volumes["data"] = DATA, {"persistentVolumeClaim": {"claimName": claim}}
    writes = bool(written_files(args))
    mounts = [
        {"name": volume, "mountPath": path, "readOnly": volume == "keys" or not writes}
        for volume, (path, _) in volumes.items()
    ]
    pod = {
        # From the order to end: requests still come, then the drain, which ends by itself.
        "terminationGracePeriodSeconds": UNROUTE_SECONDS + math.ceil(args.drain) + EXIT_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [make_container(image, cpus, memory, gpus, mounts, arguments)],
        "volumes": [{"name": volume} | source for volume, (_, source) in volumes.items()],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            # Two servers, an old and a new one, are not to write to one file.
            "strategy": {"type": "Recreate" if writes else "RollingUpdate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }
    return [deployment, service]


def make_container(
    image: str, cpus: int, memory: int, gpus: int, mounts: list[dict], arguments: list[str]
) -> dict:
    """Returns the container of a server."""
    # /health is 503 while a server ends, when it is not probed any more, and after an error of the
    # device, which a restart repairs. Within a pod loopback is not what others reach.
    probe = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    resources = {"cpu": str(cpus), "memory": f"{memory}Gi"}
    if gpus:
        resources["nvidia.com/gpu"] = str(gpus)
    # Kubernetes replaces $(NAME) in a command, and $$ by $.
    own = ["--host=0.0.0.0", f"--port={PORT}", f"--api_keys={KEYS}/keys"]
    command = [
        "python", "-m", "gptjax.serve", *own, *(word.replace("$", "$$") for word in arguments)
    ]  # fmt: skip
    return {
        "name": "serve",
        "image": image,
        "command": command,
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": probe | {"periodSeconds": 10, "failureThreshold": LOAD_SECONDS // 10},
        "readinessProbe": probe | {"periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": probe | {"periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(UNROUTE_SECONDS)]}}},
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts,
        "securityContext": {"allowPrivilegeEscalation": False},
    }


def check_names(name: str, image: str, keys: str, claim: str | None) -> None:
    """Raises ValueError for names that Kubernetes would refuse."""
    checks.check_kubernetes_name(name)
    checks.check_image(image)
    for flag, given in [("--keys", keys), ("--claim", claim)]:
        if given is not None:
            checks.check_match(
                given,
                r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
                flag,
                "the name of one in the cluster: a to z, 0 to 9, - and .",
            )


def read_arguments(arguments: list[str], claim: str | None, replicas: int) -> argparse.Namespace:
    """Returns gptjax.serve's arguments. Raises ValueError for those that it would refuse, that are
    set here, or that would lose conversations."""
    parser = serve.make_parser()
    args = parser.parse_args(arguments)
    for name in OWN_FLAGS:
        if vars(args)[name] != parser.get_default(name):
            raise ValueError(
                f"--{name} is set by launch.k8s, as --keys says, or is for a terminal: "
                "leave it out after --"
            )
    if args.model is None:
        raise ValueError(
            "serve what? give gptjax.serve's arguments after --, as in python -m "
            "gptjax.launch.k8s ... -- --model=/data/smollm2"
        )
    serve.check_policy(args, registry.policy(args.policy))
    check_files(args, claim, replicas)
    return args


def check_files(args: argparse.Namespace, claim: str | None, replicas: int) -> None:
    """Raises ValueError for files that would not be there, that would be lost, or to which several
    servers would write."""
    runs = {
        "model": args.model,
        "moderation_model": (args.moderation_model or "").rpartition(":")[0],
    }
    for flag, run in runs.items():
        if claim is None and is_in_volume(run):
            raise ValueError(f"--{flag}={run}: nothing is mounted at {DATA}: give --claim=NAME")
    for flag, file in written_files(args).items():
        or_none = f", or --{flag}={STDOUT}, each pod's own log" * (flag == "intervention_log")
        if replicas != 1:
            raise ValueError(
                f"--{flag} with --replicas={replicas}: only one server may write to that file: "
                f"give --replicas=1{or_none}"
            )
        if claim is None or not is_in_volume(file):
            raise ValueError(
                f"--{flag}={file} lies in the container, and goes with it: give --claim=NAME and "
                f"--{flag}={DATA}/FILE{or_none}"
            )


def written_files(args: argparse.Namespace) -> dict[str, Path]:
    """Returns the files that a server writes, by their flags."""
    log = None if args.intervention_log == Path(STDOUT) else args.intervention_log
    files = {"users": args.users, "intervention_log": log}
    return {flag: file for flag, file in files.items() if file is not None}


def is_in_volume(path: str | Path) -> bool:
    """Whether a path of the container is in the claim's volume."""
    return Path(posixpath.normpath(path)).is_relative_to(DATA)


if __name__ == "__main__":
    cli.run(main)
