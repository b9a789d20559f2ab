"""The kernels for accelerators are the reference, in output and in all gradients: interpreted on
CPU, and compiled ahead of time."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.aot import hlo_cost
from gptjax.config import schema
from gptjax.model import grouped_matmul, inference
from gptjax.model.attention import dispatch, gpu_cudnn, gpu_flash, reference, tpu_splash
from gptjax.sharding import device_mesh, rules, topology
from gptjax.training import step
from tests import tiny

PATTERNS = [
    schema.Dense(),
    schema.Banded(window=1),
    schema.Banded(window=100),
    schema.Banded(window=500),
    schema.Strided(stride=17),
    schema.Fixed(block=32, summary=4),
]
PALLAS = {"splash": tpu_splash.attend, "flash": gpu_flash.attend}


def installed(module):
    return importlib.util.find_spec(module) is not None


needs_libtpu = pytest.mark.skipif(
    not installed("libtpu"), reason="needs libtpu: pip install -r requirements-dev.txt"
)
needs_cuda = pytest.mark.skipif(
    not (installed("jax_plugins") and installed("jax_plugins.xla_cuda12")),
    reason="needs jax's CUDA wheels: pip install -r requirements-gpu.txt",
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a short text has several."""
    monkeypatch.setattr(tpu_splash, "BLOCK_SIZES", (128,))
    tpu_splash._make_kernel.cache_clear()
    yield
    tpu_splash._make_kernel.cache_clear()


def out_and_gradients(attend, q, k, v, g):
    out, pull = jax.vjp(attend, q, k, v)
    return (out, *pull(g))


def compare(attend, pattern, T, d_head=64, dtype=jnp.float32, segments_BS=None, S=None, B=1, N=1):
    """attend(q, k, v, pattern, segments) against the reference in float32."""
    keys = jax.random.split(jax.random.key(T), 4)
    q, g = (jax.random.normal(key, (B, T, N, d_head), dtype) for key in keys[:2])
    k, v = (jax.random.normal(key, (B, S or T, N, d_head), dtype) for key in keys[2:])

    @functools.partial(jax.jit, static_argnums=0)
    def found(f, *arrays):
        return out_and_gradients(lambda q, k, v: f(q, k, v, pattern, segments_BS), *arrays)

    arrays = q, k, v, g
    expected = found(reference.attend, *(x.astype(jnp.float32) for x in arrays))
    for x, y in zip(found(attend, *arrays), expected, strict=True):
        x, y = np.asarray(x, np.float32), np.asarray(y)
        if dtype == jnp.float32:
            np.testing.assert_allclose(x, y, atol=2e-5)
        else:  # a gradient that is zero by definition is small beside that of the output
            assert np.linalg.norm(x - y) < 2e-2 * max(np.linalg.norm(y), 1e-2 * np.linalg.norm(g))


def interpreted(kernel):
    return functools.partial(PALLAS[kernel], interpret=True)


def documents(S, B=1):
    return jnp.cumsum((jnp.arange(S) % 70 == 0).astype(jnp.int32))[None].repeat(B, 0)


@pytest.mark.parametrize("kernel", PALLAS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns(kernel, pattern):
    compare(interpreted(kernel), pattern, 300 if kernel == "splash" else 150)


@pytest.mark.parametrize("kernel", PALLAS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_patterns_within_documents_in_bfloat16(kernel, pattern):
    """Of an odd length."""
    compare(interpreted(kernel), pattern, 149, dtype=jnp.bfloat16, segments_BS=documents(149))


@pytest.fixture
def simulated_tpu():
    """Pallas' simulation of a TPU instead of its plain interpreter: memories begin as NaN, blocks
    are copied between them asynchronously, and races are found."""
    memory = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    with pltpu.force_tpu_interpret_mode(memory):
        yield
    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("pattern", [PATTERNS[0], PATTERNS[2], *PATTERNS[4:]], ids=str)
def test_splash_on_a_simulated_tpu(pattern, simulated_tpu):
    compare(tpu_splash.attend, pattern, 140, dtype=jnp.bfloat16, segments_BS=documents(140))


@pytest.mark.parametrize("sizes", [(100, 0, 200), (0, 0, 90)])
def test_grouped_matmul_on_a_simulated_tpu(sizes, simulated_tpu):
    """Also of weights without rows, and of rows without a weight."""
    keys = jax.random.split(jax.random.key(0))
    x_RD, weight_EDG = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((300, 128), (3, 128, 128)), strict=True)
    )

    def outputs(multiply):
        y, pull = jax.vjp(lambda x, w: multiply(x, w, jnp.array(sizes)), x_RD, weight_EDG)
        return y, *pull(y)

    found = outputs(grouped_matmul.multiply_by_kernels)
    for x, y in zip(found, outputs(grouped_matmul.multiply_blocks), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3)


@pytest.mark.parametrize("kernel", PALLAS)
@pytest.mark.parametrize(
    "d_head, dtype", [(64, jnp.bfloat16), (80, jnp.float32), (96, jnp.bfloat16), (128, jnp.float32)]
)
def test_head_sizes_and_types(kernel, d_head, dtype):
    compare(interpreted(kernel), schema.Banded(window=50), 130, d_head, dtype, N=2)


@pytest.mark.parametrize("kernel", PALLAS)
@pytest.mark.parametrize("pattern", [schema.Dense(), schema.Strided(stride=17)], ids=str)
def test_documents_kept_apart(kernel, pattern):
    compare(interpreted(kernel), pattern, 150, segments_BS=documents(150))


@pytest.mark.parametrize(
    "pattern", [schema.Banded(window=100), schema.Fixed(block=100, summary=3)], ids=str
)
def test_splashs_backward_pass_in_two_kernels(pattern, monkeypatch):
    """As where there are many keys."""
    monkeypatch.setattr(tpu_splash, "MAX_DQ_COPIES", 0)
    compare(interpreted("splash"), pattern, 300, segments_BS=documents(300))


@pytest.mark.parametrize("kernel", PALLAS)
@pytest.mark.parametrize(
    "pattern, T, S", [(schema.Banded(window=1), 1, 300), (schema.Strided(stride=17), 40, 300)]
)
def test_few_queries(kernel, pattern, T, S):
    compare(interpreted(kernel), pattern, T, S=S, segments_BS=documents(S))


@pytest.mark.parametrize("kernel", PALLAS)
def test_on_a_mesh(kernel, monkeypatch):
    """Rows over data, heads over tensor."""
    monkeypatch.setitem(dispatch.KERNELS, kernel, interpreted(kernel))
    mesh = device_mesh.make_mesh(schema.Mesh(data=2, fsdp=1, tensor=2), jax.devices()[:4])
    place = rules.Sharding(rules.PRESETS["fsdp_tensor"], mesh)
    attend = functools.partial(dispatch.attend, kernel, place)
    compare(attend, schema.Banded(window=50), 140, segments_BS=documents(140, B=2), B=2, N=2)


# --- cost follows the pattern ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern, least, most", [(schema.Banded(window=256), 2, 2.2), (schema.Dense(), 3.5, 4)], ids=str
)
def test_twice_the_tokens(pattern, least, most):
    """Twice the blocks of a band, nearly four times those of dense attention; in each kernel."""
    for few, many in zip(
        tpu_splash.pairs_by_kernel(pattern, 1024).values(),
        tpu_splash.pairs_by_kernel(pattern, 2048).values(),
        strict=True,
    ):
        assert least <= many / few <= most
    few, many = (
        gpu_flash.tile_mask(gpu_flash.KernelPlan(pattern, T, T, 0, 64, False)).sum()
        for T in (1024, 2048)
    )
    assert least <= many / few <= most


@pytest.mark.parametrize(
    "pattern", [schema.Strided(stride=128), schema.Fixed(block=128, summary=8)], ids=str
)
def test_small_tiles_leave_most_of_sparse_patterns_out(pattern):
    """A quarter of the past's tiles, and the four or five that end with the query's own."""
    dense, sparse = (
        gpu_flash.tile_mask(gpu_flash.KernelPlan(p, 4096, 4096, 0, 32, False)).sum()
        for p in (schema.Dense(), pattern)
    )
    assert 0.25 < sparse / dense < 0.25 + 5 * 128 / dense


# --- compiled ahead of time -----------------------------------------------------------------------


def ahead(name, attend, pattern, T, d_head, dtype, segmented=False):
    """Forward and backward passes as text, compiled for one device of a topology."""
    target = topology.from_name(name)
    whole = NamedSharding(jax.sharding.Mesh(target.devices()[:1], "x"), PartitionSpec())
    x = jax.ShapeDtypeStruct((1, T, 2, d_head), dtype, sharding=whole)
    segments_BS = jax.ShapeDtypeStruct((1, T), jnp.int32, sharding=whole) if segmented else None

    def f(q, k, v, g, segments_BS):
        return out_and_gradients(lambda q, k, v: attend(q, k, v, pattern, segments_BS), q, k, v, g)

    with topology.disable_cache():
        return (
            jax.jit(f)
            .trace(x, x, x, x, segments_BS)
            .lower(lowering_platforms=(target.platform,))
            .compile()
            .as_text()
        )


@needs_libtpu
@pytest.mark.parametrize(
    "pattern, T, d_head, dtype, segmented",
    [
        (schema.Dense(), 1024, 64, jnp.bfloat16, False),
        (schema.Banded(window=256), 1000, 80, jnp.float32, True),
        (schema.Strided(stride=128), 600, 96, jnp.bfloat16, False),
    ],
    ids=str,
)
def test_splash_compiled_for_v5e(pattern, T, d_head, dtype, segmented):
    program = ahead("v5e-1", tpu_splash.attend, pattern, T, d_head, dtype, segmented)
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program


R, E, D, G = 1000, 4, 896, 1024


def grouped_ahead(name, dtype):
    """grouped_matmul of R rows and its gradients as text, compiled for one device."""
    target = topology.from_name(name)
    whole = NamedSharding(jax.sharding.Mesh(target.devices()[:1], "x"), PartitionSpec())
    x, weight, dy = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape in ((R, D), (E, D, G), (R, G))
    )
    sizes = jax.ShapeDtypeStruct((E,), jnp.int32, sharding=whole)

    def f(x, weight, sizes, dy):
        y, pull = jax.vjp(lambda x, w: grouped_matmul.grouped_matmul(x, w, sizes), x, weight)
        return y, pull(dy)

    with topology.disable_cache():
        traced = jax.jit(f).trace(x, weight, sizes, dy)
        return traced.lower(lowering_platforms=(target.platform,)).compile().as_text()


@needs_libtpu
@pytest.mark.parametrize("name, dtype", [("v5e-1", "float32"), ("v5p-8", "bfloat16")])
def test_grouped_matmul_compiled_for_tpus(name, dtype):
    """The product and both gradients are kernels, each of the FLOPs of one weight for a row."""
    program = hlo_cost.Program(grouped_ahead(name, dtype))
    runs = program.kernel_counts()
    assert (runs["gmm"], runs["tgmm"]) == (2, 1)
    rows = 1024  # padded to whole tiles
    assert program.grouped_matmul_flops() == 3 * 2 * D * G * rows


@needs_cuda
def test_grouped_matmul_compiled_for_h100():
    """No array has E times the rows, as in a masked matmul of all rows with all weights."""
    text = grouped_ahead("h100-1", "bfloat16")
    assert f"bf16[{R},{D}]" in text
    assert f"[{R},{E * D}]" not in text and f"[{E},{R},{D}]" not in text


@needs_libtpu
@pytest.mark.parametrize(
    "mlp",
    [schema.GELU(), schema.Experts(n_experts=4, top_k=2, expert=schema.SwiGLU(d_ff=256))],
    ids=["dense", "experts"],
)
def test_generation_is_compiled_for_several_tpu_chips(mlp):
    """A prompt does not divide over devices, so that the compiler partitions what reads it, and it
    refuses to partition TPU kernels."""
    c = tiny.config(
        n_layers=2, n_heads=2, d_model=256, n_vocab=512, n_ctx=256, mlp=mlp, attention=tiny.GPT3
    )
    target = topology.from_name("v5p-8")
    mesh = device_mesh.make_mesh(c.mesh, target.devices())
    with topology.disable_cache(), jax.set_mesh(mesh):
        train_step = step.build(c, "tpu", mesh, None)
        whole = NamedSharding(mesh, PartitionSpec())

        def generate(params, tokens_BT, counts_B):
            lm = inference.prepare(train_step.model, params)
            cache, _ = inference.prefill(lm, tokens_BT, counts_B, 256)
            cache, x_BTD = inference.decode_step(lm, cache, tokens_BT[:, :1], counts_B // counts_B)
            return inference.logits(lm, x_BTD)

        arguments = (
            train_step.abstract_state(mesh).params,
            jax.ShapeDtypeStruct((1, 128), np.int32, sharding=whole),
            jax.ShapeDtypeStruct((1,), np.int32, sharding=whole),
        )
        lowered = jax.jit(generate).trace(*arguments).lower(lowering_platforms=("tpu",))
        assert lowered.compile().memory_analysis().output_size_in_bytes > 0


ALL_PATTERNS = [
    schema.Dense(),
    schema.Banded(window=256),
    schema.Strided(stride=100),
    schema.Fixed(block=128, summary=8),
]
SHAPES = [
    (2048, 64, jnp.bfloat16),
    (1001, 80, jnp.float32),
    (8192, 128, jnp.float32),
    (32768, 96, jnp.bfloat16),
]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-1", "v5p-8", "v6e-1"])
@pytest.mark.parametrize("pattern", ALL_PATTERNS, ids=str)
@pytest.mark.parametrize("T, d_head, dtype", SHAPES)
@pytest.mark.parametrize("segmented", [False, True])
def test_splash_compiled_for_many(name, pattern, T, d_head, dtype, segmented, monkeypatch):
    monkeypatch.setattr(tpu_splash, "BLOCK_SIZES", (128, 256, 384, 512))
    program = ahead(name, tpu_splash.attend, pattern, T, d_head, dtype, segmented)
    assert "splash_mha_fwd" in program and "splash_mha_dkv" in program


@needs_cuda
@pytest.mark.parametrize(
    "pattern", [schema.Dense(), schema.Banded(window=256), schema.Banded(window=1)], ids=str
)
@pytest.mark.parametrize("T, d_head", [(2048, 64), (1000, 80), (300, 96), (2048, 128)])
def test_cudnn_compiled_for_h100(pattern, T, d_head):
    program = ahead("h100-1", gpu_cudnn.attend, pattern, T, d_head, jnp.bfloat16)
    assert "__cudnn$fmhaSoftmax" in program and "__cudnn$fmhaSoftmaxBackward" in program


@needs_cuda
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("pattern", ALL_PATTERNS, ids=str)
@pytest.mark.parametrize("T, d_head, dtype", SHAPES[:3])
@pytest.mark.parametrize("segmented", [False, True])
def test_flash_compiled_for_h100(pattern, T, d_head, dtype, segmented):
    assert "triton" in ahead("h100-1", gpu_flash.attend, pattern, T, d_head, dtype, segmented)
