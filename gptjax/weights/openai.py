"""OpenAI's own files: GPT-2 as a TensorFlow checkpoint with hparams.json, GPT-1 as numbered .npy
files with params_shapes.json.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import parse, schema
from gptjax.weights import hf_config, name_maps, safetensors, tf_checkpoint

HPARAMS_FILE, SHAPES_FILE = "hparams.json", "params_shapes.json"
TENSORS_PER_LAYER = len(name_maps.OPENAI_GPT1.block)
D_HEAD = 64  # of GPT-1, whose files do not state it


class NumpyShards:
    """GPT-1's parameters: one vector, in the order of params_shapes.json, split into params_0.npy,
    params_1.npy, ... Implements safetensors.Tensors.

    Raises a one-line ValueError for a missing or damaged file.
    """

    def __init__(self, path: Path):
        self.path = path
        shapes = _read_shapes(path / SHAPES_FILE)
        n_layers, rest = divmod(len(shapes) - 2, TENSORS_PER_LAYER)
        if n_layers < 1 or rest:
            raise ValueError(
                f"{path / SHAPES_FILE} lists {len(shapes)} tensors, not two and "
                f"{TENSORS_PER_LAYER} a layer: give GPT-1's own file"
            )
        patterns = [p.split()[0] for p in name_maps.OPENAI_GPT1.leaves.values()]
        patterns += [
            p.split()[0].format(n)
            for n in range(n_layers)
            for p in name_maps.OPENAI_GPT1.block.values()
        ]
        self.shapes = dict(zip(patterns, shapes, strict=True))
        files = sorted(
            path.glob("params_*.npy"), key=lambda file: int(re.sub(r"\D", "", file.stem) or -1)
        )
        if [file.name for file in files] != [f"params_{n}.npy" for n in range(len(files))]:
            missing = next(
                n for n in range(len(files) + 1) if not (path / f"params_{n}.npy").exists()
            )
            raise ValueError(f"{path / f'params_{missing}.npy'} is missing; fetch it again")
        if len(self.shapes["wte"]) != 2 or len(self.shapes["wpe"]) != 2:
            raise ValueError(
                f"{path / SHAPES_FILE} lists no tables of tokens and positions: give GPT-1's own "
                "file"
            )
        self._shards = [_load_vector(file) for file in files]
        n_expected, n_actual = (
            sum(math.prod(shape) for shape in shapes),
            sum(len(part) for part in self._shards),
        )
        if n_expected != n_actual:
            raise ValueError(
                f"{path}: {len(files)} files params_*.npy have {n_actual:,} numbers, and "
                f"{SHAPES_FILE} lists {n_expected:,}; "
                "fetch them again"
            )

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, as float32."""
        names = list(self.shapes)
        start = sum(math.prod(self.shapes[other]) for other in names[: names.index(name)])
        stop, pieces = start + math.prod(self.shapes[name]), []
        for piece in self._shards:
            pieces.append(piece[max(0, start) : max(0, stop)])
            start, stop = start - len(piece), stop - len(piece)
        return (
            np.concatenate(pieces).reshape(self.shapes[name])[part].astype(np.float32, copy=False)
        )


def _load_vector(file: Path) -> np.ndarray:
    """Memory-maps a file that must hold a vector of floats."""
    try:
        part = np.load(file, mmap_mode="r")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        # NumPy parses the header as Python, so a damaged one may raise anything that Python's
        # parser does.
        raise ValueError(
            f"{file} is damaged ({(str(error).splitlines() or [type(error).__name__])[0]}); fetch "
            "it again"
        ) from None
    if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype.kind != "f":
        contents = (
            f"{part.dtype}{list(part.shape)}" if isinstance(part, np.ndarray) else "several arrays"
        )
        raise ValueError(f"{file} holds {contents}, expected a vector of floats; fetch it again")
    return part


def _read_shapes(file: Path) -> list[tuple[int, ...]]:
    """Reads a JSON list of shapes."""
    shapes = parse.json_value(parse.read_bytes(file), str(file))
    if not isinstance(shapes, list) or not all(
        isinstance(shape, list) and all(map(_is_size, shape)) for shape in shapes
    ):
        raise ValueError(
            f"{file} holds {parse.quote(shapes)}, not a list of shapes; fetch it again"
        )
    return [tuple(shape) for shape in shapes]


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def has_weights(path: Path) -> bool:
    """Whether the folder has weights in OpenAI's format."""
    return (path / SHAPES_FILE).exists() or any(path.glob("*.index"))


def open_tensors(
    path: Path,
) -> tuple[safetensors.Tensors, str, name_maps.Layout, schema.Model, str]:
    """Returns (tensors, description, name map, model, recipe name) of such a folder. Raises
    ValueError if it is damaged.
    """
    if (path / SHAPES_FILE).exists():
        tensors = NumpyShards(path)
        n_vocab, d_model = tensors.shapes["wte"]
        model = schema.Model(
            n_layers=(len(tensors.shapes) - 2) // TENSORS_PER_LAYER,
            n_heads=max(1, d_model // D_HEAD),
            d_model=d_model,
            n_vocab=n_vocab,
            n_ctx=tensors.shapes["wpe"][0],
            norm="post",
            dropout=schema.Dropout(embedding=0.1, attention=0.1, residual=0.1),
        )
        return tensors, "OpenAI's GPT-1", name_maps.OPENAI_GPT1, model, "gpt1"
    indices = sorted(path.glob("*.index"))
    if len(indices) > 1:
        raise ValueError(
            f"{path} has {len(indices)} checkpoints, {indices[0].name} and others: leave one in "
            "the folder"
        )
    if not (path / HPARAMS_FILE).exists():
        raise ValueError(f"{path / HPARAMS_FILE} is missing; fetch it with the weights")
    settings = parse.read_json(path / HPARAMS_FILE)
    names = {
        "n_layers": "n_layer",
        "n_heads": "n_head",
        "d_model": "n_embd",
        "n_vocab": "n_vocab",
        "n_ctx": "n_ctx",
    }
    sizes = hf_config.read_sizes(settings, names, str(path / HPARAMS_FILE))
    dropout = schema.Dropout(embedding=0.1, attention=0.1, residual=0.1)
    model = schema.Model(**sizes, dropout=dropout)  # type: ignore[arg-type]
    return (
        tf_checkpoint.TensorBundle(indices[0]),
        "OpenAI's GPT-2",
        name_maps.OPENAI_GPT2,
        model,
        "gpt2_124m",
    )
