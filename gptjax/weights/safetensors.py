"""Safetensors: read part by part, written in files of bounded size."""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gptjax.config import parse
from gptjax.runtime import atomic

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
FILE_BYTES = 2 << 30  # of one file that is written: so much is in memory twice
PLAIN = re.compile(r"[^/\\\x00-\x1f]+\.safetensors")  # what an index may call a file: a name, not a path
PREFIX = "transformer."  # what Hugging Face puts before the names of a model that has a head
BUFFERS = re.compile(r"h\.\d+\.attn\.(attention\.)?(masked_)?bias|position_ids")  # which older versions of transformers saved


class Tensors(Protocol):
    """The tensors of a folder of weights. shapes: name -> shape, without buffers."""

    where: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, a slice with start and stop for each dimension, as float32."""
        ...


class Safetensors:
    """Those of a file, or of a folder with model.safetensors or with model.safetensors.index.json and what it lists.

    Names lose the prefix "transformer."; masks are left out. ValueError, in one line, for what is missing, damaged or of no float type.
    """

    def __init__(self, where: Path):
        self.where = where
        self._files: dict[str, tuple[Path, str]] = {}  # name -> its file, and its name there
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._open: dict[Path, Any] = {}
        files, listed = _files(where)
        for file in files:
            self._open[file] = there = _opened(file)
            for full in there.keys():
                name = full.removeprefix(PREFIX)
                if BUFFERS.fullmatch(name):
                    continue
                if name in self._files:
                    raise ValueError(f"{where}: the tensor {full} is there twice, in {self._files[name][0].name} and {file.name}; keep one")
                tensor = there.get_slice(full)
                if tensor.get_dtype() not in FLOATS:
                    raise ValueError(f"{where}: the tensor {full} is of type {tensor.get_dtype()}; allowed are {', '.join(FLOATS)}")
                self._files[name], self.shapes[name] = (file, full), tuple(tensor.get_shape())
        if absent := sorted({name.removeprefix(PREFIX) for name in listed} - {*self.shapes} - {n for n in listed if BUFFERS.search(n)}):
            raise ValueError(f"{where}: {INDEX} lists the tensor {absent[0]}, which is in none of its files; fetch them again")

    def rename(self, name: str, wanted: str) -> None:
        """Know a tensor by another name."""
        self._files[wanted], self.shapes[wanted] = self._files.pop(name), self.shapes.pop(name)

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        file, full = self._files[name]
        return np.asarray(self._open[file].get_slice(full)[part]).astype(np.float32, copy=False)


def found(where: Path) -> bool:
    """Are there safetensors in this folder, or is it such a file?"""
    return where.suffix == ".safetensors" or any((where / name).exists() for name in (SINGLE, INDEX))


def _files(where: Path) -> tuple[list[Path], list[str]]:
    """The files, and the names that an index lists."""
    if where.is_file():
        return [where], []
    if not (where / INDEX).exists():
        return [where / SINGLE], []
    listed = parse.member(parse.json_file(where / INDEX), "weight_map", dict, str(where / INDEX))
    for name, file in listed.items():
        if not isinstance(file, str) or not PLAIN.fullmatch(file):
            raise ValueError(
                f"{where / INDEX}: the tensor {parse.quote(name)} lies in {parse.quote(file)}; it must be the name of a .safetensors file "
                "of the same folder"
            )
    return [where / file for file in sorted(set(listed.values()))], list(listed)


def _opened(file: Path):
    import safetensors

    try:
        return safetensors.safe_open(file, framework="numpy")
    except FileNotFoundError:
        raise ValueError(f"{file} is missing; fetch it again") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}; fetch it again") from None


def save(folder: Path, tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]], file_bytes: int = FILE_BYTES) -> list[str]:
    """Write float32 tensors, each given as (name, shape, what makes it), into `folder`: as model.safetensors, or where that would exceed
    `file_bytes` as several files with an index, of which one at a time is in memory. Returns the files' names."""
    import safetensors.numpy

    groups, room = [[]], file_bytes
    for tensor in tensors:
        size = 4 * math.prod(tensor[1])
        if groups[-1] and size > room:
            groups.append([])
            room = file_bytes
        groups[-1].append(tensor)
        room -= size
    names = [SINGLE if len(groups) == 1 else f"model-{n:05}-of-{len(groups):05}.safetensors" for n in range(1, len(groups) + 1)]
    for file, group in zip(names, groups, strict=True):
        safetensors.numpy.save_file({name: make() for name, _, make in group}, folder / file, metadata={"format": "pt"})
    if len(groups) > 1:
        total = sum(4 * math.prod(shape) for group in groups for _, shape, _ in group)
        index = {name: file for file, group in zip(names, groups, strict=True) for name, _, _ in group}
        (folder / INDEX).write_bytes(atomic.json_bytes({"metadata": {"total_size": total}, "weight_map": index}))
        names.append(INDEX)
    return names
