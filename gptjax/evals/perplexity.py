"""How well does a model predict texts of one's own? Nats a token, perplexity, bits a byte and
perplexity by word, over all of each file.

Each document is read by itself, after the token that a text without any begins with: a file is one,
a line of .jsonl, a row of .parquet. A file that is named may have any ending: where that tells no
format it is text.
Every token of it is predicted, once, after as many tokens as its window holds
(loglikelihood.loglikelihood_rolling). Bytes are those of the text itself in UTF-8, whatever the
tokenizer makes of it; words are what stands between spaces."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptjax.config import find_files, parse
from gptjax.data.sources import files
from gptjax.evals import loglikelihood, outcomes
from gptjax.evals.runner import EvalModel

COLUMNS = ("tokens", "bytes", "loss", "perplexity", "bits/byte", "by word")
COUNT_NAMES = ("documents", "tokens", "bytes", "words", "nats")


def find_texts(names: Iterable[str], warn: Callable[[str], None]) -> list[Path]:
    """Finds the files that these names, folders and globs stand for, each once. warn: is told of
    what was passed over. ValueError, in one line, if one stands for none."""
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
    """The stride; of None, the whole context. ValueError for one that is longer."""
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
    """Predicts each file, and yields the `measures` of each, and of all together where there are
    several; of those, warn is told of one without text. ValueError, in one line, for a file that
    cannot be read or has no tokens, and where none has text."""
    counts = []
    for number, path in enumerate(paths, 1):
        texts = _read_documents(path)
        if not texts:
            if not counts and number == len(paths):
                raise ValueError(f"{path} is empty: it holds no text; give another")
            warn(f"{path} is empty: it is passed over")
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
    """The documents of a file; none if it has no text."""
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
    """Counts of a text with what they come to. loss: nats a token."""
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
    """What stands under COLUMNS."""
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
    """text-NAME-DIGEST.json: the record, sealed. The digest is of text, stride and model."""
    digest = hashlib.sha256(
        repr((record["sha256"], record["stride"], record["model"])).encode()
    ).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    outcomes.save_record(
        directory / f"text-{Path(record['text']).name}-{digest}.json", record, warn
    )
