"""XLA's options by device."""

import platform

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


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(xla_options, "CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    xla_options._cpu_options.cache_clear()
    assert xla_options.options(HERE) == {}
    xla_options._cpu_options.cache_clear()


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
