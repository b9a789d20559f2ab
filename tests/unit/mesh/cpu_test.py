"""XLA's options for x86 CPUs."""

import platform

import jax
import jax.numpy as jnp
import pytest

from gptjax.mesh import cpu


def test_none_elsewhere(monkeypatch):
    cpu.options.cache_clear()
    assert cpu.options("tpu") == {}
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpu.options.cache_clear()
    assert cpu.options("cpu") == {}
    cpu.options.cache_clear()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the options are for x86")
def test_this_xla_multiplies_without_ynnpack_and_sums_with_it():
    assert cpu.options("cpu") == cpu.OPTIONS
    x = jax.ShapeDtypeStruct((512, 512), jnp.float32)

    def program(f):
        return jax.jit(f, compiler_options=cpu.options("cpu")).lower(*[x] * f.__code__.co_argcount).compile().as_text()

    assert "ynn_fusion" not in program(lambda x, w: x @ w)
    assert "ynn_fusion" in program(lambda x: x.sum(0))


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "OPTIONS", {"xla_cpu_no_such_option": "1"})
    cpu.options.cache_clear()
    assert cpu.options("cpu") == {}
    cpu.options.cache_clear()


def test_memory_is_kept(monkeypatch):
    """glibc takes every setting (mallopt returns 1)."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not glibc")
    results = []
    real = cpu.ctypes.CDLL(None).mallopt

    class Libc:
        def mallopt(self, *arguments):
            results.append(real(*arguments))

    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: Libc())
    cpu.keep_memory()
    assert results == [1, 1, 1, 1]
