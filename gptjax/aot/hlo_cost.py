"""Analyzes the text of a compiled program: instructions with their execution counts, cycle
estimates, and communication.

XLA's own cost analysis counts the body of a loop once, and neither kernels nor communication.
libtpu annotates fusions and copies with cycle estimates; kernels and collectives have none.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

DTYPE_BYTES = {
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "s16": 2,
    "u16": 2,
    "s8": 1,
    "u8": 1,
    "pred": 1,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
COLLECTIVE_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
FREE_OPS = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "call",
    "conditional",
    "after-all",
)
INSTRUCTION_PATTERN = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
FUNCTION_PATTERN = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
COMPILER_REMAT = ".remat"  # in the name of an instruction that libtpu repeats
GROUPED_PATTERN = re.compile(r"t?gmm\b")  # jax's kernels of grouped_matmul and its gradients
ARRAY_PATTERN = re.compile(r"\b([a-z]+[0-9]*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """One HLO instruction."""

    name: str
    type: str
    op: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def op_name(self) -> str:
        """The op_name of its metadata: its place in the source."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    def callees(self, *attributes: str) -> list[str]:
        """Functions named in the given attributes."""
        matches = re.findall(
            rf"\b(?:{'|'.join(attributes)})=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.rest
        )
        return [
            name.strip().lstrip("%")
            for single, many in matches
            for name in (single or many).split(",")
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective instruction. Devices are numbered as in the flattened mesh."""

    kind: str
    # Dtype and sizes of each array of the result on one device, as printed.
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    # The first group of devices, or the first cycle of a permute; empty between TPU slices.
    group: tuple[int, ...]
    times: int
    # By one device each time, in a ring: all of the array but its own part once, twice for an
    # all-reduce.
    bytes_sent: float
    asynchronous: bool  # other instructions may run meanwhile
    op_name: str


class Program:
    """The functions of a compiled program, parsed from jax.stages.Compiled.as_text()."""

    def __init__(self, text: str):
        self.functions: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if match := FUNCTION_PATTERN.match(line):
                current = self.functions[match[2]] = []
                if match[1]:
                    self.entry = match[2]
            elif match := INSTRUCTION_PATTERN.match(line):
                current.append(Instruction(*match.groups()))
            elif line == "}":
                current = []
            elif current:
                # Pallas writes line breaks into the attributes of kernels and of copies of their
                # results.
                current[-1] = current[-1]._replace(rest=current[-1].rest + line)

    def walk(self) -> Iterator[tuple[Instruction, int, str, bool]]:
        """Yields (instruction, times executed, its function, whether it is asynchronous), including
        those within fusions.
        """
        return self._walk(self.entry, 1, False)

    def _walk(self, function: str, times: int, is_async: bool):
        for instruction in self.functions[function]:
            yield instruction, times, function, is_async
            if instruction.op == "while":
                yield from self._walk(
                    instruction.callees("body")[0], times * self.trip_count(instruction), is_async
                )
            # All branches of a conditional are counted, which overestimates.
            elif instruction.op in ("call", "fusion", "conditional", "async-start"):
                for inner in instruction.callees(
                    "to_apply",
                    "calls",
                    "branch_computations",
                    "true_computation",
                    "false_computation",
                ):
                    yield from self._walk(inner, times, is_async or instruction.op == "async-start")

    def trip_count(self, loop: Instruction) -> int:
        """Trip count of a loop. Its condition compares a counter with a constant; libtpu may step
        by more than one.
        """
        if annotation := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(annotation[1])
        condition, body = loop.callees("condition")[0], loop.callees("body")[0]
        condition_instructions = {
            instruction.name: instruction for instruction in self.functions[condition]
        }
        root = self.functions[condition][-1]
        if root.op == "and":  # a bound, and something that may end the loop before it
            both = [condition_instructions[name] for name in root.operands]
            root = next(one for one in both if one.op == "compare")
        operands = root.operands
        bounds = [
            n
            for name in operands
            if (n := self._constant_value(condition_instructions[name])) is not None
        ]
        counters = [
            int(m[1])
            for name in operands
            if (m := re.search(r"index=(\d+)", condition_instructions[name].rest))
            and condition_instructions[name].op == "get-tuple-element"
        ]
        assert len(bounds) == len(counters) == 1, f"cannot count the loop {loop.name}"
        body_instructions = {instruction.name: instruction for instruction in self.functions[body]}
        step = 1
        update = body_instructions[self.functions[body][-1].operands[counters[0]]]
        while update.op in ("copy", "bitcast", "copy-done", "copy-start"):
            update = body_instructions[update.operands[0]]
        if update.op == "add":
            step = next(
                n
                for name in update.operands
                if (n := self._constant_value(body_instructions[name])) is not None
            )
        return -(-bounds[0] // step)

    @staticmethod
    def _constant_value(instruction: Instruction) -> int | None:
        return (
            int(instruction.rest.split(")")[0])
            if instruction.op == "constant" and instruction.rest.split(")")[0].isdigit()
            else None
        )

    def cycles(self, name: str = "") -> int:
        """Sum of libtpu's cycle estimates of instructions with `name` in their name: those with
        COMPILER_REMAT it repeats for lack of memory. A fusion's estimate includes those within it.
        """
        total, fused_functions = 0, self._fused_functions()
        for instruction, times, function, _ in self.walk():
            match = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
            if match and name in instruction.name and function not in fused_functions:
                total += times * int(match[1])
        return total

    def _fused_functions(self) -> set[str]:
        fusions = [
            instruction
            for body in self.functions.values()
            for instruction in body
            if instruction.op == "fusion"
        ]
        return {inner for fusion in fusions for inner in fusion.callees("calls")}

    def bytes_accessed(self) -> float:
        """Bytes read and written by instructions; for fusions, by their inputs and outputs. A loop
        over n layers is taken to access one of n slices of a stacked array.
        """
        total, fused_functions, trip_counts = 0.0, self._fused_functions(), {self.entry: 1}
        types = {
            function: {instruction.name: instruction.type for instruction in body}
            for function, body in self.functions.items()
        }
        for instruction, times, function, _ in self.walk():
            if instruction.op == "while":
                trip_counts[instruction.callees("body")[0]] = self.trip_count(instruction)
            if function in fused_functions or instruction.op in FREE_OPS:
                continue
            for type_ in (
                instruction.type,
                *(
                    types[function][name]
                    for name in instruction.operands
                    if name in types[function]
                ),
            ):
                for dtype, dims in ARRAY_PATTERN.findall(type_):
                    sizes = [int(n) for n in dims.split(",") if n]
                    n = trip_counts.get(function, 1)
                    is_stacked = n > 1 and len(sizes) > 1 and sizes[0] == n
                    total += (
                        times
                        * DTYPE_BYTES.get(dtype, 0)
                        * math.prod(sizes)
                        / (n if is_stacked else 1)
                    )
        return total

    def kernel_counts(self) -> dict[str, int]:
        """Pallas and library kernels: name -> times executed."""
        counts: dict[str, int] = collections.Counter()
        for instruction, times, _, _ in self.walk():
            target = (
                re.search(r'custom_call_target="([^"]*)"', instruction.rest)
                if instruction.op == "custom-call"
                else None
            )
            if target and target[1] == "tpu_custom_call":
                counts[re.sub(r"[.\d]+$", "", instruction.name)] += times
            elif target and target[1].startswith("__"):
                counts[target[1]] += times
        return dict(counts)

    def grouped_matmul_flops(self) -> float:
        """FLOPs of the TPU kernels of `grouped_matmul` and of its gradient: of two matrices and E
        of the third size, one of them the result.
        """
        flops = 0.0
        for instruction, times, _, _ in self.walk():
            if instruction.op == "custom-call" and GROUPED_PATTERN.match(instruction.name):
                inputs = instruction.rest.split("operand_layout_constraints={")[1].split("}}")[0]
                arrays = [sizes for _, sizes in _parse_arrays(instruction.type + inputs)]
                matrices = [sizes for sizes in arrays if len(sizes) > 1]
                n_groups = next(sizes[0] for sizes in matrices if len(sizes) == 3)
                # RK x EKN x RN = E (RKN)^2
                product = math.prod(math.prod(sizes) for sizes in matrices) // n_groups
                flops += times * 2 * math.isqrt(product)
        return flops

    def collectives(self) -> list[Collective]:
        """All collectives except those within groups of one device, which send nothing. libtpu
        writes a reduce-scatter as an all-reduce in its own function, with the whole input as its
        result; and a collective that it fuses with what hides it several times: where it starts, in
        one fusion or more, and where it ends, with the same chain_id.
        """
        collectives, chains = [], set()
        for instruction, times, function, is_async in self.walk():
            kind, type_ = instruction.op.removesuffix("-start"), instruction.type
            if transfer := re.search(
                r'_xla_megascale_transfer_type="(\w+)"',
                instruction.rest if instruction.op == "send" else "",
            ):
                kind = transfer[1].lower().replace("_", "-")
                # (array, ...): the array that leaves the slice.
                shapes = _parse_arrays(_tuple_element(type_, 0))
                bytes_sent = sum(DTYPE_BYTES[dtype] * math.prod(sizes) for dtype, sizes in shapes)
                collectives.append(
                    Collective(
                        kind=kind,
                        shapes=shapes,
                        group=(),
                        times=times,
                        bytes_sent=bytes_sent,
                        asynchronous=True,
                        op_name=instruction.op_name,
                    )
                )
            if transfer or kind not in COLLECTIVE_KINDS:
                continue
            if len(group := _first_group(instruction.rest)) == 1:
                continue
            if chain := re.search(r"channel_id=(\d+).*chain_id=\"(\d+)\"", instruction.rest):
                if (part := (*chain.groups(), times)) in chains:
                    continue
                chains.add(part)
            # (operands, results, ...)
            if instruction.op.endswith("-start") and kind != "all-reduce":
                type_ = _tuple_element(type_, 1)
            shapes = _parse_arrays(type_)
            n_others = len(group) - 1
            size = sum(DTYPE_BYTES[dtype] * math.prod(sizes) for dtype, sizes in shapes)
            # The printed shape is the result's: a shard for reduce-scatter, unless that is written
            # as an all-reduce.
            bytes_sent = {
                "collective-permute": size,
                "all-reduce": 2 * size * n_others / len(group),
                "reduce-scatter": size * n_others,
            }
            n_bytes = bytes_sent.get(kind, size * n_others / len(group))
            if "all-reduce-scatter" in function:
                kind, n_bytes = "reduce-scatter", size * n_others / len(group)
            collectives.append(
                Collective(
                    kind=kind,
                    shapes=shapes,
                    group=group,
                    times=times,
                    bytes_sent=n_bytes,
                    asynchronous=is_async or instruction.op.endswith("-start") or chain is not None,
                    op_name=instruction.op_name,
                )
            )
        return collectives


def _parse_arrays(type_: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Dtype and sizes of each array of a type."""
    return tuple(
        (dtype, tuple(int(n) for n in dims.split(",") if n))
        for dtype, dims in ARRAY_PATTERN.findall(type_)
        if dtype in DTYPE_BYTES
    )


def _tuple_element(type_: str, number: int) -> str:
    """One element of a tuple type."""
    depth, parts = 0, [""]
    for c in type_[1:-1]:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts[number]


def _first_group(rest: str) -> tuple[int, ...]:
    """The first of the device groups, in any of XLA's notations: {{0,1},{2,3}}, [2,2]<=[4],
    [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'}.
    """
    if match := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        pairs = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", match[1])}
        cycle = [min(pairs)]
        while pairs.get(cycle[-1], cycle[0]) not in cycle:
            cycle.append(pairs[cycle[-1]])
        return tuple(cycle)
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, match[1].split(",")))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        ids = np.arange(int(match[1]) * int(match[2])).reshape(
            [int(n) for n in match[3].split(",")]
        )
        ids = ids.transpose([int(n) for n in match[4].split(",")]) if match[4] else ids
        return tuple(ids.reshape(int(match[1]), -1)[0].tolist())
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        index: list = [0] * len(sizes)
        for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[2]):
            n = sizes[name]  # 'a':(2)4 is the second factor of n split into 2, 4 and the rest
            stride = n // (int(before) * int(part)) if part else 1
            index[list(sizes).index(name)] = [i * stride for i in range(int(part) if part else n)]
        return tuple(
            int(i) for i in ids[np.ix_(*[i if isinstance(i, list) else [i] for i in index])].ravel()
        )
    raise AssertionError(f"cannot read the devices of {rest[:200]}")
