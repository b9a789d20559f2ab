"""A shard directory: tokenised documents on disk, written in parallel, resumable, read by memory map.

    train-00000.tokens.npy       uint16, or uint32 above 65,536 ids: its documents end to end, each with end-of-text if there is one
    train-00000.ends.npy         uint64: where in it each document ends
    validation-00000.*           the same for what is held out
    tokenizer.model              where the tokenizer was trained on this text (SentencePiece)
    job.json, block-00000.json   only until it is complete: what is being written, and the blocks of text that are done
    manifest.json                written last: without it, the directory is unfinished

Block k of the text gives shard k of each split. Blocks are cut by characters, so that a resumed run cuts the same ones.
"""

import bisect
import hashlib
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

FORMAT = 1
VERIFIED = 2**30  # directories up to so many bytes of tokens are read whole when opened, to compare their digests


def shard_type(n_vocab: int) -> type[np.unsignedinteger]:
    return np.uint16 if n_vocab <= 2**16 else np.uint32


def digest(tokens: np.ndarray, ends: np.ndarray) -> str:
    """SHA-256 of a shard's content."""
    content = hashlib.sha256(tokens.data)
    content.update(ends.data)
    return content.hexdigest()


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """The manifest of a finished directory. ValueError, in one line, if there is none or it is damaged."""
    try:
        manifest = json.loads((directory / "manifest.json").read_bytes())
    except OSError:
        state = "is not finished: run the same gptjax.prepare again" if (directory / "job.json").exists() else "is no shard directory"
        raise ValueError(f"Shards(path='{directory}') {state}; python -m gptjax.prepare writes one") from None
    except ValueError:
        raise ValueError(f"{directory / 'manifest.json'} is damaged; delete {directory} and prepare it again") from None
    if manifest["format"] != FORMAT:
        raise ValueError(f"{directory} has shard format {manifest['format']}, this is format {FORMAT}; prepare it again")
    return manifest


class Split:
    """The documents of one or more splits of a directory, memory-mapped, in the order of the shards. A packing.Documents."""

    def __init__(self, directory: pathlib.Path, manifest: dict[str, Any], splits: Iterable[str]):
        """ValueError, in one line, if a shard is missing, cut short or differs from its digest."""
        described = [shard for split in splits for shard in manifest["splits"][split]["shards"]]
        kind = shard_type(manifest["tokenizer"]["n_vocab"])
        verify = sum(shard["tokens"] for shard in described) * np.dtype(kind).itemsize <= VERIFIED
        self._tokens, self._ends = [], []
        for shard in described:
            tokens, ends = (mapped(directory, f"{shard['name']}.{part}.npy", manifest) for part in ("tokens", "ends"))
            whole = tokens.dtype == kind and len(tokens) == shard["tokens"] and len(ends) == shard["documents"] and ends[-1] == len(tokens)
            if not whole or (verify and digest(tokens, ends) != shard["digest"]):
                raise ValueError(
                    f"{directory / shard['name']}.*.npy is damaged: it differs from the manifest; delete {directory} and prepare it again"
                )
            self._tokens.append(tokens)
            self._ends.append(ends)
        self._first = np.cumsum([0, *map(len, self._ends)]).tolist()  # the number of each shard's first document
        lengths = [np.diff(ends.astype(np.int64), prepend=0) for ends in self._ends]
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self.n_tokens = int(self.lengths.sum())
        self.n_bytes = sum(shard["bytes"] for shard in described)  # of the text, in UTF-8

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of a document: a view of the file."""
        shard = bisect.bisect_right(self._first, document) - 1
        begin = int(self._ends[shard][document - self._first[shard]]) - int(self.lengths[document])
        return self._tokens[shard][begin + start : begin + stop]


def mapped(directory: pathlib.Path, name: str, manifest: dict[str, Any]) -> np.ndarray:
    try:
        return np.asarray(np.load(directory / name, mmap_mode="r"))  # a plain array over the map: slicing np.memmap is slow
    except (OSError, ValueError, EOFError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged or cut short"
        raise ValueError(f"{directory / name} {reason}; delete {directory} and prepare it again") from None
