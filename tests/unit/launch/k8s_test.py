"""A Deployment and a Service of servers: what Kubernetes and the server in the container read."""

import pytest
import yaml

from gptjax import serve
from gptjax.launch import k8s

OWN = ["--name=chat", "--image=r/i:1", "--keys=chat-keys"]
SERVE = ["--", "--model=/data/m"]
BAKED = ["--", "--model=/m"]  # in the image


def manifests(capsys, *arguments):
    """(the Deployment, its pod, its container, the Service)."""
    assert k8s.main([*arguments]) == 0
    deployment, service = yaml.safe_load_all(capsys.readouterr().out)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return deployment, pod, container, service


def test_servers_and_what_finds_them(capsys):
    settings = ["--replicas=3", "--cpus=2", "--memory=7", "--gpus=1", "--claim=models"]
    deployment, pod, container, service = manifests(capsys, *OWN, *settings, *SERVE)
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "chat"
    spec = deployment["spec"]
    assert spec["replicas"] == 3 and spec["strategy"] == {"type": "RollingUpdate"}
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert labels["app.kubernetes.io/instance"] == "chat"
    (port,) = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"] == "http"
    limits = {"cpu": "2", "memory": "7Gi", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": limits, "limits": limits}
    sources = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert sources == {
        "keys": {"secret": {"secretName": "chat-keys"}},
        "data": {"persistentVolumeClaim": {"claimName": "models"}},
    }
    mounts = {m["name"]: (m["mountPath"], m["readOnly"]) for m in container["volumeMounts"]}
    assert mounts == {"keys": ("/keys", True), "data": ("/data", True)}


def test_the_container_runs_the_server_as_it_is_probed(capsys):
    _, _, container, _ = manifests(
        capsys, *OWN, *BAKED, "--log_prompts", "--served_model_name=$(X)"
    )
    assert container["command"][:3] == ["python", "-m", "gptjax.serve"]
    words = container["command"][3:]
    assert words[-1] == "--served_model_name=$$(X)"
    args = serve.make_parser().parse_args(words)
    serve.check_args(args)
    assert args.host == "0.0.0.0" and args.port == container["ports"][0]["containerPort"]
    assert str(args.api_keys) == "/keys/keys" and str(args.model) == "/m" and args.log_prompts
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == k8s.LOAD_SECONDS


@pytest.mark.parametrize(("flags", "drain"), [([], 60), (["--drain=300.5"], 301)])
def test_a_server_has_the_time_that_it_needs_to_end(capsys, flags, drain):
    _, pod, container, _ = manifests(capsys, *OWN, *BAKED, *flags)
    asleep = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= asleep + drain + 10


def test_the_chat_page_has_one_server_and_a_volume_to_write_to(capsys):
    chat = ["--", "--model=/data/m", "--users=/data/users.sqlite"]
    own = [*OWN, "--claim=models", "--replicas=1"]
    deployment, _, container, _ = manifests(capsys, *own, *chat)
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert [m["readOnly"] for m in container["volumeMounts"]] == [True, False]
    for arguments, words in [
        ([*OWN, "--claim=models", *chat], "give --replicas=1"),
        ([*OWN, "--replicas=1", *BAKED, chat[2]], "give --claim=NAME and --users=/data/FILE"),
        ([*own, *chat[:2], "--users=/users.sqlite"], "goes with it"),
        ([*own, *chat[:2], "--users=/data/../users.sqlite"], "goes with it"),
    ]:
        with pytest.raises(ValueError, match=words) as error:
            k8s.main(arguments)
        assert "\n" not in str(error.value)


def test_a_log_of_interventions_is_of_one_server_or_each_pods_own(capsys):
    own, log = [*OWN, "--claim=models"], ["--policy=mask", "--intervention_log=/data/log.jsonl"]
    deployment, _, container, _ = manifests(capsys, *own, "--replicas=1", *SERVE, *log)
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert [m["readOnly"] for m in container["volumeMounts"]] == [True, False]
    apart = ["--policy=log", "--intervention_log=/dev/stdout"]
    deployment, _, container, _ = manifests(capsys, *own, "--replicas=3", *SERVE, *apart)
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate"}
    assert [m["readOnly"] for m in container["volumeMounts"]] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (OWN, "serve what"),
        ([*OWN, *SERVE], "--model=/data/m: nothing is mounted at /data: give --claim=NAME"),
        (
            [*OWN, "--", "--model=/m", "--moderation_model=/m/../data/r:a,b"],
            "--moderation_model=/m/../data/r: nothing is mounted",
        ),
        (
            [*OWN, "--claim=c", *SERVE, "--policy=mask", "--intervention_log=/data/x"],
            "give --replicas=1, or --intervention_log=/dev/stdout, each",
        ),
        (
            [*OWN, "--claim=c", "--replicas=1", *SERVE, "--policy=mask", "--intervention_log=x"],
            "--intervention_log=x lies in the container.*=/data/FILE, or --intervention_log=/dev",
        ),
        ([*OWN, "--replicas=1", "--", "--model=m", "--users=/dev/stdout"], "goes with it"),
        ([*OWN, *SERVE, "--host=127.0.0.1", "--port=80"], "--port is set by launch.k8s"),
        ([*OWN, *SERVE, "--api_keys=x"], "--api_keys is set by"),
        ([*OWN, *SERVE, "--allow_unauthenticated"], "--allow_unauthenticated is set by"),
        ([*OWN, *SERVE, "--policy=log"], "give --intervention_log=FILE"),
        (["--name=Chat", *OWN[1:], *SERVE], "--name=Chat: give at most 40"),
        ([OWN[0], "--image=a b", OWN[2], *SERVE], "--image=a b: give the name of a container"),
        ([*OWN[:2], "--keys=A_B", *SERVE], "--keys=A_B: give the name of one in the cluster"),
        ([*OWN, "--claim=", *SERVE], "--claim=: give the name"),
    ],
)
def test_what_could_not_run_is_not_printed(capsys, arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        k8s.main(arguments)
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""
