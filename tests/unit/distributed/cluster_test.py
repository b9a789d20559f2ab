"""Which process of how many this one is: by flags, or by what jax detects of a cluster."""

import pytest

from gptjax.distributed import cluster


@pytest.fixture
def bare(monkeypatch):
    for name in (
        "GPTJAX_NONCE",
        "JAX_COORDINATOR_ADDRESS",
        "KUBERNETES_SERVICE_HOST",
        "SLURM_JOB_ID",
        "TPU_WORKER_HOSTNAMES",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_flags_give_the_process_info_and_none_means_alone(bare):
    assert cluster.detect("h:80", 4, 3, 1.0) == cluster.ProcessInfo("h:80", 4, 3)
    assert cluster.detect(None, None, None, 1.0) is None
    assert cluster.detect("h:80", 1, None, 1.0) is None
    bare.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # a pod by itself
    assert cluster.detect(None, None, None, 1.0) is None


@pytest.mark.parametrize(
    "given,said",
    [
        (
            ("h:80", None, 1),
            "--coordinator=h:80 --process_id=1: give --coordinator, --num_processes and "
            "--process_id",
        ),
        (("h", 2, 1), "--coordinator=h: give HOST:PORT"),
        (("h:1", 2, 1), "--coordinator=h:1: give HOST:PORT"),
        (("h:80", 2, 2), "--process_id=2: with --num_processes=2 give one from 0 to 1"),
        (("h:80", 2, -1), "--process_id=-1: with --num_processes=2 give one from 0 to 1"),
        (("h:80", 10**12, 2), "give one from 0 to 99999"),
        (("h:\u0663\u0663", 2, 1), "give HOST:PORT"),
        (("h:" + "9" * 5000, 2, 1), "give HOST:PORT"),
        (("h o:80", 2, 1), "give HOST:PORT"),
        (("a..b:80", 2, 1), "give HOST:PORT"),
        (("a" * 70 + ":80", 2, 1), "give HOST:PORT"),
        (("\udc80\n:80", 2, 1), "give HOST:PORT"),
    ],
)
def test_incomplete_flags_are_refused(bare, given, said):
    with pytest.raises(ValueError) as refused:
        cluster.detect(*given, 1.0)
    assert (
        said in str(refused.value)
        and "\n" not in str(refused.value)
        and len(str(refused.value)) < 300
    )


def test_malformed_cluster_variables_are_a_one_line_error(bare):
    for name, value in {
        "JOB_ID": "7",
        "STEP_NODELIST": "node[03-04]",
        "NTASKS": "many",
        "PROCID": "9",
        "LOCALID": "1",
    }.items():
        bare.setenv(f"SLURM_{name}", value)
    with pytest.raises(ValueError, match="jax found a cluster here but not its processes .*many"):
        cluster.detect(None, None, None, 1.0)


def test_the_nonce_is_read_from_the_environment(bare):
    bare.setenv(cluster.NONCE_ENV, "word")
    assert cluster.detect("h:80", 4, 3, 1.0) == cluster.ProcessInfo("h:80", 4, 3, nonce="word")
    assert cluster.detect("[::1]:80", 4, 3, 1.0).proof(3) != cluster.ProcessInfo(
        "h:80", 4, 3
    ).proof(3)


def test_slurm_is_found(bare):
    for name, value in {
        "JOB_ID": "7",
        "STEP_NODELIST": "node[03-04]",
        "NTASKS": "16",
        "PROCID": "9",
        "LOCALID": "1",
    }.items():
        bare.setenv(f"SLURM_{name}", value)
    assert cluster.detect(None, None, None, 1.0) == cluster.ProcessInfo("node03:61447", 16, 9, [1])
    bare.setenv("SLURM_NTASKS", "1")
    assert cluster.detect(None, None, None, 1.0) is None


def test_tpu_slices_on_gke_are_found(bare):
    from jax._src.clusters import cloud_tpu_cluster

    bare.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    bare.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", True)
    there = {"TPU_WORKER_HOSTNAMES": "x,y", "TPU_WORKER_ID": "1"}
    slices = {
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "3",
        "MEGASCALE_SLICE_ID": "2",
    }
    for name, value in (there | slices).items():
        bare.setenv(name, value)
    assert cluster.detect(None, None, None, 5.0) == cluster.ProcessInfo("localhost:8482", 6, 5)
