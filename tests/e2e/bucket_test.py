"""A run whose checkpoints lie in a bucket, of a Google Cloud Storage that is emulated here:
needs requirements-cloud.txt."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from gptjax.launch import rehearse

pytest.importorskip("gcsfs", reason="needs requirements-cloud.txt")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs requirements-cloud.txt")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bucket(monkeypatch):
    port = rehearse.free_port()
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
        monkeypatch.setenv(name, f"http://localhost:{port}")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "none")
    monkeypatch.setenv("GCE_METADATA_ROOT", "localhost:1")
    server = emulator.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    yield "gs://bucket/some/run"
    server.stop()


def test_a_run_in_a_bucket_goes_on_on_other_machines(bucket, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(
        "".join(f"{n} and {n + 1} make {2 * n + 1}. " for n in range(2000))
    )
    usual = [
        f"data.sources=Text(path='{tmp_path / 'text.txt'}')",
        "data.validation=Tail(fraction=0.1)",
        "model.n_layers=1",
    ]
    usual += [
        "loop.every_save=4",
        "loop.every_eval=100",
        "loop.keep_last=2",
        "loop.sample_tokens=1",
    ]
    local = pathlib.Path.cwd() / "runs" / "bucket" / "some" / "run"

    def trained(*changes):
        shutil.rmtree(local, ignore_errors=True)  # as on a machine that is new
        sets = [part for change in (*usual, *changes) for part in ("--set", change)]
        commands = [
            [
                sys.executable,
                "-m",
                "gptjax.train",
                "--config=smoke",
                f"--run_dir={bucket}",
                *sets,
                *flags,
            ]
            for flags in rehearse.distributed_flags(2)
        ]
        with rehearse.start_workers(commands, 2) as workers:
            statuses = workers.wait(300)
            assert statuses == [0, 0], workers.output(0) + workers.output(1)
            return workers.output(0)

    try:
        trained("train.steps=6")
        assert "continuing from step 6" in trained("train.steps=14")
        steps = [
            line.split(",")[0]
            for line in (local / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        assert steps == [f'{{"step": {step}' for step in range(1, 15)]
        shutil.rmtree(local)
        sample = [sys.executable, "-m", "gptjax.sample", f"--model={bucket}", "--max_new_tokens=4"]
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        said = subprocess.run(sample, env=environment, capture_output=True, text=True)
        assert said.returncode == 0 and "smoke, step 14" in said.stdout, said.stderr
    finally:
        shutil.rmtree(local, ignore_errors=True)
