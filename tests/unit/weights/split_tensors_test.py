"""gpt-oss's experts are read in parts as they would be whole, from floats and from MXFP4."""

from pathlib import Path

import numpy as np
import pytest

from gptjax.weights import split_tensors

LAYER = "model.layers.0.mlp.experts."


class Stored:
    """Tensors in memory."""

    path = Path("folder")

    def __init__(self, **arrays):
        self.arrays = {LAYER + name: array for name, array in arrays.items()}
        self.shapes = {name: array.shape for name, array in self.arrays.items()}

    def read(self, name, part):
        assert all(s.step is None for s in part)  # safetensors reads no steps
        return self.arrays[name][part].astype(np.float32)


def mxfp4(*shape):
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (*shape, 16), dtype=np.uint8)
    return blocks, draw.integers(110, 135, shape, dtype=np.uint8)


def decoded(blocks, scales):
    """One number at a time: sign, two bits of exponent, one of mantissa; low nibble first."""
    values = np.zeros((*scales.shape, 32))
    for where in np.ndindex(*values.shape):
        code = int(blocks[(*where[:-1], where[-1] // 2)]) >> 4 * (where[-1] % 2) & 15
        exponent, mantissa = code >> 1 & 3, code & 1
        value = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
        values[where] = (-1) ** (code >> 3) * value * 2.0 ** (int(scales[where[:-1]]) - 127)
    return values.reshape(*scales.shape[:2], -1).swapaxes(1, 2)


def whole(shape):
    return tuple(slice(0, n) for n in shape)


PARTS = [(slice(0, 3), slice(0, 64), slice(0, 5)), (slice(1, 2), slice(17, 49), slice(2, 4))]


@pytest.mark.parametrize("part", PARTS, ids=["whole", "part"])
def test_released_weights_in_mxfp4(part):
    blocks, scales = mxfp4(3, 10, 2)
    expected = decoded(blocks, scales)
    stored = Stored(gate_up_proj_blocks=blocks, gate_up_proj_scales=scales)
    tensors = split_tensors.SplitExperts(stored)
    assert tensors.shapes == {f"{LAYER}{x}_proj": (3, 64, 5) for x in ("gate", "up")}
    for first, name in enumerate(("gate", "up")):
        y = tensors.read(f"{LAYER}{name}_proj", part)
        np.testing.assert_array_equal(y, expected[..., first::2][part])
    down = split_tensors.SplitExperts(Stored(down_proj_blocks=blocks, down_proj_scales=scales))
    part = (*part[:2], slice(3, 9))
    np.testing.assert_array_equal(down.read(f"{LAYER}down_proj", part), expected[part])


def test_mxfp4_is_read_as_transformers_reads_it():
    torch = pytest.importorskip("torch", reason="needs torch: requirements-dev.txt")
    pytest.importorskip("transformers", reason="needs transformers: requirements-dev.txt")
    from transformers.integrations import mxfp4 as theirs

    blocks, scales = mxfp4(3, 10, 2)
    expected = theirs.convert_moe_packed_tensors(
        torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32
    )
    down = split_tensors.SplitExperts(Stored(down_proj_blocks=blocks, down_proj_scales=scales))
    y = down.read(f"{LAYER}down_proj", whole((3, 64, 10)))
    np.testing.assert_array_equal(y, expected.numpy())


@pytest.mark.parametrize(
    "name, shape", [("gate_up_proj", (3, 4, 10)), ("gate_up_proj_bias", (3, 10))]
)
def test_floats_are_split_and_joined_again(name, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tensors = split_tensors.SplitExperts(Stored(**{name: array}))
    parts = []
    for part_name, part_shape in tensors.shapes.items():
        read = tensors.read(part_name, whole(part_shape))
        parts.append((part_name, part_shape, lambda read=read: read))
        cut = (*whole(part_shape)[:-1], slice(1, 4))
        np.testing.assert_array_equal(tensors.read(part_name, cut), read[..., 1:4])
    np.testing.assert_array_equal(parts[1][2](), array[..., 1::2])
    ((joined, joined_shape, make),) = split_tensors.join("gpt_oss", parts)
    assert (joined, joined_shape) == (LAYER + name, shape)
    np.testing.assert_array_equal(make(), array)


def test_blocks_and_scales_must_belong_together():
    blocks, scales = mxfp4(3, 10, 2)
    with pytest.raises(ValueError, match=r"MXFP4 has blocks of 16 bytes and a scale for each"):
        split_tensors.SplitExperts(Stored(down_proj_blocks=blocks, down_proj_scales=scales[:2]))
