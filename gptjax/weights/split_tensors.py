"""Tensors that Hugging Face stores joined, read as their parts and joined again: Phi-3's
projections and gpt-oss's experts."""

from collections.abc import Callable

import numpy as np

from gptjax.config import schema
from gptjax.weights.safetensors import MXFP4_SUFFIXES, Tensors

LazyTensor = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]  # name, shape, how it is made

# Phi-3: a stored tensor -> those that it joins along its first dimension, in this order.
PHI3_PARTS = {
    "self_attn.qkv_proj.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj.weight": ("mlp.gate_proj", "mlp.up_proj"),
}


class SplitTensors:
    """Tensors of Phi-3 as if its joined tensors were stored as the parts that Llama has."""

    def __init__(self, tensors: Tensors, model: schema.Model):
        self.path, self._tensors = tensors.path, tensors
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._parts: dict[str, tuple[str, int]] = {}  # name -> the stored tensor, its first row
        rows = {
            "q_proj": model.n_heads * model.d_head,
            "k_proj": model.n_kv_heads * model.d_head,
            "v_proj": model.n_kv_heads * model.d_head,
            "gate_proj": model.d_ff,
            "up_proj": model.d_ff,
        }
        for name, shape in tensors.shapes.items():
            layer, parts = name, None
            for joined, names in PHI3_PARTS.items():
                if name.endswith(joined):
                    layer, parts = name.removesuffix(joined), names
            if parts is None:
                self.shapes[name] = shape
                continue
            sizes = [rows[part.rpartition(".")[2]] for part in parts]
            if shape[0] != sum(sizes):
                raise ValueError(
                    f"{self.path}: the tensor {name} has {shape[0]} rows, expected {sum(sizes)}"
                )
            first = 0
            for part, size in zip(parts, sizes, strict=True):
                full = f"{layer}{part}.weight"
                self.shapes[full], self._parts[full] = (size, *shape[1:]), (name, first)
                first += size

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """As Tensors.read."""
        if name not in self._parts:
            return self._tensors.read(name, part)
        stored, first = self._parts[name]
        rows = part[0]
        return self._tensors.read(stored, (slice(first + rows.start, first + rows.stop), *part[1:]))


def join_tensors(tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Inverse of `SplitTensors`: Phi-3's joined tensors in place of their parts."""
    by_name = {name: (shape, make) for name, shape, make in tensors}
    joined: list[LazyTensor] = []
    for name, shape, make in tensors:
        whole = next(
            (whole for whole, parts in PHI3_PARTS.items() if f"{parts[0]}.weight" in name), None
        )
        if whole is None:
            if not any(f"{p}.weight" in name for parts in PHI3_PARTS.values() for p in parts):
                joined.append((name, shape, make))
            continue
        layer = name.removesuffix(f"{PHI3_PARTS[whole][0]}.weight")
        parts = [by_name[f"{layer}{part}.weight"] for part in PHI3_PARTS[whole]]
        rows = sum(part_shape[0] for part_shape, _ in parts)

        def make_whole(parts=parts):
            return np.concatenate([make_part() for _, make_part in parts])

        joined.append((f"{layer}{whole}", (rows, *shape[1:]), make_whole))
    return joined


# --- gpt-oss --------------------------------------------------------------------------------------

EXPERTS = "mlp.experts."
BOTH = f"{EXPERTS}gate_up_proj"  # (E, D, 2 G): gate and up alternate along the last dimension
BLOCKS, SCALES = MXFP4_SUFFIXES
# The 16 values of a 4-bit float with 2 bits of exponent (OCP Microscaling Formats 1.0, section
# 5.3.3), in the order of their codes.
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class SplitExperts:
    """Tensors of gpt-oss as if gate and up, whose columns alternate, were stored apart; weights in
    MXFP4, as released, as if they were floats."""

    def __init__(self, tensors: Tensors):
        self.path, self._tensors = tensors.path, tensors
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in tensors.shapes.items():
            if name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in tensors.shapes:
                continue
            if name.endswith(BLOCKS):
                name, shape = name.removesuffix(BLOCKS), self._check_blocks(name, shape)
            if BOTH not in name:
                self.shapes[name] = shape
                continue
            for part in ("gate", "up"):
                self.shapes[name.replace("gate_up", part)] = (*shape[:-1], shape[-1] // 2)

    def _check_blocks(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape (E, in, out) of a weight whose blocks are (E, out, in / 32, 16)."""
        scales = name.removesuffix(BLOCKS) + SCALES
        if len(shape) != 4 or shape[3] != 16 or self._tensors.shapes.get(scales) != shape[:3]:
            raise ValueError(
                f"{self.path}: the tensor {name} is {list(shape)} and {scales} "
                f"{list(self._tensors.shapes.get(scales, ()))}; MXFP4 has blocks of 16 bytes and a "
                "scale for each"
            )
        return shape[0], shape[2] * 32, shape[1]

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """As Tensors.read."""
        stored, last = name, part[-1]
        for first, half in enumerate(("gate", "up")):
            if f"{EXPERTS}{half}_proj" in name:
                stored = name.replace(f"{half}_proj", "gate_up_proj")
                last = slice(2 * last.start + first, 2 * last.stop, 2)
        part = (*part[:-1], last)
        if stored in self._tensors.shapes:
            # safetensors reads no steps.
            whole = (*part[:-1], slice(last.start, last.stop))
            return self._tensors.read(stored, whole)[..., :: last.step]
        return self._read_blocks(stored, part)

    def _read_blocks(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """A part of a weight (E, in, out) that is stored in MXFP4."""
        experts, rows, columns = part
        outputs = slice(columns.start, columns.stop)
        blocks = slice(rows.start // 32, -(-rows.stop // 32))
        codes = self._tensors.read(name + BLOCKS, (experts, outputs, blocks, slice(0, 16))).astype(
            np.uint8
        )
        exponents = self._tensors.read(name + SCALES, (experts, outputs, blocks)) - 127
        values = FP4[np.stack([codes & 15, codes >> 4], axis=-1)].reshape(*codes.shape[:3], 32)
        values = np.ldexp(values, exponents[..., None].astype(np.int32))
        values = values.reshape(*values.shape[:2], -1).swapaxes(1, 2)
        return values[:, rows.start - 32 * blocks.start :][
            :, : rows.stop - rows.start, :: columns.step
        ]


def join_experts(tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Inverse of `SplitExperts`: gate and up as one tensor, in float32."""
    by_name = {name: make for name, _, make in tensors}
    joined: list[LazyTensor] = []
    for name, shape, make in tensors:
        if f"{EXPERTS}up_proj" in name:
            continue
        if f"{EXPERTS}gate_proj" not in name:
            joined.append((name, shape, make))
            continue
        make_up = by_name[name.replace("gate_proj", "up_proj")]

        def make_both(make=make, make_up=make_up):
            both = np.stack([make(), make_up()], axis=-1)
            return both.reshape(*both.shape[:-2], -1)

        both = name.replace("gate_proj", "gate_up_proj")
        joined.append((both, (*shape[:-1], 2 * shape[-1]), make_both))
    return joined


def split(model_type: str, tensors: Tensors, model: schema.Model) -> Tensors:
    """The tensors of an architecture by the names of name_maps.family_layout."""
    match model_type:
        case "phi3":
            return SplitTensors(tensors, model)
        case "gpt_oss":
            return SplitExperts(tensors)
    return tensors


def join(model_type: str, tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Inverse of `split`, on tensors that are to be written."""
    match model_type:
        case "phi3":
            return join_tensors(tensors)
        case "gpt_oss":
            return join_experts(tensors)
    return tensors
