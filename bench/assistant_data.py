"""The files of bench.assistant: text to pre-train on, conversations, prompts, held-out questions.

A word, a pair of numbers, a fact or a sentence falls by its hash on the side of training or on that
of the held-out questions, so that no held-out question asks about a word of a training question.
"""

import collections
import lzma
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import assistant_tasks as tasks
from bench.assistant_tasks import Item
from bench.parts import write_jsonl

HELD_OUT = 0.15  # share of what questions are about
MAX_NUMBER = 50
WORD = re.compile("[a-z]{3,7}")
MAX_GLOSS, MAX_SENTENCE = 50, 60  # characters
N_TRAIN = {
    "add": 8000,
    "reverse": 8000,
    "count": 4000,
    "letter": 6000,
    "capitals": 4000,
    "plural": 4000,
    "sort": 6000,
    "choose": 600,
    "quiz": 2500,
    "define": 150,
    "translate": 100,
}
N_HELD_OUT = 150  # of each task; of define and translate, whose answers are long:
N_LONG = 75
N_RL = 1400
N_SOLVED = 8  # of each task, for prompts of solved questions
TWO_TURNS = 0.25  # share of the conversations that have two questions


class Side(NamedTuple):
    """What the questions of one side are about."""

    words: list[str]
    plurals: list[str]  # words whose regular plural the corpus has
    pairs: list[tuple[int, int]]
    glosses: dict[str, str]
    sentences: list[tuple[str, str]]
    facts: list[tuple[str, tuple[str, str]]]


def read_lines(path: Path) -> list[str]:
    """Lines of a text, which may be compressed by xz."""
    opener: Callable[..., Any] = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def split(data: Path) -> tuple[Side, Side]:
    """(training, held out). data: a folder with text/, labelled/quiz_bsdgames/ and translation/."""
    brown = read_lines(data / "text/brown.txt.xz")
    counts = collections.Counter(re.findall("[a-z]+", " ".join(brown)))
    glosses: dict[str, str] = {}
    names = set()
    for line in read_lines(data / "text/wordnet_glosses.txt.xz"):
        if entry := tasks.read_gloss(line):
            names.add(entry[0])
            if counts[entry[0]] and len(entry[1]) <= MAX_GLOSS:
                glosses.setdefault(*entry)
    words = [word for word in sorted(names) if WORD.fullmatch(word) and counts[word] > 1]
    plurals = [word for word in words if counts[tasks.pluralize(word)] > 1]
    pairs = [(a, b) for a in range(MAX_NUMBER + 1) for b in range(a + 1)]
    sentences = {}
    for path in sorted((data / "translation").glob("*.en-fr.tsv.xz")):
        for line in read_lines(path):
            english, french = line.split("\t")[-2:]
            if max(len(english), len(french)) <= MAX_SENTENCE:
                sentences.setdefault(english, french)
    facts: dict[tuple[str, str], str] = {}
    for kind, files in tasks.FACT_FILES.items():
        for name in files:
            lines = read_lines(data / "labelled/quiz_bsdgames" / name)
            for subject, answer in tasks.read_facts(kind, lines):
                facts.setdefault((kind, subject), answer)

    def side(is_mine: Callable[[str], bool]) -> Side:
        return Side(
            [word for word in words if is_mine(word)],
            [word for word in plurals if is_mine(word)],
            [pair for pair in pairs if is_mine(str(pair))],
            {word: gloss for word, gloss in glosses.items() if is_mine(word)},
            [pair for pair in sentences.items() if is_mine(pair[0])],
            [
                (kind, (subject, a))
                for (kind, subject), a in facts.items()
                if is_mine(kind + subject)
            ],
        )

    return side(lambda key: not is_held_out(key)), side(is_held_out)


def is_held_out(key: str) -> bool:
    return tasks.share(key) < HELD_OUT


def questions(rng: random.Random, task: str, side: Side, n: int) -> list[Item]:
    """n questions of a task; those of define and translate differ, others may come twice."""
    match task:
        case "add":
            return [tasks.sum_question(rng, side.pairs) for _ in range(n)]
        case "choose":
            return [choose_question(rng, side.glosses) for _ in range(n)]
        case "define":
            chosen = rng.sample(sorted(side.glosses.items()), n)
            wording = rng.choice
            return [Item(task, wording(tasks.DEFINE).format(w), gloss) for w, gloss in chosen]
        case "translate":
            chosen = rng.sample(side.sentences, n)
            return [Item(task, tasks.TRANSLATE.format(en), fr) for en, fr in chosen]
        case "quiz":
            chosen = rng.choices(side.facts, k=n)
            return [tasks.fact_question(rng, kind, fact, False) for kind, fact in chosen]
    words = side.plurals if task == "plural" else side.words
    return [tasks.word_question(rng, task, words) for _ in range(n)]


def choose_question(rng: random.Random, glosses: dict[str, str]) -> Item:
    """Which of two words has this gloss?"""
    word, other = rng.sample(sorted(glosses), 2)
    x, y = (word, other) if rng.random() < 0.5 else (other, word)
    return Item("choose", tasks.CHOOSE.format(gloss=glosses[word], x=x, y=y), word)


def held_out_questions(rng: random.Random, train: Side, held_out: Side) -> list[Item]:
    """Different questions of each task. quiz: facts of the training side, each in the wording that
    is held out for it; quiz_unknown: facts of the other side."""
    items = []
    for task in N_TRAIN:
        if task == "quiz":
            facts = rng.sample(train.facts, N_HELD_OUT)
            items += [tasks.fact_question(rng, kind, fact, True) for kind, fact in facts]
            for kind, fact in held_out.facts:
                item = tasks.fact_question(rng, kind, fact, False)
                items.append(item._replace(task="quiz_unknown"))
        else:
            n = N_LONG if task in ("define", "translate") else N_HELD_OUT
            # More than are needed, so that so many different ones remain.
            found = questions(rng, task, held_out, n if n == N_LONG else 2 * n)
            items += list({item.question: item for item in found}.values())[:n]
    return items


def conversations(rng: random.Random, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Conversations of one or two questions, in random order."""
    items, rows = rng.sample(items, len(items)), []
    while items:
        n = 2 if rng.random() < TWO_TURNS else 1
        rows.append({"messages": [m for item in items[:n] for m in messages(item)]})
        items = items[n:]
    return rows


def messages(item: Item) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": item.question},
        {"role": "assistant", "content": item.answer},
    ]


def check_disjoint(train: Sequence[Item], held_out: Sequence[Item]) -> None:
    """Raises AssertionError if a held-out question is a training question."""
    both = {item.question for item in train} & {item.question for item in held_out}
    assert not both, f"held-out questions in training: {sorted(both)[:3]}"


def write(data: Path, work: Path) -> dict[str, Any]:
    """Writes lm.jsonl, train.jsonl, solved.jsonl, rl.jsonl (prompts with their answers) and
    held_out.jsonl."""
    rng = random.Random(0)
    train, held_out = split(data)
    items = [item for task, n in N_TRAIN.items() for item in questions(rng, task, train, n)]
    solved = [item for task in N_TRAIN for item in questions(rng, task, train, N_SOLVED)]
    rl = [
        item
        for task in tasks.TASKS
        for item in questions(rng, task, train, N_RL // len(tasks.TASKS))
    ]
    tests = held_out_questions(rng, train, held_out)
    check_disjoint([*items, *solved, *rl], tests)
    write_jsonl(work / "train.jsonl", conversations(rng, items))
    write_jsonl(work / "rl.jsonl", [{"messages": messages(item)} for item in rl])
    write_jsonl(work / "solved.jsonl", [item._asdict() for item in solved])
    write_jsonl(work / "held_out.jsonl", [item._asdict() for item in tests])
    brown = read_lines(data / "text/brown.txt.xz")
    texts = ["\n".join(brown[i : i + 20]) for i in range(0, len(brown), 20)]
    for line in read_lines(data / "text/wordnet_glosses.txt.xz"):
        entry = tasks.read_gloss(line)
        if entry and not is_held_out(entry[0]):
            texts.append(line)
    rng.shuffle(texts)
    write_jsonl(work / "lm.jsonl", [{"text": text} for text in texts])
    n_bytes = sum(len(item.question) + len(item.answer) + 4 for item in items)
    return {
        "questions": len(items),
        "different": len({item.question for item in items}),
        "held_out": dict(collections.Counter(item.task for item in tests)),
        "bytes": n_bytes,
    }
