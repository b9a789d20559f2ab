"""XLA's options by device."""

import json
import os
import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from gptjax.sharding import chips, xla_options


class Device:
    """What options() asks of one."""

    def __init__(self, platform, device_kind):
        self.platform, self.device_kind = platform, device_kind


HERE = jax.devices("cpu")[0]


def test_options_by_device(monkeypatch):
    assert xla_options.options(Device("tpu", "TPU v5")) == {
        "xla_tpu_scoped_vmem_limit_kib": str(chips.CHIPS["v5p"].fusion_kib)
    }
    assert (
        xla_options.options(Device("tpu", "TPU v4"))
        == xla_options.options(Device("tpu", "TPU v99"))
        == xla_options.options(Device("gpu", "NVIDIA H100"))
        == {}
    )
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    xla_options._cpu_options.cache_clear()
    assert xla_options.options(HERE) == {}
    xla_options._cpu_options.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are for x86")
def test_this_xla_multiplies_without_ynnpack_and_sums_with_it():
    assert xla_options.options(HERE) == xla_options.CPU_OPTIONS
    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)

    def program(f):
        return (
            jax.jit(f, compiler_options=xla_options.options(HERE))
            .lower(*[x] * f.__code__.co_argcount)
            .compile()
            .as_text()
        )

    assert "ynn_fusion" not in program(lambda x, w: x @ w)
    assert "ynn_fusion" in program(lambda x: x.sum(0))


BFLOAT16_PRODUCTS = """
import jax
import jax.numpy as jnp
from gptjax.sharding import xla_options

options = xla_options.options(jax.devices("cpu")[0], jnp.bfloat16)
x = jnp.ones((8, 128, 128), jnp.bfloat16)

def loop(x):
    return jax.lax.fori_loop(0, 20, lambda i, x: jnp.einsum("bij,bjk->bik", x, x) / 128, x)

compiled = jax.jit(loop, compiler_options=options).lower(x).compile()
print("__onednn$matmul" in compiled.as_text(), (compiled(x) == x).all())
"""


@pytest.mark.skipif(
    not xla_options.multiplies_bfloat16(), reason="this processor or jax has no such products"
)
def test_products_in_bfloat16_are_onednns_and_end_in_a_loop():
    """In jaxlib 0.10.2 oneDNN's products in a loop waited for each other for ever."""
    found = subprocess.run(
        [sys.executable, "-c", BFLOAT16_PRODUCTS],
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.stdout == "True True\n", found.stderr


@pytest.mark.parametrize(
    "name, value", [("BFLOAT16_FLAGS", {"no_such_flag"}), ("BFLOAT16_JAX", (99,))]
)
def test_other_processors_and_versions_have_no_products_in_bfloat16(name, value, monkeypatch):
    """There oneDNN would compute them a thousand times as slowly, or was never tried."""
    monkeypatch.setattr(xla_options, name, value)
    xla_options.multiplies_bfloat16.cache_clear()
    assert xla_options.options(HERE, jnp.bfloat16) == xla_options.options(HERE)
    xla_options.multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize("environment, seconds", [(None, 0), ("5", 1)])
def test_small_programs_are_cached_unless_the_user_chose(environment, seconds, monkeypatch):
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    monkeypatch.delenv(name.upper(), raising=False)
    if environment is not None:
        monkeypatch.setenv(name.upper(), environment)
    try:
        jax.config.update(name, 1)
        xla_options.configure_runtime()
        assert jax.config.values[name] == seconds
    finally:
        jax.config.update(name, before)


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(xla_options, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    xla_options._cpu_options.cache_clear()
    assert xla_options.options(HERE) == {}
    monkeypatch.setattr(xla_options, "CPU_OPTIONS", {"xla_cpu_enable_fast_math": False})
    monkeypatch.setattr(xla_options, "BFLOAT16_OPTIONS", {"xla_cpu_no_such_option": True})
    xla_options._cpu_options.cache_clear()
    assert xla_options._cpu_options(True) == xla_options.CPU_OPTIONS
    xla_options._cpu_options.cache_clear()


@pytest.mark.parametrize(
    "loop, variables, expected",
    [
        ("device", {}, [1, True]),
        ("auto", {}, [1, False]),
        ("device", {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, [2, False]),
        ("device", {"JAX_NUM_CPU_DEVICES": "2"}, [2, False]),
    ],
)
def test_programs_of_simulated_devices_never_overlap(loop, variables, expected):
    """Two with collectives abort."""
    program = f"""
import json, jax
from gptjax.config import schema
from gptjax.sharding import xla_options
xla_options.configure_runtime(schema.Compute(microbatch_loop={loop!r}))
print(json.dumps([len(jax.devices()), jax.config.values["jax_cpu_enable_async_dispatch"]]))
"""
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


def test_malloc_keeps_memory(monkeypatch):
    """glibc takes every setting (mallopt returns 1)."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    results = []
    real = xla_options.ctypes.CDLL(None).mallopt

    class Libc:
        def mallopt(self, *arguments):
            results.append(real(*arguments))

    monkeypatch.setattr(xla_options.ctypes, "CDLL", lambda _: Libc())
    xla_options.tune_malloc()
    assert results == [1, 1, 1, 1]
