"""Four small classification tasks of files that are available offline, for bench/gpt1.py: sentiment
of films, entailment by definitions, sources of passages, and a quiz."""

import json
import lzma
import random
import re
from pathlib import Path

TRAIN, DEV = 2000, 800


def movies(rng: random.Random, data: Path) -> list[dict]:
    """Sentences of film reviews (Hutto and Gilbert 2014), positive if the mean of 20 ratings is
    above 0.
    """
    lines = (
        (data / "labelled/sentiment_vader/movieReviewSnippets_GroundTruth.txt")
        .read_text(errors="replace")
        .splitlines()
    )
    rated = [(float(rating), text) for _, rating, text in (line.split("\t") for line in lines)]
    return [{"sentence": text, "label": int(rating > 0)} for rating, text in rated if rating]


def glosses(rng: random.Random, data: Path) -> list[dict]:
    """Does WordNet's definition entail the word? The word is its own or another's."""
    lines = [
        line.split(": ", 1)
        for line in _read_text(data, "wordnet_glosses.txt").splitlines()
        if ": " in line
    ]
    lines = [(word, gloss) for word, gloss in lines if len(gloss) < 120]
    examples = []
    for word, gloss in rng.sample(lines, 2 * (TRAIN + DEV)):
        other = rng.random() < 0.5
        hypothesis = rng.choice(lines)[0] if other else word
        examples.append(
            {
                "premise": gloss,
                "hypothesis": hypothesis,
                "label": "not_entailment" if other else "entailment",
            }
        )
    return examples


def sources(rng: random.Random, data: Path) -> list[dict]:
    """Are two passages of 25 words from the same source: Brown, Moby Dick, Shakespeare, State of
    the Union?
    """
    speeches = " ".join(
        json.loads(line)["text"] for line in _read_text(data, "sotu.jsonl").splitlines()
    )
    words = [
        _read_text(data, f"{name}.txt").split() for name in ("brown", "moby_dick", "shakespeare")
    ] + [speeches.split()]

    def passage(source):
        start = rng.randrange(len(source) - 25)
        return " ".join(source[start : start + 25])

    examples = []
    for _ in range(2 * (TRAIN + DEV)):
        same = rng.random() < 0.5
        one, other = [rng.choice(words)] * 2 if same else rng.sample(words, 2)
        examples.append({"one": passage(one), "other": passage(other), "label": int(same)})
    return examples


def quiz(rng: random.Random, data: Path) -> list[dict]:
    """bsdgames' quiz: a question and four answers, with wrong ones from the same list."""
    examples = []
    for file in sorted((data / "labelled/quiz_bsdgames").iterdir()):
        rows = [
            line.split(":")
            for line in file.read_text(errors="replace").splitlines()
            if line.count(":") >= 1
        ]
        # One direction only: the other would reveal the answers of the test set.
        pairs = [(_strip_markup(row[0]), _strip_markup(row[1])) for row in rows]
        pairs = [(question, answer) for question, answer in pairs if question and answer]
        answers = sorted({answer for _, answer in pairs})
        for question, answer in pairs if len(answers) > 8 else []:
            others = [
                other for other in answers if other != answer and (question, other) not in pairs
            ]
            options = [answer, *rng.sample(others, 3)]
            rng.shuffle(options)
            examples.append(
                {"question": question, "answers": options, "label": "ABCD"[options.index(answer)]}
            )
    return examples


def _strip_markup(text: str) -> str:
    return re.sub(r"[\\{}\[\]]|.\x08", "", text.split("|")[0]).strip()


def _read_text(data: Path, name: str) -> str:
    return lzma.open(data / "text" / f"{name}.xz", "rt", errors="replace").read()


def write_splits(task: str, data: Path, folder: Path) -> list[str]:
    """Writes the train, dev and test files of a task, the same for all runs; returns the arguments
    for gptjax.finetune.
    """
    arguments = []
    rng = random.Random(task)
    rows = {"movies": movies, "glosses": glosses, "sources": sources, "quiz": quiz}[task](rng, data)
    rng.shuffle(rows)
    n = min(DEV, len(rows) // 5)
    for split, split_rows in {
        "dev": rows[:n],
        "test": rows[n : 2 * n],
        "train": rows[2 * n : 2 * n + TRAIN],
    }.items():
        path = folder / f"{task}_{split}.jsonl"
        path.write_text("".join(json.dumps(example) + "\n" for example in split_rows))
        arguments += ["--set", f"task.{split}={path}"]
    return arguments
