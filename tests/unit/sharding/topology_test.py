import importlib.util
import os
import re
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.config import schema
from gptjax.sharding import chips, device_mesh, topology, xla_options

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu: pip install -r requirements-dev.txt",
)


@pytest.mark.parametrize(
    "name, same, n_devices",
    [
        ("v4-8", "v4:2x2x1", 4),
        ("v5p-8", "v5p:2x2x1", 4),
        ("V5p-1024", "v5p:8x8x8", 512),
        ("v5p-768", "v5p:4x8x12", 384),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v5e-1", "v5e:1x1", 1),
        ("v6e-8", "v6e:2x4", 8),
        ("v6e-128", "v6e:8x16", 128),
        ("tpu7x-8", "tpu7x:2x2x1", 8),
        ("v5:2x2x4", "v5p:2x2x4", 16),
        ("2xv5p-128", "2xv5p:4x4x4", 128),
        ("h100-8", "h100-8", 8),
        ("4xh100-8", "4xh100-8", 32),
    ],
)
def test_names(name, same, n_devices):
    found = topology.from_name(name)
    assert str(found) == same and found.n_devices == n_devices
    assert topology.from_name(same) == found


@pytest.mark.parametrize(
    "name, message",
    [
        ("9999xv5p-8", "give from 1 to 1,024 slices"),
        ("v5p-" + "9" * 40, "is not known"),
        ("v5p-\u0668", "is not known"),
        ("", "is not known"),
        ("v5p-9", "there is no such v5p; nearest: v5p-8, v5p-16, v5p-32; or give v5p:AxBxC"),
        ("v5p:3x3x3", "there is no such v5p; nearest: v5p-64"),
        ("v5e:4x4x4", "there is no such v5e; nearest: v5e-64, .*AxB, A and B even"),
        ("v5p:2x2x0", "there is no such v5p"),
        ("v6e-512", "there is no such v6e; nearest: v6e-256"),
        ("h100-16", "there is no such h100; nearest: h100-8"),
        ("v5lite-8", "is not known; give for example v5e-8"),
        ("v5p", "is not known; give for example v5p-8"),
        ("cray", "is not known; give for example v5p-8, v5litepod-16"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=f"topology '{name}'.*{message}"):
        topology.from_name(name)


@pytest.mark.parametrize(
    "module, name, remedy", [("libtpu", "v5e-1", "tpu"), ("jax_plugins", "h100-1", "gpu")]
)
def test_a_missing_compiler_is_a_one_line_error(monkeypatch, module, name, remedy):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == module else find(wanted)
    )
    with pytest.raises(
        ValueError,
        match=f"compiling for .* not installed: pip install -r requirements-{remedy}.txt",
    ):
        topology.from_name(name).devices()


@needs_libtpu
@pytest.mark.parametrize(
    "name",
    [
        "v4-16",
        "v5p-8",
        "v5e-1",
        "v5litepod-8",
        "v6e-8",
        "tpu7x-8",
        "tpu7x-2",
        "2xv5e-4",
        "v6e:16x16",
    ],
)
def test_compile_only_tpus(name):
    target = topology.from_name(name)
    there = target.devices()
    assert len(there) == target.n_devices and there[0].platform == target.platform
    assert {chips.from_device(device) for device in there} == {target.chip}
    if target.slices > 1:
        assert {device.slice_index for device in there} == {0, 1}


@needs_libtpu
def test_compile_only_programs_stay_out_of_the_cache(tmp_path):
    """Where jax would write them, and fail to read them. Programs for devices that are here are
    written again afterwards."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    mesh = jax.sharding.Mesh(topology.from_name("v5e-1").devices(), "x")
    x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        for _ in range(2):
            with topology.disable_cache():
                jax.jit(lambda x: x + 1).trace(x).lower(lowering_platforms=("tpu",)).compile()
        assert list(tmp_path.iterdir()) == []
        jax.jit(lambda x: x + 1)(np.ones(8, np.float32))
        assert list(tmp_path.iterdir()) != []
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@needs_libtpu
def test_hbm_is_what_the_compiler_allows():
    """A program that needs more than a chip has is refused, and the refusal names the size."""
    target = topology.from_name("v5e-1")
    mesh = jax.sharding.Mesh(target.devices(), "x")
    x = jax.ShapeDtypeStruct(
        (2**17, 2**17), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec())
    )
    with pytest.raises(
        jax.errors.JaxRuntimeError,
        match=rf"exceeds available HBM \({target.chip.hbm_bytes / 2**30:.2f}G\)",
    ):
        jax.jit(lambda x: x @ x).trace(x).lower(lowering_platforms=("tpu",)).compile()


@needs_libtpu
@pytest.mark.parametrize(
    "program",
    [
        "from gptjax.config.schema import Mesh; from gptjax.sharding import device_mesh as m; "
        "print([*m.make_mesh(Mesh()).devices.flat])",
        "import jax; from gptjax.sharding import xla_options; xla_options.configure_runtime(); "
        "print(jax.devices())",
    ],
)
def test_libtpu_is_quiet_and_jax_uses_the_cpu(program):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (*topology.QUIET_ENV, "JAX_PLATFORMS", "XLA_FLAGS")
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[CpuDevice(id=0)]\n", "", 0)


@pytest.mark.parametrize(
    "start",
    [
        xla_options.configure_runtime,
        lambda: device_mesh.make_mesh(schema.Mesh()),
        pytest.param(topology.from_name("v5e-1").devices, marks=needs_libtpu),
    ],
    ids=["a program that computes", "a mesh", "chips elsewhere"],
)
def test_a_low_address_space_limit_is_refused_before_jax_starts(monkeypatch, start):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**31, 2**31))
    with pytest.raises(
        ValueError,
        match=r"limited to 2.00 GiB \(ulimit -v\), and jax needs 4.00 GiB: raise the limit",
    ):
        start()


def test_peaks_are_those_of_the_data_sheets():
    """TFLOP/s in bfloat16 without sparsity, of half a tpu7x, which jax calls a device:
    docs.cloud.google.com/tpu, NVIDIA's sheets."""
    peaks = {
        "v4": 275,
        "v5e": 197,
        "v5p": 459,
        "v6e": 918,
        "tpu7x": 2307 / 2,
        "h100": 989,
        "h200": 989,
        "a100": 312,
    }
    assert {name: chip.flops for name, chip in chips.CHIPS.items()} == {
        name: pytest.approx(peaks[name] * 1e12) for name in chips.CHIPS
    }


def test_the_h100_target_config_matches_the_chip():
    sizes = {
        name: int(re.search(rf"{name}: (\d+)", topology.H100_TARGET_CONFIG)[1])
        for name in ("device_memory_size", "memory_bandwidth")
    }
    chip = chips.CHIPS["h100"]
    assert 0.9 < chip.hbm_bytes / sizes["device_memory_size"] <= 1
    assert chip.hbm_bandwidth == pytest.approx(sizes["memory_bandwidth"], rel=0.01)


def test_a_cpu_has_no_specifications():
    assert chips.from_device(jax.devices()[0]) is None
