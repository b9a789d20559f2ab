"""What a compiled program sends between devices, read from its HLO."""

import math
import re
from typing import NamedTuple

import jax

WIDTH = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
KINDS = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"


class Collective(NamedTuple):
    """One instruction of the program, whether or not it lies in a loop. n_bytes: of its result on one device."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # type and sizes of each array of the result
    where: str  # its op_name

    @property
    def n_bytes(self) -> int:
        return sum(WIDTH[dtype] * math.prod(sizes) for dtype, sizes in self.shapes)


def collectives(compiled: jax.stages.Compiled) -> list[Collective]:
    """All of the program's, but for those among groups of one device, which send nothing. libtpu writes a reduce-scatter as an all-reduce
    in a function of its own, with the whole input as its result."""
    found, function = [], ""
    for line in compiled.as_text().splitlines():
        function = line if line.endswith("{") else function
        match = re.search(rf"= (.*?) ({KINDS})(?:-start)?\(", line)
        if match and _group(line) != 1:
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
            name = re.search(r'op_name="([^"]*)"', line)
            sizes = tuple((dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in shapes)
            kind = "reduce-scatter" if "all-reduce-scatter" in function else match[2]
            found.append(Collective(kind, sizes, name[1] if name else ""))
    return found


def _group(line: str) -> int:
    """Devices of a group, in XLA's three ways to write it: {{0,1},{2,3}}, [2,2]<=[4], mesh['a'=2,'b'=2] {'b'}. 0 where there are none."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", match[1])}
        return math.prod(int(part) if part else sizes[name] for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match[2]))
    return 0
