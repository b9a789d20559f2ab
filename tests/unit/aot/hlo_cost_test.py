"""A program as XLA prints it: loops, cycles, kernels, and what is sent."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.aot import hlo_cost
from gptjax.config import schema
from gptjax.sharding import device_mesh

TEXT = """HloModule jit_step, is_scheduled=true

%fused_computation (param_0: f32[8,4]) -> f32[8,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  ROOT %negate.1 = f32[8,4]{1,0} negate(%param_0), backend_config={"estimated_cycles":"1000"}
}

%all-reduce-scatter.1 (input: bf16[8,64]) -> bf16[8,16] {
  %input = bf16[8,64]{1,0} parameter(0)
  ROOT %all-reduce.3 = bf16[8,64]{1,0} all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add, metadata={op_name="rs"}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %fusion.1 = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused_computation, backend_config={"estimated_cycles":"10"}
  %splash_mha_fwd.7 = f32[8,4]{1,0} custom-call(%fusion.1), custom_call_target="tpu_custom_call"
  %all-gather-start.1 = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
  %scatter = bf16[8,16]{1,0} fusion(%splash_mha_fwd.7), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple.1 = (s32[], f32[8,4]{1,0}) tuple(%next, %splash_mha_fwd.7)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %bound = s32[] constant(11)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %a)
  %while.1 = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %y = f32[8,4]{1,0} get-tuple-element(%while.1), index=1
  %all-reduce.9 = f32[8,4]{1,0} all-reduce(%y), replica_groups=mesh['a'=2,'b'=4] {'a'}, to_apply=%add
  %lone = f32[8,4]{1,0} all-reduce(%y), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %copy.1 = f32[8,4]{1,0} copy(%all-reduce.9), frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, backend_config={"estimated_cycles":"5"}
}
"""  # noqa: E501


def test_loops_are_counted_by_their_step():
    """0, 2, ... 10: six turns; what lies within a fusion is in its estimate already; an
    instruction may have several lines."""
    program = hlo_cost.Program(TEXT)
    assert program.cycles() == 6 * 10 + 5
    assert program.kernel_counts() == {"splash_mha_fwd": 6}
    assert program.cycles(hlo_cost.COMPILER_REMAT) == 0
    repeats = hlo_cost.Program(TEXT.replace("%fusion.1", "%fusion.1.remat2"))
    assert repeats.cycles(hlo_cost.COMPILER_REMAT) == 6 * 10 and repeats.cycles() == 6 * 10 + 5


def test_grouped_matmuls_are_of_one_weight_for_a_row():
    """40 rows of 6 numbers, times their own of 3 weights of (6, 5): six times, then the gradient of
    the weights once. Sizes of groups are no matrices."""
    kernels = """
  %gmm.2 = f32[40,5]{1,0} custom-call(%m, %x, %w), operand_layout_constraints={s32[4]{0}, f32[40,6]{1,0}, f32[3,6,5]{2,1,0}}, metadata={op_name="f32[7,7]"}
"""  # noqa: E501
    gradient = """
  %tgmm = f32[3,6,5]{2,1,0} custom-call(%m, %x, %dy), operand_layout_constraints={s32[4]{0}, f32[40,6]{1,0}, f32[40,5]{1,0}}
"""  # noqa: E501
    text = TEXT.replace("  %fusion.1 =", kernels[1:] + "  %fusion.1 =")
    text = text.replace("  %zero =", gradient[1:] + "  %zero =")
    assert hlo_cost.Program(text).grouped_matmul_flops() == 7 * 2 * 40 * 6 * 5
    assert hlo_cost.Program(TEXT).grouped_matmul_flops() == 0


def test_bytes_that_are_moved():
    """In a turn, 8 x 4 floats through a fusion and a kernel, then gathered and scattered; and the
    counter. A tuple moves nothing.
    Of an array of as many slices as there are turns, one: two turns and f32[2,4]."""
    six, five, two = (
        hlo_cost.Program(TEXT.replace("constant(11)", f"constant({n})")).bytes_accessed()
        for n in (11, 9, 3)
    )
    gathered, scattered = (
        128 + (32 + 128),
        128 + 2 * 8 * 16,
    )  # reads x, holds a pair; reads floats, writes bfloat16s
    turn = 2 * 128 + 2 * 128 + gathered + scattered + 3 * 4
    assert six - five == turn and five - two == 3 * turn + 2 * 32 / 2


def test_a_loop_that_cannot_be_counted_is_an_error():
    with pytest.raises(AssertionError, match="cannot count the loop while.1"):
        hlo_cost.Program(
            TEXT.replace("%bound = s32[] constant(11)", "%bound = s32[] negate(%i.1)")
        ).cycles()


def test_a_loop_that_may_end_early_is_counted_to_its_bound():
    """As that over the tokens of answers, which ends when all have ended."""
    less = "%less = pred[] compare(%i.1, %bound), direction=LT"
    both = (
        "%goes = pred[] get-tuple-element(%p.1), index=1\n  ROOT %both = pred[] and(%goes, %less)"
    )
    early = hlo_cost.Program(TEXT.replace(f"ROOT {less}", f"{less}\n  {both}"))
    assert early.cycles() == hlo_cost.Program(TEXT).cycles()


def test_communication_is_counted():
    """A gather of 8 x 4 floats sends what a device has not got itself; a reduce-scatter is
    written as an all-reduce with a whole result."""
    found = {one.kind: one for one in hlo_cost.Program(TEXT).collectives()}
    assert set(found) == {"all-gather", "all-reduce", "reduce-scatter"}
    gather, scatter, reduce = found["all-gather"], found["reduce-scatter"], found["all-reduce"]
    assert (gather.times, gather.group, gather.asynchronous, gather.bytes_sent) == (
        6,
        (0, 1, 2, 3),
        True,
        8 * 4 * 4 * 3 / 4,
    )
    assert (scatter.times, scatter.group, scatter.asynchronous, scatter.bytes_sent) == (
        6,
        (0, 1, 2, 3),
        False,
        8 * 64 * 2 * 3 / 4,
    )
    assert (reduce.times, reduce.group, reduce.bytes_sent) == (1, (0, 4), 8 * 4 * 4)


def test_communication_between_slices():
    """Between slices libtpu sends by the hosts; 4 x 8 bfloat16s, of which each chip has its own."""
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"'  # noqa: E501
    send = (
        f"  %s = (bf16[4,8]{{1,0}}, u32[], token[]) send(%y, %t), channel_id=9, "
        f"frontend_attributes={{{handler}}}\n  ROOT %copy.1"
    )
    (one,) = [
        c
        for c in hlo_cost.Program(TEXT.replace("  ROOT %copy.1", send)).collectives()
        if not c.group
    ]
    assert (one.kind, one.bytes_sent, one.times, one.asynchronous) == (
        "all-reduce",
        4 * 8 * 2,
        1,
        True,
    )


def test_a_collective_that_is_fused_with_what_hides_it_is_sent_once():
    """libtpu writes it into the fusion that starts it, into those that hide it, and into the last
    one."""
    parts, gather = ["start", "hide", "done"], "bf16[1,32]{1,0} all-gather(%part), channel_id=7, "
    gather += "replica_groups=[2,4]<=[8], dimensions={1}, "
    gather += 'frontend_attributes={chain_id="6"}, metadata={op_name="w"}'
    functions = "".join(
        f"%{part} (part: bf16[1,8]) -> bf16[1,32] {{\n"
        f"  %part = bf16[1,8]{{1,0}} parameter(0)\n  ROOT %gather.{part} = {gather}\n}}\n\n"
        for part in parts
    )
    calls = "".join(
        f"  %f.{part} = bf16[1,32]{{1,0}} fusion(%x), kind=kCustom, calls=%{part}\n"
        for part in parts
    )
    head, loop = TEXT.split("%body (p:", 1)
    text = f"{head}{functions}%body (p:{loop.replace('  %fusion.1 =', calls + '  %fusion.1 =', 1)}"
    before, after = (
        [c for c in hlo_cost.Program(one).collectives() if c.kind == "all-gather"]
        for one in (TEXT, text)
    )
    (one,) = [c for c in after if c.op_name == "w"]
    assert len(after) == len(before) + 1
    assert (one.times, one.bytes_sent, one.asynchronous) == (before[0].times, 32 * 2 * 3 / 4, True)


@pytest.mark.parametrize(
    "written, group",
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4}", (0, 2, 4, 6)),
        ("source_target_pairs={{0,2},{2,4},{4,0},{1,3}}", (0, 2, 4)),
    ],
)
def test_groups(written, group):
    assert hlo_cost._first_group(f"%x), channel_id=1, {written}, dimensions={{0}}") == group


def test_a_group_that_is_written_in_another_way_is_an_error():
    with pytest.raises(AssertionError, match="cannot read the devices of"):
        hlo_cost.Program(
            TEXT.replace("replica_groups=[2,4]<=[8]", "replica_groups={}")
        ).collectives()


def test_costs_of_a_program_compiled_for_cpu():
    """Seven turns of a loop that gathers 16 x 16 floats, cut over four devices."""
    mesh = device_mesh.make_mesh(schema.Mesh(fsdp=4), jax.devices()[:4])

    def step(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    rows, weights = (
        NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp", None), (None, "fsdp", None))
    )
    arguments = (
        jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((7, 16, 16), jnp.float32, sharding=weights),
    )
    program = hlo_cost.Program(
        jax.jit(step, out_shardings=rows).lower(*arguments).compile().as_text() or ""
    )
    sent = sum(
        one.times * one.bytes_sent for one in program.collectives() if one.kind == "all-gather"
    )
    assert sent == 7 * 16 * 16 * 4 * 3 / 4
