"""Perplexity of a model on one's own text files: nats per token, perplexity, bits per byte and
perplexity per word, over each whole file.

Each document (a file, a line of .jsonl, a row of .parquet) is scored separately, after the token
that starts a text. A named file may have any extension: if it shows no format, the file is text.
Every token is predicted once, given as many tokens before it as its window holds
(loglikelihood.loglikelihood_rolling). Bytes are those of the text in UTF-8, independent of the
tokenizer; words are separated by whitespace.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptjax.config import find_files, parse
from gptjax.data.sources import files
from gptjax.evals import loglikelihood, outcomes
from gptjax.evals.eval_model import EvalModel

COLUMNS = ("tokens", "bytes", "loss", "perplexity", "bits/byte", "by word")
COUNT_NAMES = ("documents", "tokens", "bytes", "words", "nats")


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text. log_likelihood: of all its tokens, in nats; loss: nats a
    token; bits_per_byte: of the text in UTF-8, so that models with other tokenizers can be
    compared."""

    log_likelihood: float
    n_tokens: int
    n_bytes: int
    loss: float
    perplexity: float
    bits_per_byte: float


def score_text(nats: float, n_tokens: int, text: str) -> TextScore:
    """Returns the score of a text of n_tokens with this log-likelihood."""
    n_bytes = len(text.encode(errors="surrogatepass"))
    counts = {"tokens": n_tokens, "bytes": n_bytes, "words": len(text.split()), "nats": -nats}
    found = measures(counts)
    return TextScore(
        nats, n_tokens, n_bytes, found["loss"], found["perplexity"], found["bits_per_byte"]
    )


def find_texts(names: Iterable[str], warn: Callable[[str], None]) -> list[Path]:
    """Returns the files that these names, folders and globs stand for, each once. Reports skipped
    files to `warn`. Raises a one-line ValueError for a name without any file.
    """
    paths: list[Path] = []
    for name in names:
        path = parse.path(name)
        if path.is_file() and not find_files.file_type(path)[0]:
            paths.append(path)
            continue
        matches = find_files.find(name)
        paths += matches.files
        if remark := matches.remark():
            warn(remark)
    return list(dict.fromkeys(paths))


def check_stride(stride: int | None, n_ctx: int) -> int:
    """Returns the stride, by default the whole context. Raises ValueError for a longer one."""
    if stride is not None and not 0 < stride <= n_ctx:
        raise ValueError(f"--stride={stride}: give 1 to {n_ctx}, the model's context")
    return n_ctx if stride is None else stride


def predict(
    model: EvalModel,
    paths: Sequence[Path],
    stride: int,
    progress: Callable[[str], None],
    warn: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Scores each file and yields the `measures` of each, then of all together if there are
    several.

    Files without text are reported to `warn`. Raises a one-line ValueError for a file that cannot
    be read or has no tokens, and if no file has text.
    """
    counts = []
    for number, path in enumerate(paths, 1):
        texts = _read_documents(path)
        if not texts:
            if not counts and number == len(paths):
                raise ValueError(f"{path} is empty: it holds no text; give another")
            warn(f"{path} is empty: it is skipped")
            continue
        tokens = [model.tokenizer.encode(text) for text in texts]
        nats = 0.0
        for done, (_, more) in enumerate(
            loglikelihood.loglikelihood_rolling(
                model.inference_model, tokens, model.tokenizer.start_of_text, model.sharding, stride
            ),
            1,
        ):
            nats -= more
            progress(f"{path}: {done:,} of {len(texts):,} documents")
        numbers = (
            len(texts),
            sum(map(len, tokens)),
            sum(len(text.encode()) for text in texts),
            sum(len(text.split()) for text in texts),
        )
        if not numbers[1]:
            raise ValueError(
                f"{path} has no tokens in this tokenizer: it holds {parse.quote(texts[0])}"
            )
        counts.append(dict(zip(COUNT_NAMES, (*numbers, nats), strict=True)))
        digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
        is_lossy = any(
            model.tokenizer.decode(ids) != text for ids, text in zip(tokens, texts, strict=True)
        )
        yield measures(counts[-1]) | {
            "text": str(path),
            "sha256": digest,
            "stride": stride,
            "changed": is_lossy,
            "model": model.metadata,
        }
    if len(counts) > 1:
        yield measures(
            {name: sum(file_counts[name] for file_counts in counts) for name in COUNT_NAMES}
        ) | {"text": f"all {len(counts)}"}


def _read_documents(path: Path) -> list[str]:
    """Returns the documents of a file; [] if it has no text."""
    if not find_files.file_type(path)[0]:
        text = parse.read_text(path)
        return [text] if text else []
    skipped = files.Skipped()
    try:
        return [document.text for document in files.documents(str(path), "text", skipped)]
    except ValueError:
        if skipped["files without text"]:
            return []
        raise


def measures(counts: dict[str, Any]) -> dict[str, Any]:
    """Returns the counts of a text with the metrics computed from them. loss: nats per token."""
    nats, words = counts["nats"], counts["words"]
    return counts | {
        "loss": nats / counts["tokens"],
        "perplexity": _safe_exp(nats / counts["tokens"]),
        "bits_per_byte": nats / math.log(2) / counts["bytes"],
        "perplexity_by_word": _safe_exp(nats / words) if words else None,
    }


def _safe_exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def format_cells(record: dict[str, Any]) -> list[str]:
    """Formats a record's values for COLUMNS."""
    by_word = "" if record["perplexity_by_word"] is None else f"{record['perplexity_by_word']:.5g}"
    counts = [f"{record[name]:,}" for name in ("tokens", "bytes")]
    return [
        *counts,
        f"{record['loss']:.4f}",
        f"{record['perplexity']:.5g}",
        f"{record['bits_per_byte']:.4f}",
        by_word,
    ]


def save(directory: Path, record: dict[str, Any], warn: outcomes.WarnFn) -> None:
    """Writes text-NAME-DIGEST.json, the sealed record. The digest covers text, stride and model."""
    digest = hashlib.sha256(
        repr((record["sha256"], record["stride"], record["model"])).encode()
    ).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    outcomes.save_record(
        directory / f"text-{Path(record['text']).name}-{digest}.json", record, warn
    )
