"""What the launchers print: commands, a JobSet and a batch script, each checked by what would
read it."""

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from gptjax.distributed import cluster
from gptjax.launch import gke, rehearse, slurm, tpu

ROOT = Path(__file__).parents[3]
TRAIN = [
    "--",
    "--config=gpt3_175b",
    "--run_dir=gs://b/r",
    "--set",
    "model.attention=(Banded(window=128), Dense())",
]


def printed(main, capsys, *arguments):
    status = main([*arguments])
    return status, capsys.readouterr().out


@pytest.mark.parametrize("program", ["rehearse", "tpu", "gke", "k8s", "slurm"])
def test_help_has_an_example(program):
    command = [sys.executable, "-m", f"gptjax.launch.{program}", "--help"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (
        f"usage: python -m gptjax.launch.{program}" in said
        and f"example:\n  python -m gptjax.launch.{program}" in said
    )


def commands(capsys, action, *arguments):
    status, out = printed(
        tpu.main, capsys, action, "--name=pod", "--zone=z", "--dry-run", *arguments
    )
    assert status == 0
    return [shlex.split(line) for line in out.splitlines()]


def test_a_slice_is_requested_and_awaited(capsys):
    asked, waited = commands(capsys, "create", "--accelerator=v5p-1024", "--project=p", "--spot")
    assert asked[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {
        "--zone=z",
        "--project=p",
        "--accelerator-type=v5p-1024",
        "--runtime-version=v2-alpha-tpuv5",
        "--node-id=pod",
        "--spot",
    } <= {*asked}
    assert "describe" in waited and "--format=value(state.state)" in waited
    asked, _ = commands(capsys, "create", "--accelerator=v5litepod-256", "--slices=2")
    assert {"--node-count=2", "--node-prefix=pod", "--runtime-version=v2-alpha-tpuv5-lite"} <= {
        *asked
    }


def test_the_same_program_runs_on_every_host_and_slice(capsys):
    said = commands(capsys, "run", "--slices=2", *TRAIN)
    ssh = [words for words in said if "ssh" in words]
    assert [words[5] for words in ssh] == ["pod-0", "pod-1", "pod-0", "pod-1"] and all(
        "--worker=all" in words for words in ssh
    )
    lines = [
        word
        for words in ssh
        for word in words
        if word.startswith("--command=") and "gptjax.train" in word
    ]
    line = lines[0]
    assert lines == [line] * 2 and re.search(r" && GPTJAX_NONCE=[0-9a-f]{32} nohup ", line), (
        "one word for all hosts"
    )
    assert (
        shlex.split(line)[shlex.split(line).index("gptjax.train") + 1 :][: len(TRAIN) - 1]
        == TRAIN[1:]
    )
    assert (
        said[0][:2] == ["sh", "-c"]
        and subprocess.run(["sh", "-n", "-c", said[0][2]]).returncode == 0
    )
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
    (tmp_path / "gcloud").write_text(
        f'#!/bin/sh\necho "$@" >> {log}\ncase "$@" in *describe*) {states};; *delete*) exit 7;; '
        "esac\n"
    )
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(tpu.time, "sleep", lambda seconds: None)
    assert tpu.main(["create", "--name=pod", "--zone=z", "--accelerator=v6e-8"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [
        "PROVISIONING",
        "ACTIVE",
    ]
    assert len(log.read_text().splitlines()) == 3
    assert tpu.main(["delete", "--name=pod", "--zone=z"]) == 7


def test_an_accelerator_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="--accelerator=v9-8: give one of v4-N, v5litepod-N"):
        tpu.main(["create", "--name=pod", "--zone=z", "--accelerator=v9-8"])
    for wrong in ("v5p", "v5p:8x8", "v9:2x2", "h100:", "v5e:4x4x4", "v5p:3x3x3", "v5e:1x2"):
        with pytest.raises(ValueError, match=f"--accelerator={wrong}: give one of v4:AxBxC"):
            gke.main(["--name=j", "--image=i", f"--accelerator={wrong}", *TRAIN])
    with pytest.raises(ValueError, match="h100:HOSTS; v5e has at most 256 chips"):
        gke.main(["--name=j", "--image=i", "--accelerator=v5e:32x32", *TRAIN])
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
    assert (
        spec["completionMode"] == "Indexed"
        and spec["parallelism"] == spec["completions"]
        and spec["backoffLimit"] == 0
    )
    (container,) = spec["template"]["spec"]["containers"]
    return job["replicas"], spec["parallelism"], spec["template"]["spec"]["nodeSelector"], container


@pytest.mark.parametrize(
    "wrong, near",
    [
        ("v5p-7", "v5p-8, v5p-16, v5p-32"),
        ("v5p-999999", "v5p-17664, v5p-17792, v5p-17920"),
        ("v4-12", "v4-8, v4-16, v4-32"),
    ]
    + [
        ("v5litepod-7", "v5litepod-1, v5litepod-4, v5litepod-8"),
        ("v6e-512", "v6e-64, v6e-128, v6e-256"),
    ],
)
def test_a_slice_of_no_such_size_is_refused(wrong, near):
    with pytest.raises(
        ValueError, match=f"^--accelerator={wrong}: there is no such slice; nearest: {near}$"
    ):
        tpu.main(["create", "--name=pod", "--zone=z", f"--accelerator={wrong}", "--dry_run"])


def test_a_jobset_for_tpu_slices(capsys):
    status, out = printed(
        gke.main, capsys, "--name=j", "--image=i", "--accelerator=v5p:8x8x8", "--slices=2", *TRAIN
    )
    made = yaml.safe_load(out)
    assert status == 0 and (made["apiVersion"], made["kind"], made["metadata"]["name"]) == (
        "jobset.x-k8s.io/v1alpha2",
        "JobSet",
        "j",
    )
    replicas, hosts, selector, container = pods(made)
    assert (replicas, hosts, container["resources"]["limits"]) == (2, 128, {"google.com/tpu": 4})
    assert selector == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "8x8x8",
    }
    assert shlex.split(container["command"][2]) == [
        "exec",
        "python",
        "-m",
        "gptjax.train",
        *TRAIN[1:],
    ]
    ((name, word),) = [(one["name"], one["value"]) for one in container["env"]]
    assert name == cluster.NONCE_ENV and re.fullmatch("[0-9a-f]{32}", word)
    assert (
        word
        not in printed(
            gke.main, capsys, "--name=j", "--image=i", "--accelerator=v5p:8x8x8", *TRAIN
        )[1]
    ), "a job has its own"


def test_a_jobset_for_gpus_says_who_is_who(capsys):
    _, out = printed(gke.main, capsys, "--name=j", "--image=i", "--accelerator=h100:4", *TRAIN)
    replicas, hosts, _, container = pods(yaml.safe_load(out))
    assert (replicas, hosts, container["resources"]["limits"]) == (1, 4, {"nvidia.com/gpu": 8})
    assert container["command"][2].endswith(
        " --coordinator=j-hosts-0-0.j:8476 --num_processes=4 --process_id=$JOB_COMPLETION_INDEX"
    )


def test_a_batch_script_for_slurm(capsys, tmp_path):
    _, out = printed(
        slurm.main, capsys, "--nodes=4", "--time=1:00", "--sbatch=--partition=gpu", *TRAIN
    )
    assert {
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --signal=TERM@300",
        "#SBATCH --partition=gpu",
    } <= {*out.splitlines()}
    assert subprocess.run(["bash", "-n"], input=out, text=True).returncode == 0
    (tmp_path / "srun").write_text(
        '#!/bin/sh\necho $GPTJAX_NONCE\nfor word in "$@"; do echo "$word"; done\n'
    )
    (tmp_path / "srun").chmod(0o755)
    ran = subprocess.run(
        ["bash"],
        input=out,
        text=True,
        capture_output=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert re.fullmatch("[0-9a-f]{32}", ran.stdout.splitlines()[0])
    assert ran.stdout.splitlines()[-len(TRAIN) - 2 :] == [
        sys.executable,
        "-m",
        "gptjax.train",
        *TRAIN[1:],
    ]


# --- what is refused before anything is printed ---------------------------------------------------

GKE = ["--name=j", "--image=i", "--accelerator=v5p:8x8x8"]
TPU = ["create", "--name=pod", "--zone=z", "--accelerator=v6e-8", "--dry_run"]
OTHER_TRAINING = {
    "a config that is not": (["--config=gpt3_xll"], "did you mean gpt3_xl"),
    "a field that is not": (["--config=gpt3_xl", "--set", "train.stepz=3"], "did you mean steps?"),
    "a flag that is not": (["--config=gpt3_xl", "--runn=x"], "--runn=x"),
    "no config": (["--run_dir=x"], "say which config with --config=NAME"),
    "an empty run": (["--config=gpt3_xl", "--run_dir="], "an empty path"),
    "a line end": (["--config=gpt3_xl", "--run_dir=a\n#SBATCH --x"], "holds a control character"),
    "a terminal's control": (
        ["--config=gpt3_xl", "--run_dir=\x1b[31m"],
        "holds a control character",
    ),
    "a number of no end": (
        ["--config=gpt3_xl", "--initialization_timeout=nan"],
        "--initialization_timeout",
    ),
    "how many processes": (
        ["--config=gpt3_xl", "--num_processes=3"],
        "--num_processes=3: the processes of launch.",
    ),
    "which process": (
        ["--config=gpt3_xl", "--process_id", "0"],
        "--process_id=0: the processes of launch.",
    ),
    "all of it": (
        ["--config=gpt3_xl", "--coordinator=h:80", "--num_processes=1", "--process_id=0"],
        "h:80 --num_processes=1 --process_id=0: the",
    ),
}


def refusal(main, arguments, capsys):
    """What is said, in one line, with nothing printed: by ValueError, or by argparse with status
    2."""
    try:
        main([*arguments])
    except ValueError as error:
        said = str(error)
    except SystemExit as left:
        assert left.code == 2
        out, said = capsys.readouterr()
        assert out == "" and said.startswith("error: ") and said.endswith("\n")
    else:
        raise AssertionError(f"{arguments} was taken: {capsys.readouterr().out}")
    assert "\n" not in said.rstrip("\n") and len(said) < 1500 and capsys.readouterr().out == ""
    return said


@pytest.mark.parametrize("name", OTHER_TRAINING)
@pytest.mark.parametrize(
    "main, own",
    [
        (gke.main, GKE),
        (slurm.main, []),
        (tpu.main, ["run", "--name=pod", "--zone=z", "--dry_run"]),
        (rehearse.main, []),
    ],
    ids=["gke", "slurm", "tpu", "rehearse"],
)
def test_a_job_that_could_not_run_is_not_printed(main, own, name, capsys):
    arguments, said = OTHER_TRAINING[name]
    assert said in refusal(main, [*own, "--", *arguments], capsys)


def test_a_slice_may_be_called_run(capsys):
    assert (
        tpu.main(["create", "--name", "run", "--zone=z", "--accelerator=v6e-8", "--dry_run"]) == 0
    )
    assert "queued-resources create run" in capsys.readouterr().out
    assert "what stands after -- is for run, and not for logs" in refusal(
        tpu.main, ["logs", "--name=a", "--zone=z", *TRAIN], capsys
    )


COUNTS = ("0", "-1", "1.5", "1e9", "nan", "9" * 5000, "\u0662", "", "x")


@pytest.mark.parametrize(
    "main, own, flag, bad",
    [
        (slurm.main, [], flag, bad)
        for flag in ("--nodes", "--gpus", "--cpus")
        for bad in COUNTS
        if bad != "\u0662"
    ]
    + [(slurm.main, [], "--grace", bad) for bad in ("-1", "1e9", "x")]
    + [
        (slurm.main, [], "--time", bad)
        for bad in ("1:00\n#SBATCH --account=x", "", "a day", "1-", "1:2:3:4", "-1", "1 #", "$(id)")
    ]
    + [
        (slurm.main, [], "--name", bad)
        for bad in ("a\nb", "a b", "", "$(id)", "x" * 200, "../x", "\u00e9")
    ]
    + [
        (slurm.main, [], "--sbatch", bad)
        for bad in ("a=b", "", "--x\n#SBATCH --y", "--x #y", "\x1b")
    ]
    + [(slurm.main, [], "--python", bad) for bad in ("", "a\nb", "\0")]
    + [(gke.main, GKE, "--slices", bad) for bad in ("0", "-1", "1e9")]
    + [(gke.main, GKE, "--restarts", bad) for bad in ("-1", "1e9", "x")]
    + [
        (gke.main, GKE, "--name", bad)
        for bad in (
            "X Y",
            "a b",
            "A",
            "-a",
            "a-",
            "1a",
            "",
            "a.b",
            "a\nb",
            "a" * 41,
            "a;b",
            "$(id)",
        )
    ]
    + [(gke.main, GKE, "--image", bad) for bad in ("", "a b", "a\nb", "-a", "$(id)", "\u00e9")]
    + [
        (gke.main, GKE, "--accelerator", bad)
        for bad in (
            "v5p:0x8x8",
            "v5p:8x8x8\n",
            "v5p:9999x9999x9999",
            "v5p:998x998x998",
            "v6e:16x32",
            "h100:0",
            "h100:999999",
            "h100:\u0664",
        )
    ]
    + [(tpu.main, TPU, "--slices", bad) for bad in ("0", "-1", "1e9")]
    + [
        (tpu.main, TPU, "--name", bad)
        for bad in ("X Y", "-a", "a-", "", "a\nb", "a" * 64, "$(id)", "--quiet")
    ]
    + [(tpu.main, TPU, "--zone", bad) for bad in ("", "a b", "--x", "a\nb")]
    + [(tpu.main, TPU, "--project", bad) for bad in ("", "a b", "A", "a\nb")]
    + [
        (tpu.main, TPU, "--accelerator", bad)
        for bad in (
            "v5p-",
            "v5p-x",
            "v5p-8 --spot",
            "v5p--8",
            "v5p-0",
            "v5p-9999999",
            "v5p-\u0668",
            "-8",
        )
    ]
    + [
        (rehearse.main, [], flag, bad)
        for flag in ("--num_processes", "--devices")
        for bad in ("0", "-1", "1e9", "nan")
    ],
)
def test_invalid_cluster_settings_are_refused(main, own, flag, bad, capsys):
    rest = [] if main is tpu.main else ["--", "--config=smoke"]
    said = refusal(main, [*own, f"{flag}={bad}", *rest], capsys)
    assert flag in said


def test_a_name_for_pods_is_checked_for_sweeps_too():
    with pytest.raises(ValueError, match="--name=a{39}-10: give at most 40"):
        gke.make_jobset("a" * 39 + "-10", "i", "v5p:8x8x8", 1, 1, ["--config=smoke"])


def test_a_run_in_the_container_is_warned_of(capsys):
    assert gke.main([*GKE, "--", "--config=smoke", "--run_dir=/runs/x"]) == 0
    out, err = capsys.readouterr()
    assert (
        yaml.safe_load(out)["kind"] == "JobSet"
        and err.startswith("warning: the run lies in the container")
        and err.count("\n") == 1
    )
    assert gke.main([*GKE, "--", "--config=smoke", "--run_dir", "gs://b/r"]) == 0
    assert capsys.readouterr().err == ""
    assert gke.main([*GKE, "--", "--config=smoke", "--init", "gs://b/r"]) == 0
    assert capsys.readouterr().err.startswith("warning: the run lies in the container")
    assert gke.main([*GKE, "--", "--config=smoke", "--run_dir=gs://b/r"]) == 0
    assert capsys.readouterr().err == ""


def test_arguments_are_quoted_for_the_shell(capsys):
    """Of the launched program, and the Python that runs it."""
    odd = ["--config=smoke", "--run_dir=a b;$(id)`id`'\"&|>x", "--set", "name=$HOME é"]
    _, out = printed(slurm.main, capsys, "--python=/a b/$(id)/python", "--", *odd)
    assert shlex.split(out.splitlines()[-1])[3:] == [
        "/a b/$(id)/python",
        "-m",
        "gptjax.train",
        *odd,
    ]
    _, out = printed(gke.main, capsys, *GKE, "--", *odd)
    assert shlex.split(pods(yaml.safe_load(out))[3]["command"][2])[4:] == odd


def test_files_of_the_cluster_are_not_looked_for_here(capsys):
    assert slurm.main(["--", "--config=smoke", "--text=/cluster/none.txt", "--run_dir=~/x"]) == 0
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-2:] == [
        "--text=/cluster/none.txt",
        "--run_dir=~/x",
    ]


# --- what hosts get -------------------------------------------------------------------------------


def test_hosts_get_the_checkout_from_wherever_they_are_launched(capsys, monkeypatch, tmp_path):
    """Also files that git does not track, as recipes of one's own."""
    monkeypatch.setattr(tpu, "CHECKOUT", tmp_path / "a clone")
    monkeypatch.setattr(tpu.tempfile, "gettempdir", lambda: str(tmp_path))
    for file in ("gptjax/train.py", "configs/ladder.py", "requirements-tpu.txt", "runs/old.txt"):
        (tmp_path / "a clone" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a clone" / file).write_text(file)
    (tmp_path / "a clone" / "gptjax" / "configs").symlink_to("../configs")
    (tmp_path / "a clone" / ".gitignore").write_text("runs/\n")
    subprocess.run(["git", "init", "-q", str(tmp_path / "a clone")], check=True)
    pack = commands(capsys, "run", *TRAIN)[0]
    subprocess.run(pack, check=True)
    with tarfile.open(tmp_path / tpu.ARCHIVE) as archive:
        assert sorted(archive.getnames()) == [
            ".gitignore",
            "configs/ladder.py",
            "gptjax/configs",
            "gptjax/train.py",
            "requirements-tpu.txt",
        ]
        assert archive.getmember("gptjax/configs").linkname == "../configs"


def test_hosts_must_find_a_recipe_of_ones_own_and_a_checkout(capsys, monkeypatch, tmp_path):
    recipe = "from gptjax.configs import small\nmine = small.smoke()\n"
    clone = tmp_path / "clone"
    for folder in (clone, tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "mine.py").write_text(recipe)
    monkeypatch.setattr(tpu, "CHECKOUT", clone)
    run = ["run", "--name=pod", "--zone=z", "--dry_run", "--", "--run_dir=gs://b/r"]
    said = refusal(tpu.main, [*run, "--config=smoke"], capsys)
    assert said.startswith(f"run sends a checkout to the hosts, and {clone} is none")
    (clone / "requirements-tpu.txt").touch()
    monkeypatch.chdir(tmp_path)
    for file in ("mine.py", str(clone / "mine.py"), "clone/mine.py"):
        said = refusal(tpu.main, [*run, f"--config={file}:mine"], capsys)
        assert f"--config={file}:mine: the hosts run in their copy of {clone}: put the file" in said
    monkeypatch.chdir(clone)
    assert tpu.main([*run, "--config=mine.py:mine"]) == 0
    assert "--config=mine.py:mine" in capsys.readouterr().out
    assert slurm.main(["--", "--config=mine.py:mine"]) == 0  # whose nodes share files
