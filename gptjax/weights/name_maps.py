"""Where each of our leaves lies in another's files: a table a format, read in both directions.

A table maps a leaf, of GPT or of its blocks, to "NAME DIMS". NAME has {} for the number of the layer, and * for q, k and v where these are
three tensors. DIMS are the stored dimensions in the letters of sharding/shapes.py, with commas between: "D,QNH" is a matrix whose columns
are query, key and value, each by heads; "1" is a dimension of size 1. A leaf that a table lacks is zero on the other side.
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
    """leaves: of GPT; block: of each layer. unscaled: scores are not divided by sqrt(d_head), as ours are; so our queries are theirs times
    that (exact where d_head is a power of 4)."""

    leaves: dict[str, str]
    block: dict[str, str]
    unscaled: bool = False


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

GPT1 = Layout({"token_VD": "tokens_embed.weight V,D", "position_TD": "positions_embed.weight T,D"}, _BLOCK)
GPT2 = Layout(_EMBEDDINGS | _LAST_NORM, _BLOCK)
_NEO = {
    "attention/qkv/weight_DQNH": "h.{}.attn.attention.*_proj.weight NH,D",
    "attention/out/weight_DNH": "h.{}.attn.attention.out_proj.weight D,NH",
    "attention/out/bias_D": "h.{}.attn.attention.out_proj.bias D",
    "mlp/up/weight_DF": "h.{}.mlp.c_fc.weight F,D",  # torch's Linear stores (out, in), its Conv1D above (in, out)
    "mlp/down/weight_DF": "h.{}.mlp.c_proj.weight D,F",
}
NEO = Layout(GPT2.leaves, {leaf: where for leaf, where in (_BLOCK | _NEO).items() if leaf != "attention/qkv/bias_QNH"}, unscaled=True)
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
OPENAI_GPT1 = Layout({"position_TD": "wpe T,D", "token_VD": "wte V,D"}, _OPENAI_BLOCK)  # in the order of params_shapes.json
OPENAI_GPT2 = Layout({"token_VD": "wte V,D", "position_TD": "wpe T,D", "norm/gain_D": "ln_f/g D", "norm/bias_D": "ln_f/b D"}, _OPENAI_BLOCK)


@dataclasses.dataclass(frozen=True)
class Place:
    """A stored tensor, and where it lies in our leaf: in which period of layers, and whether it is q, k or v, 0 to 2, of one for all."""

    name: str
    dims: str
    leaf: str
    period: int | None
    q: int | None

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[c] for c in group) for group in self.dims.split(","))


def token_table(layout: Layout) -> str:
    """The name of the tensor with the token embeddings."""
    return layout.leaves["token_VD"].split()[0]


def sizes(model: schema.Model) -> dict[str, int]:
    """What each letter of a table means for this model."""
    widths = {"D": model.d_model, "N": model.n_heads, "H": model.d_head, "F": model.d_ff}
    return widths | {"V": model.n_vocab, "T": model.n_ctx, "Q": 3, "1": 1}


def places(layout: Layout, model: schema.Model) -> Iterator[Place]:
    """Every tensor that the other side has for this model, in the order of the tables."""
    for leaf, where in layout.leaves.items():
        name, dims = where.split()
        yield Place(name, dims, leaf, None, None)
    for layer in range(model.n_layers):
        period, block = divmod(layer, len(model.attention))
        for leaf, where in layout.block.items():
            name, dims = where.replace("{}", str(layer)).split()
            for q in range(3) if "*" in name else [None]:
                one = name if q is None else name.replace("*", "qkv"[q])
                yield Place(one, dims, f"periods/block_{block}/{leaf}", period, q)


def check(tensors: Tensors, layout: Layout, model: schema.Model) -> None:
    """ValueError, naming the first tensor that is missing, of another shape or not wanted, and how many there are. The token table may have
    more rows than the model has ids."""
    if model.n_layers > len(tensors.shapes):
        raise ValueError(
            f"{tensors.where}: {len(tensors.shapes)} tensors are no {model.n_layers:,} layers: give weights and config that belong together"
        )
    have, want = dict(tensors.shapes), {place.name: place.shape(sizes(model)) for place in places(layout, model)}
    table = token_table(layout)
    if table in have and have[table][1:] == want[table][1:] and have[table][0] >= want[table][0]:
        have[table] = want[table]
    wrong = [f"the tensor {name} is missing, expected {list(shape)}" for name, shape in want.items() if name not in have]
    both = [name for name in want if name in have]
    wrong += [f"the tensor {name} is {list(have[name])}, expected {list(want[name])}" for name in both if have[name] != want[name]]
    wrong += [f"the tensor {name}, {list(shape)}, is none of this architecture's" for name, shape in have.items() if name not in want]
    if wrong:
        count = f" ({len(wrong)} are wrong in all)" if len(wrong) > 1 else ""
        m = model
        said = f"{m.n_layers} layers, {m.n_heads} heads, {m.d_model} wide, {m.n_vocab:,} ids, context {m.n_ctx:,}"
        raise ValueError(f"{tensors.where}: {wrong[0]}{count}; its config says {said}: give weights and config that belong together")


def part(tensors: Tensors, layout: Layout, model: schema.Model, leaf: str, index: tuple[slice, ...]) -> np.ndarray:
    """float32: the part of our leaf that `index`, a slice with start and stop for each dimension, cuts out. Of each tensor little more is
    read than lies in it. What the other side lacks is zero: the padding of the vocabulary, biases."""
    out = np.zeros([cut.stop - cut.start for cut in index], np.float32)
    for place in places(layout, model):
        if place.leaf != leaf:
            continue
        view, cuts, letters = out, index, shapes.letters(leaf)
        if place.period is not None:
            if not cuts[0].start <= place.period < cuts[0].stop:
                continue
            view, cuts = view[place.period - cuts[0].start], cuts[1:]
        by_letter = dict(zip(letters, cuts, strict=True))
        if place.q is not None:
            cut, at = by_letter.pop("Q"), letters.index("Q")
            if not cut.start <= place.q < cut.stop:
                continue
            view, letters = np.moveaxis(view, at, 0)[place.q - cut.start], letters.replace("Q", "")
        ours = _read(tensors, place, sizes(model), letters, by_letter)
        if layout.unscaled and place.q == 0:
            ours = ours * np.float32(model.d_head**0.5)
        view[tuple(slice(n) for n in ours.shape)] = ours
    return out


def _read(tensors: Tensors, place: Place, n: dict[str, int], letters: str, cuts: dict[str, slice]) -> np.ndarray:
    """A part of a stored tensor with the dimensions `letters`, cut by `cuts`; ids beyond the vocabulary are left out."""
    groups = place.dims.split(",")
    stored, dims = [], []
    for group in groups:  # along the first letter of a group a cut is one piece of what is stored; the others are cut when it is here
        start, stop, _ = cuts.get(group[0], slice(None)).indices(n[group[0]])
        inner = math.prod(n[c] for c in group[1:])
        stored.append(slice(start * inner, max(start, stop) * inner))
        dims += [max(start, stop) - start, *(n[c] for c in group[1:])]
    order = "".join(groups)
    x = tensors.read(place.name, tuple(stored)).reshape(dims)
    x = x.reshape([size for c, size in zip(order, dims, strict=True) if c != "1"]).transpose(
        [order.replace("1", "").index(c) for c in letters]
    )
    first = [group[0] for group in groups]
    return x[tuple(slice(None) if c in first else cuts[c] for c in letters)]


def theirs(layout: Layout, model: schema.Model, place: Place, leaf: Any) -> np.ndarray:
    """The tensor that is stored at `place`, of our leaf (an array of any placement), as float32 on the host."""
    letters, n = shapes.letters(place.leaf), sizes(model)
    ours = np.asarray(leaf if place.period is None else leaf[place.period])
    if place.q is not None:
        ours, letters = ours.take(place.q, letters.index("Q")), letters.replace("Q", "")
    if layout.unscaled and place.q == 0:
        ours = ours / np.float32(model.d_head**0.5)
    ours = ours[tuple(slice(n[c]) for c in letters)]  # without the padding of the vocabulary
    order = place.dims.replace(",", "").replace("1", "")
    return np.ascontiguousarray(ours.transpose([letters.index(c) for c in order]).reshape(place.shape(n)))
