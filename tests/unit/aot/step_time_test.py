"""The time of a step from its parts, and the links that a group of chips has."""

import dataclasses
import importlib.util
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax.aot import compile, hlo_cost, report, step_time
from gptjax.config import count, schema
from gptjax.configs import registry
from gptjax.sharding import chips, topology
from tests import tiny

LINK = 100e9  # bytes/s of one v5p link, in one direction


def traffic(seconds, asynchronous):
    return step_time.Traffic(
        kind="all-gather",
        axes="fsdp",
        n_devices=4,
        times=1,
        n_bytes=1.0,
        seconds=seconds,
        asynchronous=asynchronous,
    )


def test_synchronous_communication_adds_and_the_rest_may_overlap():
    whole = step_time.Estimate(
        floor=1.0, compute=4.0, kernels=1.0, traffic=(traffic(2.0, False), traffic(4.0, True))
    )
    left = 4.0 * (1 - step_time.HIDDEN_SHARE)
    assert (whole.exposed, whole.step) == (2.0 + left, 7.0 + left)
    assert whole.mfu == 1 / whole.step
    long = step_time.Estimate(floor=1.0, compute=4.0, kernels=1.0, traffic=(traffic(7.5, True),))
    assert long.exposed == max(2.5, 7.5 * (1 - step_time.HIDDEN_SHARE))
    longer = step_time.Estimate(floor=1.0, compute=4.0, kernels=1.0, traffic=(traffic(50, True),))
    assert longer.exposed == 45.0


def test_days_are_of_all_tokens():
    config = registry.config("gpt3_small")
    whole = step_time.Estimate(floor=1.0, compute=4.0, kernels=1.0, traffic=())
    assert step_time.run_days(whole, config) == pytest.approx(5 * 300e9 / 2**19 / (24 * 3600))


@pytest.mark.parametrize(
    "kinds, products", [(("forward", "dkv", "dq"), 2 * 2 + 4 + 3), (("forward", "dkv"), 2 * 2 + 5)]
)
def test_kernels_run_at_a_share_of_peak(monkeypatch, kinds, products):
    """A thousand pairs of positions visited of each kind; heads of 64 are 128 wide there,
    forward runs twice where nothing is kept. Grouped matmuls take a thousandth of a second at
    peak."""
    monkeypatch.setattr(
        step_time.tpu_splash, "pairs_by_kernel", lambda pattern, n_ctx: dict.fromkeys(kinds, 1000)
    )
    c = tiny.replace_parts(
        registry.config("gpt3_small"),
        model={"attention": (schema.Dense(),)},
        compute={"remat": "full"},
    )
    program, target = (
        SimpleNamespace(kernel_counts=lambda: {"splash": 1}, grouped_matmul_flops=lambda: 459e9),
        topology.from_name("v5p:2x2x1"),
    )
    found = step_time.kernel_seconds(
        SimpleNamespace(config=c, program=program, mesh=SimpleNamespace(size=4), target=target)
    )
    attention = products * 2 * 1000 * 128 * (12 * 256 * 12 / 4) / 459e12
    assert found == pytest.approx((attention + 1e-3) / step_time.KERNEL_SHARE)


def stand_in_mesh(target, shape):
    """A mesh (data, fsdp, tensor, context) of stand-ins for chips, in the torus' own order."""
    places = list(np.ndindex(*target.layout))
    flat = [
        SimpleNamespace(coords=place, slice_index=s, process_index=0)
        for s in range(target.slices)
        for place in places
    ]
    devices = np.empty(len(flat), object)
    devices[:] = flat
    return SimpleNamespace(
        devices=devices.reshape(shape), axis_names=("data", "fsdp", "tensor", "context")
    )


def sends(kind, group):
    return hlo_cost.Collective(
        kind=kind, shapes=(), group=group, times=1, bytes_sent=1.0, asynchronous=False, op_name=""
    )


def test_links_of_a_group():
    """8 x 8 x 8 closes to rings, 2 x 2 x 1 does not: two links a dimension, or one; between
    slices, the network."""
    pod = topology.from_name("v5p:8x8x8")
    mesh = stand_in_mesh(pod, (1, 64, 8, 1))
    line, plane, part = tuple(range(8)), tuple(range(0, 512, 8)), tuple(range(4))
    assert (
        step_time.group_axes(line, mesh) == "tensor" and step_time.group_axes(plane, mesh) == "fsdp"
    )
    assert step_time.bandwidth(sends("all-gather", line), mesh, pod) == 2 * LINK
    assert step_time.bandwidth(sends("all-gather", plane), mesh, pod) == 4 * LINK
    assert step_time.bandwidth(sends("all-gather", part), mesh, pod) == LINK, (
        "half a ring is a line"
    )
    assert step_time.bandwidth(sends("collective-permute", line), mesh, pod) == LINK
    host = topology.from_name("v5p:2x2x1")
    assert (
        step_time.bandwidth(
            sends("all-gather", (0, 1, 2, 3)), stand_in_mesh(host, (1, 4, 1, 1)), host
        )
        == 2 * LINK
    )
    two = topology.from_name("2xv5p:2x2x1")
    assert (
        step_time.bandwidth(sends("all-reduce", ()), stand_in_mesh(two, (2, 4, 1, 1)), two)
        == chips.CHIPS["v5p"].network_bandwidth
    )


@pytest.fixture(scope="module")
def compiled():
    """A banded and a dense layer twice over, in two microbatches, on four v5p chips."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which requirements-dev.txt installs")
    c = tiny.config(rows=16, n_ctx=256, n_vocab=500, n_layers=4, n_heads=2, d_model=256)
    c = tiny.replace_parts(
        c, compute={"remat": "full"}, train={"microbatch_rows": 8}, mesh={"fsdp": 4}
    )
    return compile.compile_step(c, topology.from_name("v5p:2x2x1"))


def test_estimate_of_a_compiled_step(compiled):
    """Four layers, two microbatches: each kernel 8 times, and once more forward, since nothing
    is kept."""
    found = step_time.estimate(compiled)
    runs = compiled.program.kernel_counts()
    assert sum(times for name, times in runs.items() if "fwd" in name) == 16
    assert sum(times for name, times in runs.items() if "dkv" in name) == 8
    flops = (
        count.train_flops_per_token(compiled.config.model) * compiled.config.train.batch_tokens / 4
    )
    assert (
        found.floor == pytest.approx(flops / 459e12)
        and found.floor < found.compute + found.kernels < found.step
    )
    by_cycles = compiled.program.cycles() / compiled.target.chip.clock
    assert found.compute == pytest.approx(step_time.CYCLE_SHARE * by_cycles)
    assert {row.axes for row in found.traffic} == {"fsdp"} and "all-gather" in {
        row.kind for row in found.traffic
    }
    weights = sum(row.n_bytes for row in found.traffic if row.kind == "all-gather")
    # bfloat16 matrices of four layers, of which a chip has a quarter
    once = 2 * 12 * 256**2 * 4 * 3 / 4
    assert weights > 4 * once, "each is gathered forward and backward, in both microbatches"


def test_the_estimate_is_rendered(compiled):
    found = step_time.summarize(compiled, step_time.estimate(compiled))
    said = report.render(found)
    assert (
        found["fits"]
        and "fits:" in said
        and "2 x 8 rows" in said
        and max(map(len, said.splitlines())) <= 100
    )
    low, high = (ratio * found["step_seconds"] for ratio in step_time.RATIOS)
    assert (
        f"interval {report.format_seconds(low)} to  {report.format_seconds(high)}: 12 published"
        in (re.sub(r"interval +", "interval ", said))
    )
    float8 = tiny.replace_parts(compiled.config, compute={"matmul_dtype": "float8"})
    rounded = dataclasses.replace(compiled, config=float8)
    assert step_time.summarize(rounded, step_time.estimate(compiled))["step_interval"] is None
    assert "repeated" not in said
    tight = report.render(found | {"recomputed_seconds": found["compute_seconds"] / 2})
    assert "of it repeated" in tight and "for lack of memory" in tight
    assert "interval" not in report.render(found | {"step_interval": None})
    small = found | {"fits": False, "over_bytes": 3 * 2**30, "advice": "take more"}
    assert "DOES NOT FIT: 3.00 GiB over; take more" in report.render(small)
    rows = report.render_ranking([("a", "no room"), ("b", small), ("c", found)]).splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["c", "b", "a"], (
        "those that fit, those that do not, those that were not compiled"
    )


def test_too_few_chips_are_refused_before_compiling():
    """175B's state is 1.9 TiB: 0.48 TiB for each of four chips, of which each has 95.7 GiB."""
    config, four = registry.config("gpt3_175b"), topology.from_name("v5p:2x2x1")
    over = 12 * count.padded_parameters(config.model) // 4 - four.chip.hbm_bytes
    said = compile.state_too_large(config, four)
    assert (
        f"{over / 2**30:.0f} GiB over the memory of each chip of v5p:2x2x1; the smallest v5p that "
        "should do: v5p-" in said
    )
    enough = topology.from_name(said.rsplit(" ", 1)[1])
    assert 20 * count.parameters(config.model) / enough.n_devices < enough.chip.hbm_bytes
    assert (
        compile.state_too_large(config, enough) == ""
        and compile.state_too_large(registry.config("gpt3_small"), four) == ""
    )
    assert "no v6e slice is large enough" not in compile.state_too_large(
        registry.config("gpt3_13b"), topology.from_name("v6e-1")
    )


def test_attention_that_no_kernel_computes_is_in_the_cycles(compiled):
    """With attention dropout, as GPT-2 trains, the reference computes it."""
    program = SimpleNamespace(kernel_counts=lambda: {"tgmm": 1})
    without = SimpleNamespace(**vars(compiled) | {"program": program})
    assert step_time.attention_flops(without) == 0 < step_time.attention_flops(compiled)


def test_plan_takes_the_microbatch_that_train_takes():
    """GPT-2 has attention dropout, so that its scores lie in memory, and fewer rows fit than
    without."""
    target, mesh = (
        topology.from_name("v5e-4"),
        SimpleNamespace(size=4, shape={"data": 1, "fsdp": 4, "tensor": 1, "context": 1}),
    )
    gpt2 = registry.config("gpt2_355m")
    dropping, free = (
        compile.choose_microbatch_rows(tiny.replace_parts(gpt2, model={"dropout": d}), mesh, target)
        for d in (gpt2.model.dropout, schema.Dropout())
    )
    assert dropping < free
    state = count.state_bytes(gpt2.model) // 4
    least = count.microbatch_rows(
        gpt2,
        count.activation_budget(gpt2.model, target.chip.hbm_bytes, state, 4),
        4,
        "bfloat16",
        scores=True,
    )
    assert dropping <= least < 2 * dropping, "the largest power of two, of a batch of 512"


def test_products_of_8_bits_may_take_half_the_time(compiled):
    """The bound of a GPU, where memory is not the slower part."""
    chip = dataclasses.replace(chips.CHIPS["h100"], hbm_bandwidth=1e30)
    target = SimpleNamespace(platform="cuda", chip=chip)
    seconds = []
    for dtype in ("auto", "float8"):
        config = tiny.replace_parts(compiled.config, compute={"matmul_dtype": dtype})
        one = dataclasses.replace(compiled, config=config, target=target, program=NoTraffic())
        seconds.append(step_time.estimate(one).compute)
    assert seconds[1] == seconds[0] / 2


class NoTraffic:
    """A program that neither reads nor sends."""

    def bytes_accessed(self):
        return 0

    def collectives(self):
        return []


def test_a_misread_program_is_noticed(compiled, monkeypatch):
    monkeypatch.setattr(hlo_cost.Program, "cycles", lambda self, name="": 0)
    with pytest.raises(AssertionError, match="below the floor"):
        step_time.estimate(compiled)


def test_compile_only_steps_do_not_use_the_cache(monkeypatch):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which requirements-dev.txt installs")
    switches = []

    def program(*arguments):
        switches.append(jax.config.jax_enable_compilation_cache)
        raise KeyError

    monkeypatch.setattr(compile, "compile_program", program)
    with pytest.raises(KeyError):
        compile.compile_step(
            tiny.replace_parts(tiny.config(), mesh={"fsdp": 4}), topology.from_name("v5p:2x2x1")
        )
    assert switches == [False] and jax.config.jax_enable_compilation_cache


def test_a_mesh_that_does_not_fit_is_refused_before_compiling():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which requirements-dev.txt installs")
    c = tiny.replace_parts(tiny.config(), mesh={"fsdp": 3})
    with pytest.raises(ValueError, match="needs 3 devices, but there are 4"):
        compile.compile_step(c, topology.from_name("v5p:2x2x1"))
