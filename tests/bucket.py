"""A place of fsspec as buckets and web servers are: its files are those of fsspec, which have less
than Python's, its listings have no sizes, and its network fails."""

from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile


class _File(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        if self.fs.errors:
            raise self.fs.errors.pop()
        return self.fs.cat_file(self.path, start, end)


class BucketFileSystem(MemoryFileSystem):
    """fsspec's memory, at bucket://. errors: those of the next reads, the last one first."""

    protocol = "bucket"
    errors: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("bucket://", "memory://"))

    def unstrip_protocol(self, name: str) -> str:
        """Returns the address of a path."""
        return f"bucket://{name.removeprefix('/')}"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode=mode, **options)
        return _File(self, path, size=self.size(path))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        """Returns the bytes of a file."""
        return self.store[self._strip_protocol(path)].getvalue()[start:end]

    def find(self, path: str, *arguments: Any, detail: bool = False, **options: Any) -> Any:
        """Lists the files of a folder."""
        found = super().find(path, *arguments, detail=detail, **options)
        return {name: {**found[name], "size": None} for name in found} if detail else found


fsspec.register_implementation("bucket", BucketFileSystem, clobber=True)
