"""GPT-3's five tasks of scrambled words (section 3.9.2). They are made from the seed and a list of
words: protocol.words, or the system's.

prompt_variant=paper: words of 5 to 14 letters ("more than 4 characters and less than 15"), but 6 to
14 in mid_word_2_anagrams [chosen: of five letters the inner one has no other order, so each would
be answered by a copy]. prompt_variant=released: as OpenAI's files are (github.com/openai/gpt-3,
data/, counted): 6 to 15 letters, and 5 to 15 in mid_word_1_anagrams. In both what is put is never
the word itself where another is possible. Where none is, the word is left out of CL and A1, and
stays in A2, as 193 of OpenAI's 10,000 do, each of one inner letter ("cheese"): a model that copies
gets 1.9% there. A word that reads the same backwards stays, too. A random insertion puts exactly
one character of ` ./!` between every two letters. As many words as the list has, up to 10,000.

Not said [chosen]: the answer is written by beam search up to the end of the line, and must be the
word, without the space around it. Examples are joined by one newline, with which the released
contexts begin; demonstrations come from the set itself, there being one."""

import dataclasses
import random
from collections.abc import Callable, Iterator

from gptjax.config.evaluation import Beam, Protocol
from gptjax.evals import scorers, word_list
from gptjax.evals.task import Item, PaperScores, Row, Task, gpt3_scores, prompt_variant

MAX_WORDS = 10_000
PROTOCOL = Protocol(
    shots=100,
    method=Beam(n_tokens=20),
    metric="exact_match",
    description="Please unscramble the letters into a word, and write that word:",
    separator="\n",
)
ScrambleFn = Callable[[str, random.Random], str]


def items(row: Row, protocol: Protocol, shots: int) -> list[Item]:
    word = row["word"]
    return [
        Item(
            id=row["id"],
            contexts=(f"{row['scrambled']} =",),
            completions=(f" {word}",),
            answers=(word,),
        )
    ]


def cycle_letters(word: str, rng: random.Random) -> str:
    """Rotated by 1 to len - 1 letters, to something else: never a word of one letter alone."""
    rotations = [word[i:] + word[:i] for i in range(1, len(word))]
    return rng.choice([rotation for rotation in rotations if rotation != word] or [word])


def shuffle_middle(n_fixed: int) -> ScrambleFn:
    """All letters but the first and the last n_fixed in another order; the word itself only
    where there is no other."""

    def scramble(word: str, rng: random.Random) -> str:
        inner = list(word[n_fixed:-n_fixed])
        while True:
            rng.shuffle(inner)
            result = word[:n_fixed] + "".join(inner) + word[-n_fixed:]
            if result != word or len(set(inner)) < 2:
                return result

    return scramble


def insert_characters(word: str, rng: random.Random) -> str:
    """One of space . / ! between every two letters."""
    return "".join(letter + rng.choice(" ./!") for letter in word[:-1]) + word[-1]


def reverse(word: str, rng: random.Random) -> str:
    return word[::-1]


def make_task(
    name: str,
    summary: str,
    scramble: ScrambleFn,
    keep_unchanged: bool,
    min_lengths: tuple[int, int],
    paper_scores: tuple[PaperScores, ...],
) -> Task:
    """keep_unchanged: whether words stay that scrambling cannot change; min_lengths: letters of a
    word, by the paper and of the released file."""

    def make_rows(protocol: Protocol, seed: int, split: str) -> Iterator[Row]:
        variant = prompt_variant(protocol, "paper", "released")
        min_length, max_length = (
            (min_lengths[0], 14) if variant == "paper" else (min_lengths[1], 15)
        )
        rng = random.Random(f"{name} {variant} {split} {seed}")
        number = 0
        for word in word_list.load_words(protocol.words, min_length, max_length, MAX_WORDS, seed):
            scrambled = scramble(word, rng)
            if keep_unchanged or scrambled != word:
                yield {"id": str(number), "word": word, "scrambled": scrambled}
                number += 1

    return Task(
        name=name,
        summary=summary,
        protocol=PROTOCOL,
        items=items,
        schema={"scrambled": "text", "word": "text"},
        example={"id": "0", "word": "casino", "scrambled": scramble("casino", random.Random(2))},
        splits=("test", "test"),
        make_rows=make_rows,
        data_hint=f"it is made from a list of words, words=FILE; {word_list.NORVIG_HINT}; "
        "OpenAI's own instances are data/ of github.com/openai/gpt-3",
        score=scorers.plain_text,
        scorer_source="GPT-3 section 3.9.2: the word must be written",
        paper_scores=paper_scores,
        conventions={"released": dataclasses.replace(PROTOCOL, prompt_variant="released")},
    )


# Table H.1, of lower confidence (task.gpt3_scores); the 175B column was checked.
TASKS = (
    make_task(
        "cycle_letters_in_word",
        "a word whose letters are rotated (CL)",
        cycle_letters,
        False,
        (5, 6),
        gpt3_scores(
            "exact_match",
            ".62/.71/2.85/0/.63/1.35/2.58/3.66",
            "1.67/4.36/5.68/6.46/6.25/9.41/15.1/21.7",
            "4.63/9.27/10.7/14.5/16.7/21.9/27.7/37.9",
        ),
    ),
    make_task(
        "mid_word_1_anagrams",
        "a word whose letters are shuffled, all but the first and the last (A1)",
        shuffle_middle(1),
        False,
        (5, 5),
        gpt3_scores("exact_match", "2.28", "8.62", ".50/1.27/2.13/3.05/3.81/5.49/8.38/15.1"),
    ),
    make_task(
        "mid_word_2_anagrams",
        "a word whose letters are shuffled, all but the first two and the last two (A2)",
        shuffle_middle(2),
        True,
        (6, 6),
        gpt3_scores("exact_match", "8.91", "25.9", "1.94/4.80/7.59/9.87/12.6/18.9/25.6/39.7"),
    ),
    make_task(
        "random_insertion_in_word",
        "a word with a space or a punctuation mark between every two letters (RI)",
        insert_characters,
        True,
        (5, 6),
        gpt3_scores("exact_match", "8.26", "45.4", ".11/.28/2.19/4.18/6.61/11.0/27.3/67.2"),
    ),
    make_task(
        "reversed_words",
        "a word written backwards (RW)",
        reverse,
        True,
        (5, 6),
        gpt3_scores("exact_match", ".09", ".48", "0/.05/0/.17/.24/.30/.42/.44"),
    ),
)
