"""What a compiled program does, read from its text: which instructions run how often, their cycles, and what goes between devices.

XLA's own cost analysis counts the body of a loop once, and neither kernels nor what is sent. libtpu writes an estimate of cycles beside
each fusion and copy; kernels and collectives carry none.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

WIDTH = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1, "s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
NOTHING = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
FUNCTION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    name: str
    type: str
    op: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    @property
    def where(self) -> str:
        """Where in the source it comes from: its op_name."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, *attributes: str) -> list[str]:
        """Functions named by these attributes."""
        found = re.findall(rf"\b(?:{'|'.join(attributes)})=(?:%?([\w.\-]+)|\{{([^}}]*)\}})", self.rest)
        return [name.strip().lstrip("%") for one, many in found for name in (one or many).split(",")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One instruction that sends. Devices are numbered as in the mesh, flattened."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # type and sizes of each array of the result on one device, as printed
    group: tuple[int, ...]  # the first group of devices that exchange; of a permute, the first cycle; empty between slices of TPUs
    times: int
    sent: float  # bytes that one device sends each time, by a ring: of the whole array all but its own part once, for an all-reduce twice
    asynchronous: bool  # others may run while it does
    where: str


class Program:
    """The functions of a compiled program, from jax.stages.Compiled.as_text()."""

    def __init__(self, text: str):
        self.functions: dict[str, list[Instruction]] = {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if match := FUNCTION.match(line):
                current = self.functions[match[2]] = []
                if match[1]:
                    self.entry = match[2]
            elif match := LINE.match(line):
                current.append(Instruction(*match.groups()))
            elif line == "}":
                current = []
            elif current:  # Pallas writes line breaks into the attributes of a kernel and of what copies its result
                current[-1] = current[-1]._replace(rest=current[-1].rest + line)

    def runs(self) -> Iterator[tuple[Instruction, int, str, bool]]:
        """(instruction, how often it runs, its function, whether it was started and others run meanwhile), those within fusions too."""
        return self._within(self.entry, 1, False)

    def _within(self, function: str, times: int, started: bool):
        for one in self.functions[function]:
            yield one, times, function, started
            if one.op == "while":
                yield from self._within(one.called("body")[0], times * self.trips(one), started)
            elif one.op in ("call", "fusion", "conditional", "async-start"):  # of a conditional, all branches: too much, if at all
                for inner in one.called("to_apply", "calls", "branch_computations", "true_computation", "false_computation"):
                    yield from self._within(inner, times, started or one.op == "async-start")

    def trips(self, loop: Instruction) -> int:
        """How often a loop runs. Its condition compares a counter with a constant; libtpu may step by more than one."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        condition, body = loop.called("condition")[0], loop.called("body")[0]
        here = {one.name: one for one in self.functions[condition]}
        compared = self.functions[condition][-1].operands
        bounds = [n for name in compared if (n := self._constant(here[name])) is not None]
        counters = [
            int(m[1]) for name in compared if (m := re.search(r"index=(\d+)", here[name].rest)) and here[name].op == "get-tuple-element"
        ]
        assert len(bounds) == len(counters) == 1, f"cannot count the loop {loop.name}"
        inside = {one.name: one for one in self.functions[body]}
        step = 1
        after = inside[self.functions[body][-1].operands[counters[0]]]
        while after.op in ("copy", "bitcast", "copy-done", "copy-start"):
            after = inside[after.operands[0]]
        if after.op == "add":
            step = next(n for name in after.operands if (n := self._constant(inside[name])) is not None)
        return -(-bounds[0] // step)

    @staticmethod
    def _constant(one: Instruction) -> int | None:
        return int(one.rest.split(")")[0]) if one.op == "constant" and one.rest.split(")")[0].isdigit() else None

    def cycles(self) -> int:
        """libtpu's estimates, summed. Fusions carry the estimate of all that is within."""
        total = 0
        fused = self._fused()
        for one, times, function, _ in self.runs():
            if function not in fused and (found := re.search(r'"estimated_cycles":"(\d+)"', one.rest)):
                total += times * int(found[1])
        return total

    def _fused(self) -> set[str]:
        return {inner for body in self.functions.values() for one in body if one.op == "fusion" for inner in one.called("calls")}

    def moved(self) -> float:
        """Bytes that instructions read and write, of fusions what goes in and out. In a loop over n layers, of an array of n slices one."""
        total, fused, turns = 0.0, self._fused(), {self.entry: 1}
        types = {function: {one.name: one.type for one in body} for function, body in self.functions.items()}
        for one, times, function, _ in self.runs():
            if one.op == "while":
                turns[one.called("body")[0]] = self.trips(one)
            if function in fused or one.op in NOTHING:
                continue
            for type_ in (one.type, *(types[function][name] for name in one.operands if name in types[function])):
                for dtype, dims in ARRAY.findall(type_):
                    sizes = [int(n) for n in dims.split(",") if n]
                    n = turns.get(function, 1)
                    stacked = n > 1 and len(sizes) > 1 and sizes[0] == n
                    total += times * WIDTH.get(dtype, 0) * math.prod(sizes) / (n if stacked else 1)
        return total

    def kernels(self) -> dict[str, int]:
        """Pallas and library kernels: name -> how often each runs."""
        found: dict[str, int] = collections.Counter()
        for one, times, _, _ in self.runs():
            target = re.search(r'custom_call_target="([^"]*)"', one.rest) if one.op == "custom-call" else None
            if target and target[1] == "tpu_custom_call":
                found[re.sub(r"[.\d]+$", "", one.name)] += times
            elif target and target[1].startswith("__"):
                found[target[1]] += times
        return dict(found)

    def collectives(self) -> list[Collective]:
        """All but those among groups of one device, which send nothing. libtpu writes a reduce-scatter as an all-reduce in a function of
        its own, with the whole input as its result."""
        found = []
        for one, times, function, started in self.runs():
            kind, type_ = one.op.removesuffix("-start"), one.type
            if between := re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest if one.op == "send" else ""):
                kind, shapes = between[1].lower().replace("_", "-"), _arrays(_part(type_, 0))  # (array, ...): what leaves the slice
                sent = sum(WIDTH[dtype] * math.prod(sizes) for dtype, sizes in shapes)
                found.append(Collective(kind=kind, shapes=shapes, group=(), times=times, sent=sent, asynchronous=True, where=one.where))
            if between or kind not in KINDS or len(group := _group(one.rest)) == 1:
                continue
            if one.op.endswith("-start") and kind != "all-reduce":  # (operands, results, ...)
                type_ = _part(type_, 1)
            shapes = _arrays(type_)
            others, size = len(group) - 1, sum(WIDTH[dtype] * math.prod(sizes) for dtype, sizes in shapes)
            # What is printed is the result: of a reduce-scatter a part, unless it is written as an all-reduce.
            sent = {"collective-permute": size, "all-reduce": 2 * size * others / len(group), "reduce-scatter": size * others}
            n_bytes = sent.get(kind, size * others / len(group))
            if "all-reduce-scatter" in function:
                kind, n_bytes = "reduce-scatter", size * others / len(group)
            asynchronous = started or one.op.endswith("-start")
            found.append(
                Collective(kind=kind, shapes=shapes, group=group, times=times, sent=n_bytes, asynchronous=asynchronous, where=one.where)
            )
        return found


def _arrays(type_: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Type and sizes of each array of a type."""
    return tuple((dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in ARRAY.findall(type_) if dtype in WIDTH)


def _part(type_: str, number: int) -> str:
    """One part of a tuple type."""
    depth, parts = 0, [""]
    for c in type_[1:-1]:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts[number]


def _group(rest: str) -> tuple[int, ...]:
    """The first of the groups, in XLA's ways to write them: {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'}."""
    if match := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        pairs = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", match[1])}
        cycle = [min(pairs)]
        while pairs.get(cycle[-1], cycle[0]) not in cycle:
            cycle.append(pairs[cycle[-1]])
        return tuple(cycle)
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(map(int, match[1].split(",")))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        ids = np.arange(int(match[1]) * int(match[2])).reshape([int(n) for n in match[3].split(",")])
        ids = ids.transpose([int(n) for n in match[4].split(",")]) if match[4] else ids
        return tuple(ids.reshape(int(match[1]), -1)[0].tolist())
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        index: list = [0] * len(sizes)
        for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", match[2]):
            n = sizes[name]  # 'a':(2)4 is the middle one of a split into 2, 4 and the rest
            stride = n // (int(before) * int(part)) if part else 1
            index[list(sizes).index(name)] = [i * stride for i in range(int(part) if part else n)]
        return tuple(int(i) for i in ids[np.ix_(*[i if isinstance(i, list) else [i] for i in index])].ravel())
    raise AssertionError(f"cannot read the devices of {rest[:200]}")
