"""The strictest JAX: 8 simulated devices, no silent rank or type promotion. Set before anything
imports jax."""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compiling, so: little optimisation, and one cache for the session's
# processes (xdist's inherit it).
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
if importlib.metadata.version("jax").startswith("0.10."):
    # XLA's older code generator, which later versions lack: the step of tests/tiny.py compiles in
    # 1.1 s of processor time instead of 3.1.
    os.environ["XLA_FLAGS"] += (
        " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gptjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# Every operation of a program otherwise carries the 100 calls that led to it: a tenth of the time.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import jax
import psutil
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_cpu_enable_async_dispatch", False
)  # as sharding.xla_options.configure_runtime does, and for its reason
jax.config.update("jax_numpy_dtype_promotion", "strict")

MAX_MEMORY_BYTES = 3 * 2**30  # of a worker, before what is compiled is dropped
SHARED = pathlib.Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items):
    if not SHARED.exists():
        for item in items:
            # Not item.keywords, which have the names of parameters, too.
            if item.get_closest_marker("shared"):
                item.add_marker(
                    pytest.mark.skip(
                        reason=f"needs the developers' data folder {SHARED}, which is not here"
                    )
                )


def pytest_collection_finish(session):
    """Keep the garbage collector off the 8,000 tests, and let it come seldom: tracing makes so many
    objects that it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_runtest_teardown(item, nextitem):
    """Drop what is compiled, 8 GB at the end, before a file that has little use for it."""
    if nextitem is not None and nextitem.path != item.path:
        if psutil.Process().memory_info().rss > MAX_MEMORY_BYTES:
            jax.clear_caches()
            gc.collect()


@pytest.fixture
def shared() -> pathlib.Path:
    """The developers' data folder; only for tests marked `shared`."""
    return SHARED
