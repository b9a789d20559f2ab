"""WebText's selection of pages (GPT-2 section 2.1): those that Reddit's users linked to, without
Wikipedia's. Which URLs are the same is decided here.
"""

import array
import collections
import dataclasses
import datetime
import hashlib
import pathlib
import re
import string
import unicodedata
import urllib.parse
from collections.abc import Iterator
from typing import Any

import numpy as np

from gptjax.config import find_files
from gptjax.config.curation import LinkedPages, WithoutDomains
from gptjax.curation.page import Dropped, Page, StageFn
from gptjax.data.sources import compression, files
from gptjax.runtime import checksums

URL = re.compile(r"(?:(?:([a-z][a-z0-9+.-]*):)?//)?([^/?#]*)([^?#]*)(\?[^#]+)?", re.IGNORECASE)
HOST = re.compile(r"(.*?)\.?(:\d*)?", re.DOTALL)  # name, port
DOMAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
RESERVED = "/:?#[]@!$&'()*+,;="  # RFC 3986, section 2.2: not the same if escaped
UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")
ESCAPE = re.compile("%([0-9A-Fa-f]{2})?")
PLAIN = re.compile(f"[{re.escape(RESERVED + ''.join(sorted(UNRESERVED)))}]*")


def normalize_url(url: str) -> str:
    """Returns what is the same of URLs that differ only in scheme, www., default port, upper case
    of the host and a dot at its end, punycode, characters that are escaped or not (RFC 3986,
    section 6.2.2), a slash at the end of the path, and fragment; "" for ""."""
    match = URL.match(url.strip())
    assert match is not None  # all parts may be empty
    scheme, host, path, query = match.groups("")
    name, port = _split_host(host)
    if port in (":", DEFAULT_PORTS.get(scheme.lower())):
        port = ""
    path = _normalize_escapes(path).removesuffix("/")
    return name.removeprefix("www.") + port + path + _normalize_escapes(query)


def _split_host(host: str) -> tuple[str, str]:
    """Returns name and port of a host, as ("xn--bcher-kva.de", ":8080")."""
    match = HOST.fullmatch(host)
    assert match is not None
    return _ascii_name(urllib.parse.unquote(match[1])), match[2] or ""


def _ascii_name(name: str) -> str:
    """Returns a name of the internet in lower case, with punycode (RFC 3492) for what is not
    ASCII."""
    if name.isascii():
        return name.lower()
    name = unicodedata.normalize("NFKC", name).lower().replace("。", ".")
    return ".".join(
        # one of over 63 is no name, and would take long
        label if label.isascii() or len(label) > 63 else f"xn--{label.encode('punycode').decode()}"
        for label in name.split(".")
    )


def _normalize_escapes(part: str) -> str:
    """Returns a path or query with all characters escaped that must be, and no others."""
    if PLAIN.fullmatch(part):
        return part
    quoted = urllib.parse.quote(part, safe=f"{RESERVED}%", errors="surrogatepass")
    return ESCAPE.sub(_normalize_escape, quoted)


def _normalize_escape(match: re.Match[str]) -> str:
    if not match[1]:
        return "%25"
    character = chr(int(match[1], 16))
    return character if character in UNRESERVED else match[0].upper()


@dataclasses.dataclass(frozen=True)
class Links:
    """URLs with enough karma; `url in links` is whether one is among them.

    hashes: of the normalized URLs, sorted, 8 bytes each; of 1e9 other URLs that are looked up among
    WebText's 45e6, 0.002 are taken for one. counts: of the submissions in the dumps, by outcome.
    """

    hashes: np.ndarray
    counts: dict[str, int]

    def __contains__(self, url: str) -> bool:
        key = np.uint64(_hash(url))
        index = int(np.searchsorted(self.hashes, key))
        return index < len(self.hashes) and bool(self.hashes[index] == key)


def _hash(url: str) -> int:
    content = normalize_url(url).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def read_links(rule: LinkedPages) -> Links:
    """Reads link dumps: .jsonl, plain or compressed, with url, score, and maybe created_utc and
    is_self, as Reddit's submissions.

    An URL counts if one submission of it has enough karma [chosen: the paper's links "received at
    least 3 karma", which may be a sum]. Submissions without url or score, or later, or of a text to
    Reddit itself, are counted and do not count. Raises a one-line ValueError for files that are
    missing, damaged or not .jsonl, for a `before` that is no day, and if no link counts.
    """
    end = _timestamp(rule.before)
    hashes, counts = array.array("Q"), collections.Counter[str]()
    for file in find_files.find(rule.links).files:
        for submission in _read_file(file):
            outcome = _judge(submission, rule.karma, end)
            counts[outcome] += 1
            if outcome == COUNTS:
                # "<", ">" and "&" are escaped in Reddit's JSON "for legacy reasons"
                # (reddit.com/dev/api)
                url = submission["url"].replace("&lt;", "<").replace("&gt;", ">")
                hashes.append(_hash(url.replace("&amp;", "&")))
    if not hashes:
        found = ", ".join(f"{n:,} {outcome}" for outcome, n in counts.items()) or "none at all"
        raise ValueError(
            f"LinkedPages(links={rule.links!r}): no link counts (lines: {found}); give .jsonl with "
            f"url and score, at least {rule.karma}"
        )
    return Links(np.unique(np.frombuffer(hashes, np.uint64)), dict(counts))


COUNTS = "with enough karma"


def _judge(submission: dict[str, Any], karma: int, end: float) -> str:
    """Whether a submission counts, or why not."""
    url, score = (submission[name] if name in submission else None for name in ("url", "score"))
    if not isinstance(url, str) or not url or not isinstance(score, int | float):
        return "without url or score"
    if "is_self" in submission and submission["is_self"] is True:
        return "of a text, not a page"
    if "created_utc" in submission and _number(submission["created_utc"]) >= end:
        return "posted later"
    return COUNTS if score >= karma else "with less karma"


def _number(value: Any) -> float:
    """Seconds, which some dumps give as a string; -inf for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("-inf")


def _timestamp(day: str | None) -> float:
    """The beginning of a day (UTC) in seconds; infinity for None."""
    if day is None:
        return float("inf")
    date = datetime.date.fromisoformat(day)
    return datetime.datetime(date.year, date.month, date.day, tzinfo=datetime.UTC).timestamp()


def _read_file(file: pathlib.Path) -> Iterator[dict[str, Any]]:
    file_format, suffix = find_files.file_type(file)
    if file_format != ".jsonl":
        raise ValueError(
            f"{file} is no link dump: give .jsonl, plain or {', '.join(compression.MAGIC)}"
        )
    try:
        with file.open("rb") as raw:
            for _, submission in files.read_objects(compression.decompress(raw, suffix), file):
                yield submission
    except compression.CorruptFile as error:
        if "too much memory" in str(error):  # Reddit's dumps have windows of 2 GiB
            line = "was compressed with a large window: decompress it by zstd -d --long=31"
        else:
            line = f"is damaged or cut short ({error}): fetch it again"
        raise ValueError(f"{file} {line}") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None


def save(folder: pathlib.Path, links: Links) -> None:
    """Saves links for worker processes to `load`."""
    checksums.save_array(folder / "links.npy", links.hashes)
    checksums.save(folder / "links.json", links.counts)


def load(folder: pathlib.Path) -> Links:
    """Reads what `save` has saved. Raises a one-line ValueError if it is damaged."""
    hashes = checksums.read_array(folder / "links.npy")
    return Links(hashes, checksums.read(folder / "links.json"))


def require_links(rule: LinkedPages, links: Links) -> StageFn:
    """Returns a stage that drops pages that nobody linked to with enough karma, as Dropped("not
    linked"), and those without URL."""

    def stage(page: Page) -> Page | Dropped:
        if not page.url:
            return Dropped("no url")
        return page if page.url in links else Dropped("not linked", page.url)

    return stage


def drop_domains(rule: WithoutDomains) -> StageFn:
    """Returns a stage that drops the pages of some domains and their subdomains, as
    Dropped("excluded domain", "en.wikipedia.org"). A page without URL is kept.

    Raises ValueError for what is not a domain.
    """
    for domain in rule.domains:
        if not DOMAIN.fullmatch(domain):
            raise ValueError(
                f"WithoutDomains(domains={rule.domains!r}): {domain!r} is no domain; give domains "
                "as wikipedia.org"
            )
    endings = tuple(f".{_ascii_name(domain)}" for domain in rule.domains)

    def stage(page: Page) -> Page | Dropped:
        match = URL.match(page.url.strip())
        assert match is not None
        host, _ = _split_host(match[2].rpartition("@")[2])
        return Dropped("excluded domain", host) if f".{host}".endswith(endings) else page

    return stage
