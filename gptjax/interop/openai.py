"""OpenAI's own files: GPT-2 as a TensorFlow checkpoint with hparams.json, GPT-1 as numbered .npy files with params_shapes.json."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import schema
from gptjax.interop import bundle, layouts, tensors

HPARAMS, SHAPES = "hparams.json", "params_shapes.json"
PER_LAYER = len(layouts.OPENAI_GPT1.block)
D_HEAD = 64  # of GPT-1, whose files do not say it


class Numbered:
    """GPT-1's parameters: all in one vector, in the order of params_shapes.json, that is cut into params_0.npy, params_1.npy, ... A
    tensors.Tensors. ValueError, in one line, for a file that is missing or damaged."""

    def __init__(self, where: Path):
        self.where = where
        listed = [tuple(shape) for shape in _json(where / SHAPES)]
        n_layers, rest = divmod(len(listed) - 2, PER_LAYER)
        if n_layers < 1 or rest:
            raise ValueError(f"{where / SHAPES} lists {len(listed)} tensors, not two and {PER_LAYER} a layer: give GPT-1's own file")
        patterns = [p.split()[0] for p in layouts.OPENAI_GPT1.leaves.values()]
        patterns += [p.split()[0].format(n) for n in range(n_layers) for p in layouts.OPENAI_GPT1.block.values()]
        self.shapes = dict(zip(patterns, listed, strict=True))
        files = sorted(where.glob("params_*.npy"), key=lambda file: int(re.sub(r"\D", "", file.stem) or -1))
        if [file.name for file in files] != [f"params_{n}.npy" for n in range(len(files))]:
            absent = next(n for n in range(len(files) + 1) if not (where / f"params_{n}.npy").exists())
            raise ValueError(f"{where / f'params_{absent}.npy'} is missing; fetch it again")
        self._parts = [_vector(file) for file in files]
        need, have = sum(math.prod(shape) for shape in listed), sum(len(part) for part in self._parts)
        if need != have:
            raise ValueError(
                f"{where}: {len(files)} files params_*.npy have {have:,} numbers, and {SHAPES} lists {need:,}; fetch them again"
            )

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        names = list(self.shapes)
        start = sum(math.prod(self.shapes[other]) for other in names[: names.index(name)])
        stop, pieces = start + math.prod(self.shapes[name]), []
        for piece in self._parts:
            pieces.append(piece[max(0, start) : max(0, stop)])
            start, stop = start - len(piece), stop - len(piece)
        return np.concatenate(pieces).reshape(self.shapes[name])[part].astype(np.float32, copy=False)


def _vector(file: Path) -> np.ndarray:
    try:
        part = np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); fetch it again") from None
    if part.ndim != 1 or part.dtype.kind != "f":
        raise ValueError(f"{file} holds {part.dtype}{list(part.shape)}, expected a vector of floats; fetch it again")
    return part


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; fetch it with the weights") from None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); fetch it again") from None


def found(where: Path) -> bool:
    """Are there weights of OpenAI's in this folder?"""
    return (where / SHAPES).exists() or any(where.glob("*.index"))


def opened(where: Path) -> tuple[tensors.Tensors, str, layouts.Layout, schema.Model, str]:
    """(tensors, what they are in words, their layout, the model, the recipe's name) of such a folder. ValueError if it is damaged."""
    if (where / SHAPES).exists():
        there = Numbered(where)
        n_vocab, d_model = there.shapes["wte"]
        model = schema.Model(
            n_layers=(len(there.shapes) - 2) // PER_LAYER,
            n_heads=max(1, d_model // D_HEAD),
            d_model=d_model,
            n_vocab=n_vocab,
            n_ctx=there.shapes["wpe"][0],
            norm="post",
            dropout=schema.Dropout(embedding=0.1, attention=0.1, residual=0.1),
        )
        return there, "OpenAI's GPT-1", layouts.OPENAI_GPT1, model, "gpt1"
    indices = sorted(where.glob("*.index"))
    if len(indices) > 1:
        raise ValueError(f"{where} has {len(indices)} checkpoints, {indices[0].name} and others: leave one in the folder")
    h = _json(where / HPARAMS)
    names = {"n_layers": "n_layer", "n_heads": "n_head", "d_model": "n_embd", "n_vocab": "n_vocab", "n_ctx": "n_ctx"}
    if absent := [name for name in names.values() if name not in h]:
        raise ValueError(f"{where / HPARAMS} has no {absent[0]!r}; fetch it again")
    model = schema.Model(
        **{ours: h[name] for ours, name in names.items()}, dropout=schema.Dropout(embedding=0.1, attention=0.1, residual=0.1)
    )
    return bundle.Bundle(indices[0]), "OpenAI's GPT-2", layouts.OPENAI_GPT2, model, "gpt2_124m"
