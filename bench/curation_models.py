"""What curation changes for a model: the same small model on raw, filtered, deduplicated and mixed
text of equal size."""

import json
import random
import statistics
from pathlib import Path
from typing import Any

import scipy.stats

from bench import curation_data, parts
from gptjax.config import curation as config

ARMS = ("raw", "filtered", "deduplicated", "mixed")
TRAIN_BYTES = 1_000_000  # of each arm
SEEDS = (0, 1, 2, 3, 4)
# 0.5M parameters, 600 steps of 2,048 tokens: each byte is read about three times.
MODEL = (
    "model.n_vocab=1024",
    "model.n_layers=2",
    "model.d_model=128",
    "model.n_ctx=64",
    "train.batch_tokens=2048",
    "train.total_tokens=1228800",
    "train.schedule.decay_tokens=1228800",
    "train.schedule.peak_lr=0.002",  # at 0.003 one run of 20 never recovered from a spike
    "train.schedule.warmup_tokens=163840",
    "loop.every_eval=600",
    "loop.every_save=600",
    "loop.every_sample=600",
)


def write_arms(documents: dict[str, list[str]], work: Path) -> dict[str, Any]:
    """Writes what each arm trains on, TRAIN_BYTES of each, and the text to validate on.

    The raw crawl has, of each ten pages, three that are clean, three copies of clean ones with up
    to a twentieth of the words replaced, and four that are noise. filtered: its pages through the
    quality classifier, with alpha 3, since at 9 too few are left; deduplicated: those through
    FuzzyDuplicates; mixed: 60% of these and 40% of the clean set, as rows of training. The text to
    validate on is clean, of the same books as the clean pages, and in no arm.
    """
    rng = random.Random(2)
    texts = [(name, text) for name in ("brown", "sotu", "shakespeare") for text in documents[name]]
    rng.shuffle(texts)
    clean = [text for _, text in texts]
    held_out, good, clean = clean[:150], clean[150:1150], clean[1150:]
    source = [*documents["wordnet_glosses"], *documents["moby_dick"]]
    words = " ".join(source[:50]).split()
    raw = [*clean]
    for text in rng.choices(clean[:400], k=len(clean)):  # each of some pages several times
        raw.append(curation_data.make_near_copy(text, rng.uniform(0.01, 0.05), words, rng))
    for n in range(4 * len(clean) // 3):
        kind = curation_data.NOISE[n % len(curation_data.NOISE)]
        raw.append(curation_data.make_noise(kind, rng.choice(source), rng))
    rng.shuffle(raw)
    folder = work / "arms"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("good", good), ("raw-crawl", raw), ("held-out", held_out)):
        parts.write_jsonl(folder / f"{name}.jsonl", [{"text": text} for text in rows])
    corpora = (
        config.Corpus(name="good", path=str(folder / "good.jsonl")),
        config.Corpus(name="raw", path=str(folder / "raw-crawl.jsonl")),
    )
    quality = config.QualityClassifier(
        positives=("good",), negatives=("raw",), corpora=("raw",), alpha=3.0
    )
    recipe = config.Curation(
        name="arms",
        corpora=corpora,
        stages=(quality, config.FuzzyDuplicates(bands=14, rows=8, similarity=0.7)),
        tokenizer=None,
    )
    totals = curation_data.run(recipe, work / "arms-out")
    by_arm = {
        "raw": list(curation_data.pages(totals[:1], "raw").values()),
        "filtered": list(curation_data.pages(totals[:2], "raw").values()),
        "deduplicated": list(curation_data.pages(totals, "raw").values()),
        "good": good,
    }
    sizes = {}
    for name, rows in by_arm.items():
        sizes[name] = sum(len(text.encode()) for text in rows)
        taken, n_bytes = [], 0
        for text in rows:
            if n_bytes < TRAIN_BYTES:
                taken.append({"text": text})
                n_bytes += len(text.encode())
        parts.write_jsonl(folder / f"{name}.jsonl", taken)
    return {"bytes": sizes, "kept": {total.name: total.ledgers["raw"].kept[0] for total in totals}}


def train_models(documents: dict[str, list[str]], work: Path) -> dict[str, Any]:
    """The validation loss, in bits per byte, of the same model on each arm with each seed. The
    vocabulary is that of all arms, trained on the raw crawl.
    """
    from gptjax import train
    from gptjax.data.tokenizers import byte_level_bpe

    result: dict[str, Any] = write_arms(documents, work)
    folder = work / "arms"
    crawl = (folder / "raw-crawl.jsonl").read_text().splitlines()[:4000]
    vocabulary = byte_level_bpe.train((json.loads(line)["text"] for line in crawl), 1024)
    (folder / "tokenizer.json").write_bytes(vocabulary.content)
    result["bits per byte"] = {}
    for arm in ARMS:
        sources = f"Text(path={str(folder / f'{arm}.jsonl')!r})"
        if arm == "mixed":
            sources = (
                f"(Text(path={str(folder / 'deduplicated.jsonl')!r},weight=0.6),"
                f"Text(path={str(folder / 'good.jsonl')!r},weight=0.4))"
            )
        losses = []
        for seed in SEEDS:
            directory = work / f"run-{arm}-{seed}"
            settings = (
                f"data.sources={sources}",
                f"data.validation=Separate(source=Text(path={str(folder / 'held-out.jsonl')!r}))",
                f"data.tokenizer=TrainedBpe(n_vocab=1024,path={str(folder / 'tokenizer.json')!r})",
                *MODEL,
                f"seed={seed}",
            )
            train.main(["--config=nano", f"--run_dir={directory}", *parts.sets(*settings)])
            lines = (directory / "metrics.jsonl").read_text().splitlines()
            last = [row for row in map(json.loads, lines) if "bits_per_byte" in row][-1]
            losses.append(last["bits_per_byte"])
        result["bits per byte"][arm] = losses
    result["mean"] = {arm: mean_interval(losses) for arm, losses in result["bits per byte"].items()}
    raw = result["bits per byte"]["raw"]
    result["less raw, by seed"] = {
        arm: mean_interval([loss - base for loss, base in zip(losses, raw, strict=True)])
        for arm, losses in result["bits per byte"].items()
        if arm != "raw"
    }
    return result


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Returns the mean and half of its 95% interval by Student's t."""
    factor = float(scipy.stats.t.ppf(0.975, len(values) - 1))
    return statistics.mean(values), factor * statistics.stdev(values) / len(values) ** 0.5
