"""Shard directories: tokenized documents on disk, written by data/tokenize.py and read as memory
maps.

    train-00000.tokens.npy       uint16, or uint32 above 65,536 ids: the tokens of its documents,
                                 concatenated, each with end-of-text if the tokenizer has one
    train-00000.ends.npy         uint64: the position in tokens at which each document ends
    train-00000.keys.npy         uint64: the first 64 bits of the SHA-256 of each document's text,
                                 which show that another directory has the same text
    validation-00000.*           the same for the validation split
    tokenizer.model, .json       the tokenizer, if it was trained on this text
    job.json, block-00000.json   only until all is written: the job, and its finished blocks of text
    manifest.json                written last: without it, the directory is unfinished

Block k of the text gives shard k of each split. Blocks are cut by characters, so that a resumed run
cuts the same ones.

Every array is compared with its digest before it is used: ends and keys when the directory is
opened; tokens then too if the directory is small, else each shard's when it is first read, so that
a run over terabytes starts at once. A run reads shards in random order, so a large one pays for
this in its first batches: at 1 GB/s of SHA-256, 10 ms for a shard of five million tokens.
"""

import bisect
import contextlib
import errno
import hashlib
import pathlib
import resource
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from gptjax.config import parse
from gptjax.runtime import checksums

FORMAT = 1
# Bytes of tokens up to which all shards are verified when their directory is opened.
VERIFY_AT_OPEN_BYTES = 2**30
FIELDS = {  # of the manifests of earlier versions, which had no seal
    "format",
    "source",
    "fingerprint",
    "tokenizer",
    "held_out",
    "block",
    "python",
    "text",
    "splits",
}


def token_dtype(n_vocab: int) -> type[np.unsignedinteger]:
    """Returns the smallest of uint16 and uint32 that holds every id of the vocabulary."""
    return np.uint16 if n_vocab <= 2**16 else np.uint32


def digest(*arrays: np.ndarray) -> str:
    """Returns the SHA-256 of the bytes of the arrays, one after the other."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(array.data)
    return content.hexdigest()


def content_key(*parts: object) -> str:
    """Returns 16 hexadecimal digits that name a directory or file by what it is made from."""
    return hashlib.sha256(repr((FORMAT, parts)).encode()).hexdigest()[:16]


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest of a finished directory. Raises a one-line ValueError if there is none
    or it is damaged.

    A manifest has a seal; one of an earlier version has none, and is accepted if its fields are the
    known ones and its sums are right."""
    path = directory / "manifest.json"
    if not path.exists():
        problem = (
            "is not finished: run the same gptjax.prepare again"
            if (directory / "job.json").exists()
            else "is no shard directory"
        )
        raise ValueError(
            f"Shards(path='{directory}') {problem}; python -m gptjax.prepare writes one"
        )
    try:
        manifest = parse.read_json(path)
        if parse.member(manifest, "format", int, str(path)) != FORMAT:
            raise _OtherFormat(
                f"{directory} has shard format {manifest['format']}, this is format {FORMAT}; "
                "prepare it again"
            )
        if set(manifest) != FIELDS:
            manifest = checksums.check_seal(manifest, str(path))
        _check_manifest(manifest, str(path))
    except _OtherFormat:
        raise
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete {directory} and prepare it again"
        ) from None
    return manifest


class _OtherFormat(ValueError):
    """The manifest is of another version of the format."""


def _check_manifest(manifest: dict[str, Any], where: str) -> None:
    """Raises ValueError unless the manifest has every field that is used and its sums are right."""
    tokenizer = parse.member(manifest, "tokenizer", dict, where)
    for name, kind in (("description", str), ("digest", str), ("n_vocab", int)):
        parse.member(tokenizer, name, kind, f"{where}, tokenizer")
    if (
        tokenizer["n_vocab"] < 1
        or "end_of_text" not in tokenizer
        or type(tokenizer["end_of_text"]) not in (int, type(None))
    ):
        raise ValueError(f"{where}: the tokenizer has no ids, or no end_of_text")
    parse.member(manifest, "held_out", str, where)
    parse.member(parse.member(manifest, "text", dict, where), "digest", str, f"{where}, text")
    splits = parse.member(manifest, "splits", dict, where)
    for split in ("train", "validation"):
        counts = parse.member(splits, split, dict, f"{where}, splits")
        entries = parse.member(counts, "shards", list, f"{where}, {split}")
        for shard in entries:
            if not isinstance(shard, dict):
                raise ValueError(f"{where}, {split}: {parse.quote(shard)} describes no shard")
            for name, kind in (
                ("name", str),
                ("digest", str),
                ("documents", int),
                ("tokens", int),
                ("bytes", int),
            ):
                parse.member(shard, name, kind, f"{where}, a shard of {split}")
            if pathlib.PurePath(shard["name"]).name != shard["name"]:
                raise ValueError(f"{where}: {parse.quote(shard['name'])} is no name of a shard")
        for name in ("documents", "tokens", "bytes"):
            if parse.member(counts, name, int, f"{where}, {split}") != sum(
                shard[name] for shard in entries
            ):
                raise ValueError(f"{where}: the {name} of {split} are not those of its shards")


class Shard:
    """A shard as memory maps.

    ends: uint64 (documents,), the position in the tokens at which each document ends. lengths:
    int64 (documents,), their numbers of tokens. record: its entry of the manifest.
    """

    def __init__(self, directory: pathlib.Path, record: dict[str, Any], n_vocab: int):
        """record: its entry of the manifest. Raises a one-line ValueError if a file is missing or
        does not fit it."""
        self.name, self.record, self._directory, self._n_vocab = (
            record["name"],
            record,
            directory,
            n_vocab,
        )
        kind = token_dtype(n_vocab)
        self._tokens, self.ends = (
            _map(directory, f"{self.name}.{part}.npy") for part in ("tokens", "ends")
        )
        lengths = (
            np.diff(self.ends.astype(np.int64), prepend=0)
            if self.ends.dtype == np.uint64 and self.ends.ndim == 1
            else np.zeros(0)
        )
        fits = (
            self._tokens.dtype == kind
            and self._tokens.shape == (record["tokens"],)
            and len(lengths) == record["documents"]
        )
        if (
            not fits
            or (lengths < 0).any()
            or lengths.sum() != record["tokens"]
            or not self._matches("ends", self.ends)
        ):
            raise self._damage()
        self.lengths = lengths
        self._is_verified = False

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of all documents, of shape (tokens,), verified on first access if not
        before."""
        if not self._is_verified:
            self.verify()
        return self._tokens

    def verify(self) -> None:
        """Raises a one-line ValueError if tokens or ends differ from their digest, or an id is not
        in the vocabulary."""
        if digest(self._tokens, self.ends) != self.record["digest"]:
            raise self._damage()
        if len(self._tokens) and int(self._tokens.max()) >= self._n_vocab:
            raise self.vocabulary_error(int(np.argmax(self._tokens >= self._n_vocab)))
        self._is_verified = True

    def keys(self) -> np.ndarray | None:
        """Returns the key of each document's text, uint64 (documents,); None in directories of
        earlier versions, and where documents were cut (data.validation=Tail)."""
        if "keys" not in self.record:
            return None
        array = _map(self._directory, f"{self.name}.keys.npy")
        if array.dtype != np.uint64 or not self._matches("keys", array):
            raise self._damage()
        return array

    def vocabulary_error(self, position: int) -> ValueError:
        """Returns the error for the token at `position`, whose id is not in the vocabulary."""
        return ValueError(
            f"{self._directory / self.name}.tokens.npy holds the id "
            f"{int(self._tokens[position]):,} at token {position:,}, and the "
            f"vocabulary has {self._n_vocab:,} ids; delete {self._directory} and prepare it again"
        )

    def _matches(self, part: str, array: np.ndarray) -> bool:
        return part not in self.record or digest(array) == self.record[part]

    def _damage(self) -> ValueError:
        return ValueError(
            f"{self._directory / self.name}.*.npy is damaged: it differs from the manifest; delete "
            f"{self._directory} and prepare it again"
        )


class Split:
    """The documents of one or more splits of a directory, as memory maps, in the order of the
    shards; a packing.Documents.

    lengths: int64 (documents,), tokens of each document. n_tokens: their sum. n_bytes: of the text
    in UTF-8.
    """

    def __init__(self, directory: pathlib.Path, manifest: dict[str, Any], splits: Iterable[str]):
        """Raises a one-line ValueError if a shard is missing, cut short or, in a small directory,
        differs from its digest."""
        entries = [shard for split in splits for shard in manifest["splits"][split]["shards"]]
        n_vocab = manifest["tokenizer"]["n_vocab"]
        _raise_file_limit(2 * len(entries))
        self.shards = [Shard(directory, shard, n_vocab) for shard in entries]
        if (
            sum(shard["tokens"] for shard in entries) * np.dtype(token_dtype(n_vocab)).itemsize
            <= VERIFY_AT_OPEN_BYTES
        ):
            for shard in self.shards:
                shard.verify()
        self._ends = [shard.ends for shard in self.shards]
        # The number of the first document of each shard.
        self._first = np.cumsum([0, *map(len, self._ends)]).tolist()
        self.lengths = np.concatenate(
            [np.zeros(0, np.int64), *(shard.lengths for shard in self.shards)]
        )
        self.n_tokens = int(self.lengths.sum())
        self.n_bytes = sum(shard["bytes"] for shard in entries)

    def tokens(self, document: int, start: int, stop: int) -> np.ndarray:
        """Returns tokens start..stop-1 of a document, a view of the file. Raises ValueError if its
        shard, verified now at the latest, is damaged."""
        shard, begin = self._locate_document(document)
        return shard.tokens[begin + start : begin + stop]

    def locate(self, document: int, start: int) -> tuple[Shard, int]:
        """Returns the shard with token `start` of a document, and the token's position in it."""
        shard, begin = self._locate_document(document)
        return shard, begin + start

    def _locate_document(self, document: int) -> tuple[Shard, int]:
        number = bisect.bisect_right(self._first, document) - 1
        return self.shards[number], int(self._ends[number][document - self._first[number]]) - int(
            self.lengths[document]
        )


def _raise_file_limit(n: int) -> None:
    """Raises this process's limit of open files by `n`, as far as the system allows: each memory
    map is an open file, and many shells allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # opening the files reports it
        resource.setrlimit(
            resource.RLIMIT_NOFILE,
            (soft + n if hard == resource.RLIM_INFINITY else min(soft + n, hard), hard),
        )


def _map(directory: pathlib.Path, name: str) -> np.ndarray:
    """Returns a .npy file as a memory map. Raises a one-line ValueError for any error; a damaged
    header can make NumPy raise almost any, since it evaluates it as Python literals."""
    try:
        # a header alone cannot be mapped
        mode = None if (directory / name).stat().st_size <= 128 else "r"
        with warnings.catch_warnings(action="error"):
            # As a plain array over the map: slicing np.memmap is slow.
            return np.asarray(np.load(directory / name, mode, allow_pickle=False))
    except Exception as error:
        if isinstance(error, PermissionError):
            raise ValueError(f"{directory / name} cannot be read: {error.strerror}") from None
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            limits = (
                "raise the limit of this shell (ulimit -n), or of the machine (fs.file-max, "
                "vm.max_map_count)"
            )
            raise ValueError(
                f"{directory / name} cannot be opened: {error.strerror}; {limits}"
            ) from None
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged or cut short"
        raise ValueError(
            f"{directory / name} {reason}; delete {directory} and prepare it again"
        ) from None
