"""Safetensors: partial reading, and writing to files of bounded size."""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptjax.config import parse
from gptjax.runtime import atomic

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
MXFP4_SUFFIXES = "_blocks", "_scales"  # of names of tensors of bytes, of gpt-oss
MAX_FILE_BYTES = 2 << 30  # of a written file; this much is in memory twice
# File names that an index may contain: names, not paths.
FILE_NAME_PATTERN = re.compile(r"[^/\\\x00-\x1f]+\.safetensors")
PREFIX = "transformer."  # of Hugging Face's names in models with a head
# Buffers saved by older versions of transformers.
BUFFER_PATTERN = re.compile(
    r"h\.\d+\.attn\.(attention\.)?(masked_)?bias|position_ids"
    r"|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)


class Tensors(Protocol):
    """The tensors of a folder of weights. shapes: name -> shape, without buffers."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """Returns a part of a tensor as float32. part: a slice with start and stop for each
        dimension.
        """
        ...


class SafetensorsReader:
    """The tensors of a file, or of a folder with model.safetensors or with
    model.safetensors.index.json and its files.

    Names lose the prefix "transformer."; masks are left out. Raises a one-line ValueError for
    missing or damaged files and tensors of other types than floats.
    """

    def __init__(self, path: Path):
        self.path = path
        self._files: dict[str, tuple[Path, str]] = {}  # name -> its file and its full name there
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._handles: dict[Path, Any] = {}
        files, index_names = _list_files(path)
        for file in files:
            self._handles[file] = handle = _open_file(file)
            for full in handle.keys():
                name = full.removeprefix(PREFIX)
                if BUFFER_PATTERN.fullmatch(name):
                    continue
                if name in self._files:
                    raise ValueError(
                        f"{path}: the tensor {full} is there twice, in {self._files[name][0].name} "
                        f"and {file.name}; keep one"
                    )
                tensor = handle.get_slice(full)
                is_mxfp4 = tensor.get_dtype() == "U8" and name.endswith(MXFP4_SUFFIXES)
                if tensor.get_dtype() not in FLOAT_BYTES and not is_mxfp4:
                    raise ValueError(
                        f"{path}: the tensor {full} is of type {tensor.get_dtype()}; allowed are "
                        f"{', '.join(FLOAT_BYTES)}"
                    )
                self._files[name], self.shapes[name] = (file, full), tuple(tensor.get_shape())
        if missing := sorted(
            {name.removeprefix(PREFIX) for name in index_names}
            - {*self.shapes}
            - {n for n in index_names if BUFFER_PATTERN.search(n)}
        ):
            raise ValueError(
                f"{path}: {INDEX_FILE} lists the tensor {missing[0]}, which is in none of its "
                "files; fetch them again"
            )

    def rename(self, name: str, new_name: str) -> None:
        """Changes the name of a tensor."""
        self._files[new_name], self.shapes[new_name] = self._files.pop(name), self.shapes.pop(name)

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, as float32."""
        file, full = self._files[name]
        return np.asarray(self._handles[file].get_slice(full)[part]).astype(np.float32, copy=False)


def has_weights(path: Path) -> bool:
    """Whether the path is a safetensors file or a folder with one."""
    return path.suffix == ".safetensors" or any(
        (path / name).exists() for name in (SINGLE_FILE, INDEX_FILE)
    )


def _list_files(path: Path) -> tuple[list[Path], list[str]]:
    """Returns (files, tensor names listed by an index)."""
    if path.is_file():
        return [path], []
    if not (path / INDEX_FILE).exists():
        return [path / SINGLE_FILE], []
    weight_map = parse.member(
        parse.read_json(path / INDEX_FILE), "weight_map", dict, str(path / INDEX_FILE)
    )
    for name, file in weight_map.items():
        if not isinstance(file, str) or not FILE_NAME_PATTERN.fullmatch(file):
            raise ValueError(
                f"{path / INDEX_FILE}: the tensor {parse.quote(name)} lies in {parse.quote(file)}; "
                "it must be the name of a .safetensors "
                "file of the same folder"
            )
    return [path / file for file in sorted(set(weight_map.values()))], list(weight_map)


def _open_file(file: Path):
    import safetensors

    try:
        return safetensors.safe_open(file, framework="numpy")
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; fetch it again") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; fetch it again") from None


def save(
    folder: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]],
    file_bytes: int = MAX_FILE_BYTES,
) -> list[str]:
    """Writes float32 tensors, each given as (name, shape, function that makes it), to `folder`;
    returns the file names.

    The file is model.safetensors or, if that would exceed `file_bytes`, several files with an
    index, of which one at a time is in memory.
    """
    import safetensors.numpy

    groups, n_free = [[]], file_bytes
    for tensor in tensors:
        size = 4 * math.prod(tensor[1])
        if groups[-1] and size > n_free:
            groups.append([])
            n_free = file_bytes
        groups[-1].append(tensor)
        n_free -= size
    names = [
        SINGLE_FILE if len(groups) == 1 else f"model-{n:05}-of-{len(groups):05}.safetensors"
        for n in range(1, len(groups) + 1)
    ]
    for file, group in zip(names, groups, strict=True):
        safetensors.numpy.save_file(
            {name: make_tensor() for name, _, make_tensor in group},
            folder / file,
            metadata={"format": "pt"},
        )
    if len(groups) > 1:
        total = sum(4 * math.prod(shape) for group in groups for _, shape, _ in group)
        index = {
            name: file for file, group in zip(names, groups, strict=True) for name, _, _ in group
        }
        (folder / INDEX_FILE).write_bytes(
            atomic.json_bytes({"metadata": {"total_size": total}, "weight_map": index})
        )
        names.append(INDEX_FILE)
    return names
