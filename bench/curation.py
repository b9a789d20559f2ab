"""Does curation do what it should? The quality classifier, near-duplicates, and what they change
for a model; docs/results/curation.md has the results.

    python -m bench.curation --text=DIR --work=DIR --out=docs/results [--only=PART,...]

Parts: classifier (AUC, the Pareto rule), duplicates (recall against theory, precision), models (the
same small model on raw, filtered, deduplicated and mixed text). DIR has brown, moby_dick,
shakespeare, sotu and wordnet_glosses as .txt.xz or .jsonl.xz. A part that is finished in --work is
not computed again.
"""

import argparse
import dataclasses
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from bench import curation_data, curation_models, parts
from gptjax.config import curation as config
from gptjax.config import parse
from gptjax.configs import curation as recipes
from gptjax.curation import classifier, features, minhash, report_page
from gptjax.report import loss_plot

BLUE, GREEN = "#4C78A8", "#59A14F"
SIMILARITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PLANTED = 400  # near copies at each similarity


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=parse.path_argument, required=True)
    parser.add_argument("--work", type=parse.path_argument, required=True)
    parser.add_argument("--out", type=parse.path_argument, required=True)
    parser.add_argument("--only", default="", help="parts, separated by commas")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    documents = curation_data.read_documents(args.text)
    results = parts.run_parts(
        args.work,
        {
            "classifier": lambda: measure_classifier(documents, args.work),
            "duplicates": lambda: measure_duplicates(documents),
            "models": lambda: curation_models.train_models(documents, args.work),
        },
        [name for name in args.only.split(",") if name],
    )
    for name, part in results.items():
        print(f"{name}: {json.dumps(part)}")
    if "classifier" in results:
        picture = report_page.plot_keep_rate(results["classifier"]["notes"], 9.0)
        (args.out / "curation-keep-rate.png").write_bytes(picture)
    if "duplicates" in results:
        plot_duplicates(results["duplicates"], args.out / "curation-duplicates.png")
    (args.out / "curation.json").write_text(parts.as_json(results))


# --- the classifier -------------------------------------------------------------------------------


def write_crawl(documents: dict[str, list[str]], folder: Path) -> list[str]:
    """Writes a clean data set, of half of Brown, Moby-Dick and the speeches, and a raw one: of each
    ten pages two are of the other half and eight are noise, in equal numbers of each kind, made of
    Brown, Shakespeare and WordNet's glosses. Returns the kind of each raw page."""
    rng = random.Random(0)
    texts = [text for name in ("brown", "moby_dick", "sotu") for text in documents[name]]
    rng.shuffle(texts)
    good, clean = texts[::2], texts[1::2]
    source = [*documents["wordnet_glosses"], *documents["brown"], *documents["shakespeare"]]
    raw = [("clean", text) for text in clean]
    for n in range(4 * len(clean)):
        kind = curation_data.NOISE[n % len(curation_data.NOISE)]
        raw.append((kind, curation_data.make_noise(kind, rng.choice(source), rng)))
    rng.shuffle(raw)
    folder.mkdir(parents=True, exist_ok=True)
    parts.write_jsonl(folder / "good.jsonl", [{"text": text} for text in good])
    parts.write_jsonl(folder / "raw.jsonl", [{"text": text} for _, text in raw])
    return [kind for kind, _ in raw]


def measure_classifier(documents: dict[str, list[str]], work: Path) -> dict[str, Any]:
    """The AUC on held-out documents, and the share of pages kept by score and kind."""
    kinds = write_crawl(documents, work / "crawl")
    stage = next(s for s in recipes.gpt3().stages if isinstance(s, config.QualityClassifier))
    stage = dataclasses.replace(stage, positives=("good",), negatives=("raw",), corpora=("raw",))
    recipe = config.Curation(
        name="classifier",
        corpora=(
            config.Corpus(name="good", path=str(work / "crawl" / "good.jsonl")),
            config.Corpus(name="raw", path=str(work / "crawl" / "raw.jsonl")),
        ),
        stages=(stage,),
        tokenizer=None,
    )
    out = work / "classifier-out"
    totals = curation_data.run(recipe, out)
    model = classifier.Classifier.load(out / "01-quality_classifier" / "learned" / "model.npy")
    kept = curation_data.pages(totals, "raw")
    every = curation_data.pages(totals[:1], "raw")
    rows = []
    for (page_id, text), kind in zip(every.items(), kinds, strict=True):
        score = model.score(*features.hashing_tf(text, stage.features))
        rows.append((kind, score, page_id in kept))
    scores = np.array([score for _, score, _ in rows])
    is_kept = np.array([kept for *_, kept in rows])
    expected = classifier.keep_probability(scores, stage.alpha)
    groups = []
    for low in np.arange(0, 1, 0.1):
        inside = (scores >= low) & (scores < low + 0.1 + 1e-9 * (low > 0.85))
        if inside.sum():
            groups.append(
                {
                    "score": float(scores[inside].mean()),
                    "pages": int(inside.sum()),
                    "kept": int(is_kept[inside].sum()),
                    "expected": float(expected[inside].sum()),
                    "p": two_sided(int(is_kept[inside].sum()), expected[inside].tolist()),
                }
            )
    by_kind = {
        kind: {
            "pages": kinds.count(kind),
            "mean score": statistics.fmean(s for k, s, _ in rows if k == kind),
            "kept": sum(kept for k, _, kept in rows if k == kind),
            "AUC": classifier.area_under_roc(
                scores[np.array(kinds) == "clean"], scores[np.array(kinds) == kind]
            ),
        }
        for kind in ("clean", *curation_data.NOISE)
    }
    return {
        "auc": model.auc,
        "documents": model.documents,
        "groups": groups,
        "kinds": by_kind,
        "notes": totals[-1].ledger.notes,
    }


def two_sided(successes: int, probabilities: Sequence[float]) -> float:
    """The probability, at most 1, of as many successes or a count that is as unlikely: twice the
    smaller tail of the Poisson binomial distribution."""
    law = scipy.stats.poisson_binom(probabilities)
    return float(min(1.0, 2 * min(law.cdf(successes), law.sf(successes - 1))))


# --- near-duplicates ------------------------------------------------------------------------------


def measure_duplicates(documents: dict[str, list[str]]) -> dict[str, Any]:
    """Recall of planted near copies by their similarity, for the bands of both recipes, and the
    precision of what is reported."""
    rng = random.Random(1)
    originals = [text for texts in documents.values() for text in texts]
    rng.shuffle(originals)
    words = " ".join(originals[-50:]).split()
    texts: list[str] = []
    planted: list[tuple[int, int, float]] = []  # original, copy, similarity
    for target in SIMILARITIES:
        for _ in range(PLANTED):
            original = originals.pop()
            # a span of f of the words leaves about (1 - f) of the shingles: s = (1 - f) / (1 + f)
            share = (1 - target) / (1 + target)
            copy = curation_data.make_near_copy(original, share, words, rng)
            a, b = (curation_data.shingles(text, 5) for text in (original, copy))
            planted.append((len(texts), len(texts) + 1, len(a & b) / len(a | b)))
            texts += [original, copy]
    result = {}
    for name, stages in (("gpt3", recipes.gpt3().stages), ("web", recipes.web().stages)):
        rule = next(s for s in stages if isinstance(s, config.FuzzyDuplicates))
        sets, ends = minhash.shingle_sets(texts, rule.shingle)
        keys = minhash.band_keys(sets, ends, rule)
        curve = []
        for low in np.arange(0, 1, 0.1):
            inside = [pair for pair in planted if low <= pair[2] < low + 0.1]
            if not inside:
                continue
            found = sum(bool((keys[a] == keys[b]).any()) for a, b, _ in inside)
            theory = [1 - (1 - s**rule.rows) ** rule.bands for *_, s in inside]
            curve.append(
                {
                    "similarity": statistics.fmean(s for *_, s in inside),
                    "pairs": len(inside),
                    "found": found,
                    "expected": sum(theory),
                    "p": two_sided(found, theory),
                }
            )
        pairs = similar_pairs(sets, ends, keys, rule)
        exact = [
            len(a & b) / len(a | b)
            for i, j in pairs.tolist()
            for a, b in [[curation_data.shingles(texts[n], 5) for n in (i, j)]]
        ]
        is_right = [similarity >= rule.similarity - 1e-9 for similarity in exact]
        result[name] = {
            "bands": rule.bands,
            "rows": rule.rows,
            "similarity": rule.similarity,
            "curve": curve,
            "reported": len(exact),
            "right": sum(is_right),
            "not planted": len({(i, j) for i, j in pairs.tolist()} - {p[:2] for p in planted}),
        }
    return result


def similar_pairs(
    sets: np.ndarray, ends: np.ndarray, keys: np.ndarray, rule: config.FuzzyDuplicates
) -> np.ndarray:
    """The pairs that are reported, of all bands."""
    by_text = np.split(sets, ends[:-1])
    found = [np.zeros((0, 2), np.int64)]
    for band in range(rule.bands):
        order = np.argsort(keys[:, band], kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order, band])) + 1):
            if len(group) > 1:
                group = np.sort(group)
                sets_of = [by_text[n] for n in group]
                found += minhash.compare_group(group, sets_of, rule.similarity)
    return np.unique(np.concatenate(found), axis=0)


def plot_duplicates(result: dict[str, Any], path: Path) -> None:
    """Draws recall by similarity against the curves of theory."""
    figure = loss_plot.new_figure(9, 4)
    axes = figure.subplots()
    s = np.linspace(0, 1, 200)
    for name, color in (("gpt3", BLUE), ("web", GREEN)):
        part = result[name]
        label = f"{name}: {part['bands']} bands of {part['rows']}"
        axes.plot(s, 1 - (1 - s ** part["rows"]) ** part["bands"], color=color, label=label)
        for point in part["curve"]:
            rate = point["found"] / point["pairs"]
            error = math.sqrt(max(rate * (1 - rate), 1 / point["pairs"]) / point["pairs"])
            axes.errorbar(
                point["similarity"], rate, yerr=2 * error, fmt="o", ms=5, color=color, capsize=3
            )
    axes.set_xlabel("Jaccard similarity of the planted pairs", color=loss_plot.INK)
    axes.set_ylabel("share of pairs found", color=loss_plot.INK)
    axes.grid(True, color=loss_plot.FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
