"""Where the numbers of a leaf lie in another's tensor: by the code that reads these, not by our
own table."""

import dataclasses

import numpy as np
import pytest
import safetensors.numpy

from gptjax.config import schema
from gptjax.weights import name_maps
from gptjax.weights import safetensors as readers
from tests.unit.weights import load_test as tools

N, H, D = 4, 4, 16  # heads, their width, d_model


def stored(kind, layout, leaf):
    """The tensor of layer 0 that holds our leaf, in which number i stands in the leaf's place i."""
    c = tools.config(kind).model
    (place,) = [
        p
        for p in name_maps.tensor_slots(
            layout, dataclasses.replace(c, n_layers=1, attention=c.attention[:1])
        )
        if p.leaf.endswith(leaf)
    ]
    shape = {"weight_DQNH": (D, 3, N, H), "bias_QNH": (3, N, H), "weight_DNH": (D, N, H)}[
        leaf.split("/")[-1]
    ]
    ours = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return ours[0], name_maps.to_stored(layout, c, place, ours)


@pytest.mark.parametrize(
    "kind, layout",
    [
        ("gpt2", name_maps.OPENAI_GPT2),
        ("openai-gpt", name_maps.OPENAI_GPT1),
        ("gpt2", name_maps.GPT2),
    ],
)
def test_queries_keys_and_values_are_split_first_and_then_their_heads(kind, layout):
    """GPT-2's src/model.py: tf.split(conv1d(x, 'c_attn', n_state * 3), 3, axis=2), then
    split_heads; merge_heads before c_proj."""
    w_DQNH, c_attn = stored(kind, layout, "qkv/weight_DQNH")
    for q, part in enumerate(np.split(c_attn.reshape(D, 3 * D), 3, axis=1)):
        np.testing.assert_array_equal(part.reshape(D, N, H), w_DQNH[:, q])
    b_QNH, bias = stored(kind, layout, "qkv/bias_QNH")
    np.testing.assert_array_equal([part.reshape(N, H) for part in np.split(bias, 3)], b_QNH)
    w_DNH, c_proj = stored(kind, layout, "out/weight_DNH")
    np.testing.assert_array_equal(c_proj.reshape(N, H, D), w_DNH.transpose(1, 2, 0))


def test_layers_follow_each_other_through_the_periods():
    model = dataclasses.replace(
        tools.config("gpt2").model, n_layers=6, attention=(schema.Dense(), schema.Banded(window=3))
    )
    found = {
        p.name.split(".")[1]: (p.period, p.leaf.split("/")[1])
        for p in name_maps.tensor_slots(name_maps.GPT2, model)
        if p.period is not None
    }
    assert found == {str(n): (n // 2, f"block_{n % 2}") for n in range(6)}


class Stored:
    """Tensors of ones with these shapes."""

    path = "x"

    def __init__(self, shapes):
        self.shapes = shapes

    def read(self, name, part):
        return np.ones(self.shapes[name], np.float32)[part]


def test_both_tables_may_have_more_rows_than_the_model_has_ids():
    """As Phi-3's, whose tokenizer has fewer ids: rows beyond them are left out of both."""
    model = dataclasses.replace(
        tools.config("gpt2").model,
        positions=(schema.Rotary(),),
        norm_type=schema.RMSNorm(),
        mlp=schema.SwiGLU(d_ff=24),
        biases="none",
        tied_output=False,
    )
    layout = name_maps.family_layout(model)
    sizes = name_maps.letter_sizes(model)
    shapes = {slot.name: slot.shape(sizes) for slot in name_maps.tensor_slots(layout, model)}
    tables = {
        name: (model.n_vocab + 3, D) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    tensors = Stored(shapes | tables)
    name_maps.check(tensors, layout, model)
    rows = slice(0, model.n_vocab_padded), slice(0, D)
    table_VD = name_maps.read_part(tensors, layout, model, "output_VD", rows)
    assert table_VD.sum() == model.n_vocab * D
    tensors.shapes["lm_head.weight"] = (model.n_vocab - 1, D)
    with pytest.raises(ValueError, match="the tensor lm_head.weight is"):
        name_maps.check(tensors, layout, model)


def test_frequencies_saved_by_earlier_versions_of_transformers_are_no_weights(tmp_path):
    names = ["model.norm.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
    arrays = {name: np.ones(4, np.float32) for name in names}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    assert [*readers.SafetensorsReader(tmp_path).shapes] == names[:1]
