"""What the launchers print: commands, a JobSet and a batch script, each checked by what would read it."""

import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from launch import gke, rehearse, slurm, tpu

TRAIN = ["--", "--config=gpt3_175b", "--run=gs://b/r", "--set", "model.attention=(Banded(window=128), Dense())"]


def printed(main, capsys, *arguments):
    status = main([*arguments])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("program", ["rehearse", "tpu", "gke", "slurm"])
def test_help_has_an_example(program):
    command = [sys.executable, "-m", f"launch.{program}", "--help"]
    said = subprocess.run(command, cwd=rehearse.CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert f"usage: python -m launch.{program}" in said and f"example:\n  python -m launch.{program}" in said


def commands(capsys, action, *arguments):
    status, out = printed(tpu.main, capsys, action, "--name=pod", "--zone=z", "--dry-run", *arguments)
    assert status == 0
    return [shlex.split(line) for line in out.splitlines()]


def test_a_slice_is_asked_for_and_waited_for(capsys):
    asked, waited = commands(capsys, "create", "--accelerator=v5p-1024", "--project=p", "--spot")
    assert asked[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {"--zone=z", "--project=p", "--accelerator-type=v5p-1024", "--runtime-version=v2-alpha-tpuv5", "--node-id=pod", "--spot"} <= {
        *asked
    }
    assert "describe" in waited and "--format=value(state.state)" in waited
    asked, _ = commands(capsys, "create", "--accelerator=v5litepod-256", "--slices=2")
    assert {"--node-count=2", "--node-prefix=pod", "--runtime-version=v2-alpha-tpuv5-lite"} <= {*asked}


def test_the_same_program_runs_on_every_host_and_slice(capsys):
    said = commands(capsys, "run", "--slices=2", *TRAIN)
    ssh = [words for words in said if "ssh" in words]
    assert [words[5] for words in ssh] == ["pod-0", "pod-1", "pod-0", "pod-1"] and all("--worker=all" in words for words in ssh)
    line = next(word for word in ssh[-1] if word.startswith("--command="))
    assert shlex.split(line)[shlex.split(line).index("gptjax.train") + 1 :][: len(TRAIN) - 1] == TRAIN[1:]
    assert said[0][:2] == ["sh", "-c"] and subprocess.run(["sh", "-n", "-c", said[0][2]]).returncode == 0
    assert commands(capsys, "logs")[0][-2:] == ["--worker=0", "--command=tail -n +1 -F gptjax.log"]
    assert commands(capsys, "delete")[0][-2:] == ["--force", "--quiet"]


def test_without_gcloud_the_commands_are_shown_and_the_status_says_so(capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert tpu.main(["delete", "--name=pod", "--zone=z"]) == 2
    out, err = capsys.readouterr()
    assert (
        out.startswith("gcloud compute tpus queued-resources delete pod")
        and err.startswith("error: gcloud is not installed")
        and err.count("\n") == 1
    )


def test_gcloud_is_run_until_one_fails(capsys, monkeypatch, tmp_path):
    """A gcloud that grants a slice when asked a second time."""
    log = tmp_path / "log"
    states = f"[ $(grep -c describe {log}) -gt 1 ] && echo ACTIVE || echo PROVISIONING"
    (tmp_path / "gcloud").write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$@" in *describe*) {states};; *delete*) exit 7;; esac\n')
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: None)
    assert tpu.main(["create", "--name=pod", "--zone=z", "--accelerator=v6e-8"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["PROVISIONING", "ACTIVE"]
    assert len(log.read_text().splitlines()) == 3
    assert tpu.main(["delete", "--name=pod", "--zone=z"]) == 7


def test_an_accelerator_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="--accelerator=v9-8: give one of v4-N, v5litepod-N"):
        tpu.main(["create", "--name=pod", "--zone=z", "--accelerator=v9-8"])
    for wrong in ("v5p", "v5p:8x8", "v9:2x2", "h100:", "v5e:4x4x4"):
        with pytest.raises(ValueError, match=f"--accelerator={wrong}: give one of v4:AxBxC"):
            gke.main(["--name=j", "--image=i", f"--accelerator={wrong}", *TRAIN])
    for program, flags in (
        (tpu.main, ["run", "--name=pod", "--zone=z"]),
        (gke.main, ["--name=j", "--image=i", "--accelerator=v5p:8x8x8"]),
        (slurm.main, []),
    ):
        with pytest.raises(ValueError, match="run what\\? give gptjax.train's arguments after --"):
            program(flags)


def pods(made):
    (job,) = made["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"] and spec["backoffLimit"] == 0
    (container,) = spec["template"]["spec"]["containers"]
    return job["replicas"], spec["parallelism"], spec["template"]["spec"]["nodeSelector"], container


def test_a_jobset_for_tpu_slices(capsys):
    status, out = printed(gke.main, capsys, "--name=j", "--image=i", "--accelerator=v5p:8x8x8", "--slices=2", *TRAIN)
    made = yaml.safe_load(out)
    assert status == 0 and (made["apiVersion"], made["kind"], made["metadata"]["name"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet", "j")
    replicas, hosts, selector, container = pods(made)
    assert (replicas, hosts, container["resources"]["limits"]) == (2, 128, {"google.com/tpu": 4})
    assert selector == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "8x8x8"}
    assert shlex.split(container["command"][2]) == ["exec", "python", "-m", "gptjax.train", *TRAIN[1:]]


def test_a_jobset_for_gpus_says_who_is_who(capsys):
    _, out = printed(gke.main, capsys, "--name=j", "--image=i", "--accelerator=h100:4", *TRAIN)
    replicas, hosts, _, container = pods(yaml.safe_load(out))
    assert (replicas, hosts, container["resources"]["limits"]) == (1, 4, {"nvidia.com/gpu": 8})
    assert container["command"][2].endswith(" --coordinator=j-hosts-0-0.j:8476 --processes=4 --process=$JOB_COMPLETION_INDEX")


def test_a_batch_script_for_slurm(capsys, tmp_path):
    _, out = printed(slurm.main, capsys, "--nodes=4", "--time=1:00", "--sbatch=--partition=gpu", *TRAIN)
    assert {"#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=8", "#SBATCH --signal=TERM@300", "#SBATCH --partition=gpu"} <= {
        *out.splitlines()
    }
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0
    (tmp_path / "srun").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "srun").chmod(0o755)
    ran = subprocess.run(["bash"], input=out, text=True, capture_output=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert ran.stdout.splitlines()[-len(TRAIN) - 2 :] == [".venv/bin/python", "-m", "gptjax.train", *TRAIN[1:]]
