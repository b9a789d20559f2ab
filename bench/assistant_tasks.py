"""Questions of bench.assistant: how they are worded, what the right answer is, and the reward.

The answers of TASKS can be computed from the question, so `reward`, which gptjax.rlhf calls, needs
no data. The others (FACTS, choose, define, translate) have their answers from files.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

QUESTION = re.compile(r"(?:.*<\|user\|>)?(.*?)(?:<\|end\|><\|assistant\|>)?", re.DOTALL)
PLACES = {"first": 0, "second": 1, "third": 2, "last": -1}


class Item(NamedTuple):
    """A question of a task."""

    task: str
    question: str
    answer: str


class Task(NamedTuple):
    """Wordings, whose fields are in braces, and the answer of the fields' values."""

    wordings: tuple[str, ...]
    answer: Callable[..., str]


def pluralize(word: str) -> str:
    """The regular plural."""
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


TASKS = {
    "add": Task(("What is {a} + {b}?", "Add {a} and {b}."), lambda a, b: str(int(a) + int(b))),
    "reverse": Task(
        ("Spell {word} backwards.", "What is {word} backwards?"), lambda word: word[::-1]
    ),
    "count": Task(
        ("How many letters has {word}?", "Count the letters of {word}."),
        lambda word: str(len(word)),
    ),
    "letter": Task(
        ("What is the {place} letter of {word}?", "Give me the {place} letter of {word}."),
        lambda place, word: word[PLACES[place]],
    ),
    "capitals": Task(("Write {word} in capitals.", "Put {word} in capitals."), str.upper),
    "plural": Task(("What is the plural of {word}?", "One {word}, two what?"), pluralize),
    "sort": Task(
        ("Sort {x}, {y}, {z}.", "Put {x}, {y}, {z} in order."),
        lambda x, y, z: ", ".join(sorted((x, y, z))),
    ),
}
# Of a fact (subject, answer), three wordings; one of each fact is held out.
FACTS = {
    "capital": (
        "What is the capital of {}?",
        "Which city is the capital of {}?",
        "Name the capital of {}.",
    ),
    "element": ("Which element is {}?", "What does the symbol {} stand for?", "Name element {}."),
    "opposite": ("What is the opposite of {}?", "Not {}, but what?", "Name the opposite of {}."),
    "female": ("What is a female {}?", "He is a {}. What is she?", "Name the female {}."),
    "adult": ("What does a {} become?", "Whose child is a {}?", "Name the parent of a {}."),
    "group": ("What is a group of {}?", "Many {} are a what?", "Name a group of {}."),
}
FACT_FILES = {
    "capital": ("africa", "asia", "europe", "america", "state", "province"),
    "element": ("elements",),
    "opposite": ("posneg",),
    "female": ("sexes",),
    "adult": ("babies",),
    "group": ("collectives",),
}
CHOOSE = "{gloss}: {x} or {y}?"
DEFINE = ("What does {} mean?", "Define {}.")
TRANSLATE = "Translate into French: {}"


# --- answers --------------------------------------------------------------------------------------


def wording_pattern(wording: str) -> re.Pattern:
    """Matches the questions of a wording, with a group for each of its fields."""
    parts = re.split(r"\{(\w+)\}", wording)
    return re.compile(
        "".join(f"(?P<{part}>\\w+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )


PATTERNS = [(task, wording_pattern(text)) for task in TASKS.values() for text in task.wordings]


def solve(question: str) -> str | None:
    """The answer of a question of TASKS; None of any other text."""
    for task, pattern in PATTERNS:
        if found := pattern.fullmatch(question):
            fields = found.groupdict()
            return task.answer(*fields.values()) if len(fields) == 1 else task.answer(**fields)
    return None


def is_right(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, but for spaces around it."""
    return answer.strip() == expected


def reward(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 for each right answer to the question of a chat prompt, else 0."""
    values = []
    for prompt, answer in zip(prompts, answers, strict=True):
        question = QUESTION.fullmatch(prompt)
        expected = solve(question[1]) if question else None
        if expected is None:
            raise ValueError(f"no question of TASKS: {prompt}")
        values.append(float(is_right(answer, expected)))
    return values


# --- questions ------------------------------------------------------------------------------------


def share(text: str) -> float:
    """A number from 0 to 1 by the hash of a text, which says on which side of a split it falls."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16) / 16**15


def word_question(rng: random.Random, task: str, words: Sequence[str]) -> Item:
    """A question of a task of TASKS about one of these words, or three of them."""
    match task:
        case "letter":
            fields = {"place": rng.choice(list(PLACES)), "word": rng.choice(words)}
        case "sort":
            fields = dict(zip("xyz", rng.sample(words, 3), strict=True))
        case _:
            fields = {"word": rng.choice(words)}
    return ask(rng, task, fields)


def sum_question(rng: random.Random, pairs: Sequence[tuple[int, int]]) -> Item:
    """A question about the sum of one of these pairs of numbers, in either order."""
    a, b = rng.sample(rng.choice(pairs), 2)
    return ask(rng, "add", {"a": str(a), "b": str(b)})


def ask(rng: random.Random, task: str, fields: dict[str, str]) -> Item:
    question = rng.choice(TASKS[task].wordings).format(**fields)
    answer = solve(question)
    assert answer is not None
    return Item(task, question, answer)


def fact_question(rng: random.Random, kind: str, fact: tuple[str, str], held_out: bool) -> Item:
    """A question about a fact, in the wording that is held out for this fact, or another one."""
    wordings = FACTS[kind]
    number = int(3 * share("|".join(fact)))
    if not held_out:
        number = (number + rng.choice((1, 2))) % 3
    return Item("quiz", wordings[number].format(fact[0]), fact[1])


# --- the files ------------------------------------------------------------------------------------


def plain(pattern: str) -> str:
    """The first text that a pattern of bsdgames' quiz stands for: {} may be left out, [|] and | are
    alternatives."""
    while (shorter := re.sub(r"\{[^{}]*\}", "", pattern)) != pattern:
        pattern = shorter
    while (shorter := re.sub(r"\[([^\[\]|]*)[^\[\]]*\]", r"\1", pattern)) != pattern:
        pattern = shorter
    return pattern.split("|")[0].strip()


def read_facts(kind: str, lines: Iterable[str]) -> list[tuple[str, str]]:
    """(subject, answer) of the lines of a file of bsdgames' quiz."""
    facts = []
    for line in lines:
        fields = line.rstrip("\n").split(":")
        answer = fields[3 if kind == "element" else 1]
        facts.append((plain(fields[0]), plain(answer)))
    return [fact for fact in facts if all(fact)]


def read_gloss(line: str) -> tuple[str, str] | None:
    """(word, gloss without examples) of a line of WordNet's glosses; None where it begins with no
    single word."""
    names, _, gloss = line.partition(": ")
    name, gloss = names.split(", ")[0], gloss.split(";")[0].strip()
    return (name, gloss) if re.fullmatch("[a-z]+", name) and gloss else None
