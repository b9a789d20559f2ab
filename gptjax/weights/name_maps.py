"""Name maps: where each parameter is stored in another project's files, as one table per format
that is used in both directions.

A table maps a leaf, of the GPT or of a block, to "NAME DIMS". In NAME, {} is the layer number, and
* stands for q, k and v where these are three tensors. DIMS are the stored dimensions in the letters
of sharding/shapes.py, separated by commas: "D,QNH" is a matrix whose columns are query, key and
value, each by heads; "1" is a dimension of size 1. A leaf that a table lacks is zero on the other
side.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gptjax.config import schema
from gptjax.sharding import shapes
from gptjax.weights.safetensors import Tensors


@dataclasses.dataclass(frozen=True)
class Layout:
    """A format's name map. leaves: of the GPT. block: of each layer. unscaled_attention: scores are
    not divided by sqrt(d_head), so our queries are the stored ones times that (exact if d_head is a
    power of 4).
    """

    leaves: dict[str, str]
    block: dict[str, str]
    unscaled_attention: bool = False


_BLOCK = {
    "norm_1/gain_D": "h.{}.ln_1.weight D",
    "norm_1/bias_D": "h.{}.ln_1.bias D",
    "attention/qkv/weight_DQNH": "h.{}.attn.c_attn.weight D,QNH",
    "attention/qkv/bias_QNH": "h.{}.attn.c_attn.bias QNH",
    "attention/out/weight_DNH": "h.{}.attn.c_proj.weight NH,D",
    "attention/out/bias_D": "h.{}.attn.c_proj.bias D",
    "norm_2/gain_D": "h.{}.ln_2.weight D",
    "norm_2/bias_D": "h.{}.ln_2.bias D",
    "mlp/up/weight_DF": "h.{}.mlp.c_fc.weight D,F",
    "mlp/up/bias_F": "h.{}.mlp.c_fc.bias F",
    "mlp/down/weight_DF": "h.{}.mlp.c_proj.weight F,D",
    "mlp/down/bias_D": "h.{}.mlp.c_proj.bias D",
}
_EMBEDDINGS = {"token_VD": "wte.weight V,D", "position_TD": "wpe.weight T,D"}
_LAST_NORM = {"norm/gain_D": "ln_f.weight D", "norm/bias_D": "ln_f.bias D"}

GPT1 = Layout(
    {"token_VD": "tokens_embed.weight V,D", "position_TD": "positions_embed.weight T,D"}, _BLOCK
)
GPT2 = Layout(_EMBEDDINGS | _LAST_NORM, _BLOCK)
_NEO = {
    "attention/qkv/weight_DQNH": "h.{}.attn.attention.*_proj.weight NH,D",
    "attention/out/weight_DNH": "h.{}.attn.attention.out_proj.weight D,NH",
    "attention/out/bias_D": "h.{}.attn.attention.out_proj.bias D",
    # torch's Linear stores (out, in), Conv1D above (in, out).
    "mlp/up/weight_DF": "h.{}.mlp.c_fc.weight F,D",
    "mlp/down/weight_DF": "h.{}.mlp.c_proj.weight D,F",
}
NEO = Layout(
    GPT2.leaves,
    {leaf: where for leaf, where in (_BLOCK | _NEO).items() if leaf != "attention/qkv/bias_QNH"},
    unscaled_attention=True,
)
# OpenAI's own, as src/model.py of GPT-2 and train.py of GPT-1 name them; convolutions of width 1.
_OPENAI_BLOCK = {
    "attention/qkv/weight_DQNH": "h{}/attn/c_attn/w 1,D,QNH",
    "attention/qkv/bias_QNH": "h{}/attn/c_attn/b QNH",
    "attention/out/weight_DNH": "h{}/attn/c_proj/w 1,NH,D",
    "attention/out/bias_D": "h{}/attn/c_proj/b D",
    "norm_1/gain_D": "h{}/ln_1/g D",
    "norm_1/bias_D": "h{}/ln_1/b D",
    "mlp/up/weight_DF": "h{}/mlp/c_fc/w 1,D,F",
    "mlp/up/bias_F": "h{}/mlp/c_fc/b F",
    "mlp/down/weight_DF": "h{}/mlp/c_proj/w 1,F,D",
    "mlp/down/bias_D": "h{}/mlp/c_proj/b D",
    "norm_2/gain_D": "h{}/ln_2/g D",
    "norm_2/bias_D": "h{}/ln_2/b D",
}
OPENAI_GPT1 = Layout(  # in the order of params_shapes.json
    {"position_TD": "wpe T,D", "token_VD": "wte V,D"}, _OPENAI_BLOCK
)
OPENAI_GPT2 = Layout(
    {
        "token_VD": "wte V,D",
        "position_TD": "wpe T,D",
        "norm/gain_D": "ln_f/g D",
        "norm/bias_D": "ln_f/b D",
    },
    _OPENAI_BLOCK,
)


def family_layout(model: schema.Model) -> Layout:
    """The layout of Hugging Face's Llama, Mistral, Qwen, Gemma, Phi-3 and gpt-oss, for what this
    model has of it. (The joined tensors of the last two are split first: `SplitTensors`,
    `expert_tensors.SplitExperts`.)"""
    layer = "model.layers.{}."
    leaves = {"token_VD": "model.embed_tokens.weight V,D", "norm/gain_D": "model.norm.weight D"}
    if not model.tied_output:
        leaves["output_VD"] = "lm_head.weight V,D"
    after_attention = f"{layer}post_attention_layernorm.weight D"
    block = {"norm_1/gain_D": f"{layer}input_layernorm.weight D", "norm_2/gain_D": after_attention}
    if model.norm == "both":
        block |= {
            "norm_1_out/gain_D": after_attention,
            "norm_2/gain_D": f"{layer}pre_feedforward_layernorm.weight D",
            "norm_2_out/gain_D": f"{layer}post_feedforward_layernorm.weight D",
        }
    attention = f"{layer}self_attn."
    if model.n_kv_heads == model.n_heads:
        projections = {"attention/qkv": ("*", "QNH")}
    else:
        heads = {"query": "NH", "key": "KH", "value": "KH"}
        projections = {f"attention/qkv/{name}": (name[0], dims) for name, dims in heads.items()}
    for leaf, (letter, dims) in projections.items():
        stored = dims.replace("Q", "")
        block[f"{leaf}/weight_D{dims}"] = f"{attention}{letter}_proj.weight {stored},D"
        if model.biases != "none":
            block[f"{leaf}/bias_{dims}"] = f"{attention}{letter}_proj.bias {stored}"
    if model.heads.qk_norm:
        block |= {f"attention/norm_{x}/gain_H": f"{attention}{x}_norm.weight H" for x in "qk"}
    block["attention/out/weight_DNH"] = f"{attention}o_proj.weight D,NH"
    if model.biases == "all":
        block["attention/out/bias_D"] = f"{attention}o_proj.bias D"
    if model.heads.sinks:
        block["attention/sink_N"] = f"{attention}sinks N"
    if isinstance(model.mlp, schema.Experts):
        experts = f"{layer}mlp.experts."
        block |= {
            "mlp/router/weight_DX": f"{layer}mlp.router.weight X,D",
            "mlp/router/bias_X": f"{layer}mlp.router.bias X",
            "mlp/down/weight_EGD": f"{experts}down_proj E,G,D",
            "mlp/down/bias_ED": f"{experts}down_proj_bias E,D",
        }
        for name in ("gate", "up"):
            block[f"mlp/{name}/weight_EDG"] = f"{experts}{name}_proj E,D,G"
            block[f"mlp/{name}/bias_EG"] = f"{experts}{name}_proj_bias E,G"
        return Layout(leaves, block)
    block |= {
        "mlp/gate/weight_DF": f"{layer}mlp.gate_proj.weight F,D",
        "mlp/up/weight_DF": f"{layer}mlp.up_proj.weight F,D",
        "mlp/down/weight_DF": f"{layer}mlp.down_proj.weight D,F",
    }
    return Layout(leaves, block)


@dataclasses.dataclass(frozen=True)
class TensorSlot:
    """A stored tensor and its place in our leaf: in which period of layers, and whether it is only
    q, k or v (0 to 2).
    """

    name: str
    dims: str
    leaf: str
    period: int | None
    qkv_index: int | None

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Shape of the stored tensor."""
        return tuple(math.prod(sizes[c] for c in group) for group in self.dims.split(","))


def token_table_name(layout: Layout) -> str:
    """Name of the stored token embedding table."""
    return layout.leaves["token_VD"].split()[0]


def letter_sizes(model: schema.Model) -> dict[str, int]:
    """Size of each dimension letter for this model."""
    widths = {"D": model.d_model, "N": model.n_heads, "H": model.d_head, "F": model.d_ff}
    widths |= {"K": model.n_kv_heads, "G": model.d_ff}
    if isinstance(model.mlp, schema.Experts):
        widths |= dict.fromkeys("EX", model.mlp.n_experts)
    return widths | {"V": model.n_vocab, "T": model.n_ctx, "Q": 3, "1": 1}


def tensor_slots(layout: Layout, model: schema.Model) -> Iterator[TensorSlot]:
    """Yields every tensor that the other format has for this model, in the order of the tables."""
    for leaf, where in layout.leaves.items():
        name, dims = where.split()
        yield TensorSlot(name, dims, leaf, None, None)
    for layer in range(model.n_layers):
        period, block = divmod(layer, len(model.attention))
        for leaf, where in layout.block.items():
            name, dims = where.replace("{}", str(layer)).split()
            for q in range(3) if "*" in name else [None]:
                full_name = name if q is None else name.replace("*", "qkv"[q])
                if period < model.n_periods:
                    yield TensorSlot(full_name, dims, f"periods/block_{block}/{leaf}", period, q)
                else:
                    yield TensorSlot(full_name, dims, f"remainder/block_{block}/{leaf}", None, q)


def check(tensors: Tensors, layout: Layout, model: schema.Model) -> None:
    """Raises ValueError if a tensor is missing, unexpected or of the wrong shape, with the first
    one and their number. The tables of tokens and of output may have more rows than the model has
    ids.
    """
    if model.n_layers > len(tensors.shapes):
        raise ValueError(
            f"{tensors.path}: {len(tensors.shapes)} tensors are too few for {model.n_layers:,} "
            "layers: give weights and config that belong together"
        )
    actual, expected = (
        dict(tensors.shapes),
        {slot.name: slot.shape(letter_sizes(model)) for slot in tensor_slots(layout, model)},
    )
    for leaf in ("token_VD", "output_VD"):
        table = layout.leaves.get(leaf, "").partition(" ")[0]
        if (
            table in actual
            and actual[table][1:] == expected[table][1:]
            and actual[table][:1] >= expected[table][:1]
        ):
            actual[table] = expected[table]
    errors = [
        f"the tensor {name} is missing, expected {list(shape)}"
        for name, shape in expected.items()
        if name not in actual
    ]
    common = [name for name in expected if name in actual]
    errors += [
        f"the tensor {name} is {list(actual[name])}, expected {list(expected[name])}"
        for name in common
        if actual[name] != expected[name]
    ]
    errors += [
        f"the tensor {name}, {list(shape)}, is not part of this architecture"
        for name, shape in actual.items()
        if name not in expected
    ]
    if errors:
        count = f" ({len(errors)} are wrong in all)" if len(errors) > 1 else ""
        m = model
        summary = (
            f"{m.n_layers} layers, {m.n_heads} heads, {m.d_model} wide, {m.n_vocab:,} ids, context "
            f"{m.n_ctx:,}"
        )
        raise ValueError(
            f"{tensors.path}: {errors[0]}{count}; its config says {summary}: give weights and "
            "config that belong together"
        )


def read_part(
    tensors: Tensors, layout: Layout, model: schema.Model, leaf: str, index: tuple[slice, ...]
) -> np.ndarray:
    """Reads a part of our leaf as float32. index: a slice with start and stop for each dimension.

    Little more than that part is read from each stored tensor. What the other format lacks is zero:
    vocabulary padding, biases.
    """
    out = np.zeros([index_slice.stop - index_slice.start for index_slice in index], np.float32)
    for slot in tensor_slots(layout, model):
        if slot.leaf != leaf:
            continue
        view, slices, letters = out, index, shapes.letters(leaf)
        if slot.period is not None:
            if not slices[0].start <= slot.period < slices[0].stop:
                continue
            view, slices = view[slot.period - slices[0].start], slices[1:]
        by_letter = dict(zip(letters, slices, strict=True))
        if slot.qkv_index is not None:
            index_slice, axis = by_letter.pop("Q"), letters.index("Q")
            if not index_slice.start <= slot.qkv_index < index_slice.stop:
                continue
            view, letters = (
                np.moveaxis(view, axis, 0)[slot.qkv_index - index_slice.start],
                letters.replace("Q", ""),
            )
        block = _read_slot(tensors, slot, letter_sizes(model), letters, by_letter)
        if layout.unscaled_attention and slot.qkv_index == 0:
            block = block * np.float32(model.d_head**0.5)
        view[tuple(slice(n) for n in block.shape)] = block
    return out


def _read_slot(
    tensors: Tensors, slot: TensorSlot, n: dict[str, int], letters: str, slices: dict[str, slice]
) -> np.ndarray:
    """Reads a part of a stored tensor with dimensions `letters`, sliced by `slices`; ids beyond the
    vocabulary are left out.
    """
    groups = slot.dims.split(",")
    stored_slices, dims = [], []
    # A slice along the first letter of a group is contiguous in storage; other letters are sliced
    # after reading.
    for group in groups:
        start, stop, _ = slices.get(group[0], slice(None)).indices(n[group[0]])
        inner = math.prod(n[c] for c in group[1:])
        stored_slices.append(slice(start * inner, max(start, stop) * inner))
        dims += [max(start, stop) - start, *(n[c] for c in group[1:])]
    order = "".join(groups)
    x = tensors.read(slot.name, tuple(stored_slices)).reshape(dims)
    x = x.reshape([size for c, size in zip(order, dims, strict=True) if c != "1"]).transpose(
        [order.replace("1", "").index(c) for c in letters]
    )
    first = [group[0] for group in groups]
    return x[tuple(slice(None) if c in first else slices[c] for c in letters)]


def to_stored(layout: Layout, model: schema.Model, slot: TensorSlot, leaf: Any) -> np.ndarray:
    """Converts our leaf (an array with any sharding) to the tensor stored at `slot`, float32 on the
    host.
    """
    letters, n = shapes.letters(slot.leaf), letter_sizes(model)
    array = np.asarray(leaf if slot.period is None else leaf[slot.period])
    if slot.qkv_index is not None:
        array, letters = array.take(slot.qkv_index, letters.index("Q")), letters.replace("Q", "")
    if layout.unscaled_attention and slot.qkv_index == 0:
        array = array / np.float32(model.d_head**0.5)
    array = array[tuple(slice(n[c]) for c in letters)]  # without the padding of the vocabulary
    order = slot.dims.replace(",", "").replace("1", "")
    return np.ascontiguousarray(
        array.transpose([letters.index(c) for c in order]).reshape(slot.shape(n))
    )
