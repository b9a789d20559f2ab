"""Preferences from files: answers to one prompt, from the best to the worst, of which some may be
equally good."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax.config import parse
from gptjax.data import conversations
from gptjax.data.conversations import Encoded, Message, Template, Unusable
from gptjax.data.tokenizers import build

TIE_NOTE = "of equally good answers not learned"
FORM_COLUMNS = {  # form -> the columns it is known by
    "ranked": ("prompt", "completions"),
    "pairs": ("prompt", "chosen", "rejected"),
    "hh": ("chosen", "rejected"),
}


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Answers to one prompt. answers: whole conversations, which differ in the last turn; of plain
    text a turn of the user and one of the assistant. ranks: of each, 0 for the best, the same for
    those that are equally good. ended: of each, whether a plain text ends with it."""

    answers: list[list[Message]]
    ranks: list[int]
    ended: list[bool]

    @property
    def prompt(self) -> list[Message]:
        """What stands before the first answer."""
        return self.answers[0][:-1]

    def prompt_text(self) -> str:
        """Returns a text of the prompt: all answers to it are for training, or all to validate."""
        return repr(self.prompt)

    @property
    def n_ties(self) -> int:
        """The number of pairs that are equally good."""
        return math.comb(len(self.ranks), 2) - len(self.pairs())

    def pairs(self) -> list[tuple[int, int]]:
        """Returns the indices (the better, the worse) of all answers of different ranks, those of
        the best first."""
        order = sorted(range(len(self.ranks)), key=self.ranks.__getitem__)
        pairs = itertools.combinations(order, 2)
        return [(i, j) for i, j in pairs if self.ranks[i] < self.ranks[j]]


def read(path: str, form: str) -> Iterator[tuple[str, Ranking]]:
    """Yields (where it stands, ranking) for each prompt of the .jsonl and .parquet files that
    `path` names.

    form: of config.chat.Rankings. Raises ValueError, in one line, for a file that is missing or
    damaged, for a form that cannot be recognized, and for a line that is not of the form."""
    for where, row in conversations.read_rows(path):
        if form == "auto":
            form = recognize(where, row)
        yield where, rank(where, row, form)


def encode_pairs(
    tokenizer: build.Tokenizer, template: Template | None, ranking: Ranking, n_ctx: int
) -> list[tuple[Encoded, Encoded]]:
    """Returns each pair (the better, the worse) of a prompt's answers (`encode_answer`). Raises
    Unusable if `check` does, and if an answer is longer than n_ctx + 1 ids."""
    check(ranking)
    encoded = []
    for messages, ended in zip(ranking.answers, ranking.ended, strict=True):
        one = encode_answer(tokenizer, template, messages, ended)
        if len(one.ids) > n_ctx + 1:
            raise Unusable(f"longer than the context of {n_ctx:,} tokens")
        encoded.append(one)
    pairs = [(encoded[i], encoded[j]) for i, j in ranking.pairs()]
    if any(better.ids == worse.ids for better, worse in pairs):
        raise Unusable("two of the answers are the same")
    return pairs


def check(ranking: Ranking) -> None:
    """Raises Unusable unless at least two answers to one prompt differ in rank."""
    for messages in ranking.answers:
        if messages[:-1] != ranking.prompt or messages[-1]["role"] != "assistant":
            raise Unusable("the answers do not belong to one prompt")
    if len(ranking.answers) < 2:
        raise Unusable("a single answer")
    if not ranking.pairs():
        raise Unusable("all answers are equally good")


def encode_prompt(
    tokenizer: build.Tokenizer, template: Template | None, messages: Sequence[Message]
) -> list[int]:
    """Returns the ids of a prompt before its answer: written by the template, or without one those
    of the text of its single message."""
    if template is None:
        (message,) = messages
        return build.encode_prompt(tokenizer, message["content"])
    return template.encode(messages, add_generation_prompt=True)


def end_token(tokenizer: build.Tokenizer, template: Template | None) -> int | None:
    """Returns the id of the token that ends an answer; None if the tokenizer has none."""
    return tokenizer.end_of_text if template is None else template.end_of_turn_id


def encode_answer(
    tokenizer: build.Tokenizer,
    template: Template | None,
    messages: Sequence[Message],
    ended: bool = False,
) -> Encoded:
    """Returns a prompt and its answer, the last message, as a model reads them that has sampled the
    answer after `encode_prompt` of the prompt; learned is the answer.

    With a template they end with the token that ends the answer, which is learned too. Without, the
    two texts are encoded one by one, and the end of text follows if `ended`. Raises Unusable as
    conversations.encode; for plain text if the answer is empty or cannot end."""
    if template is not None:
        if ended:
            raise Unusable("an answer with `ended`, which only plain text has")
        whole = conversations.encode(template, messages)
        stop = len(whole.ids) - whole.learned[::-1].index(True)
        n_prompt = len(encode_prompt(tokenizer, template, messages[:-1]))
        return _answer(whole.ids[:n_prompt], whole.ids[n_prompt:stop])
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise Unusable("more than a prompt and an answer, which plain text has")
    answer_ids = tokenizer.encode(messages[1]["content"])
    if ended and tokenizer.end_of_text is None:
        raise Unusable("ended, and the tokenizer has no token for that")
    if ended:
        answer_ids = [*answer_ids, tokenizer.end_of_text]
    if not answer_ids:
        raise Unusable("an empty answer")
    return _answer(encode_prompt(tokenizer, None, messages[:1]), answer_ids)


def _answer(prompt_ids: list[int], answer_ids: list[int]) -> Encoded:
    return Encoded([*prompt_ids, *answer_ids], [False] * len(prompt_ids) + [True] * len(answer_ids))


def recognize(where: str, row: dict[str, Any]) -> str:
    """Returns the form of a row, by its columns. Raises ValueError if it is of none."""
    for form, columns in FORM_COLUMNS.items():
        if all(column in row for column in columns):
            if form == "hh" and not isinstance(row["chosen"], str):
                return "pairs"
            return form
    forms = "; ".join(f"{form}: {' and '.join(columns)}" for form, columns in FORM_COLUMNS.items())
    raise ValueError(
        f"{where} has {', '.join(row) or 'nothing'}, which is no form of preferences ({forms})"
    )


def rank(where: str, row: dict[str, Any], form: str) -> Ranking:
    """Returns the ranking of a row. Raises ValueError if it is not of the form."""
    needed = ("chosen", "rejected") if form != "ranked" else FORM_COLUMNS[form]
    missing = [column for column in needed if column not in row]
    if missing:
        raise ValueError(
            f"{where} has no {missing[0]!r}, which the form {form} has: it has "
            f"{', '.join(row) or 'nothing'}; set task.form"
        )
    match form:
        case "ranked":
            entries, ranks = _rank_completions(where, row)
        case "pairs":
            entries, ranks = [row["chosen"], row["rejected"]], [0, 1]
        case _:
            answers = [
                conversations.split_hh(where, conversations.text(where, name, row[name]))
                for name in needed
            ]
            return Ranking(answers, [0, 1], [False, False])
    prompt = conversations.turn(where, "prompt", row.get("prompt", []), "user")
    answers, ended = [], []
    for entry in entries:
        turns, is_ended = _parse_answer(where, entry)
        # UltraFeedback's answers are whole conversations, although the prompt is given.
        answers.append(turns if prompt and turns[: len(prompt)] == prompt else prompt + turns)
        ended.append(is_ended)
    return Ranking(answers, ranks, ended)


def _rank_completions(where: str, row: dict[str, Any]) -> tuple[list[Any], list[int]]:
    """(completions, ranks) of a row of the form ranked."""
    entries = row["completions"]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{where}: completions is {parse.quote(entries)}, not a list")
    groups = [entry if _is_group(entry) else [entry] for entry in entries]
    flat = [entry for group in groups for entry in group]
    given = [name for name in ("scores", "best") if row.get(name) is not None]
    if not given:
        return flat, [n for n, group in enumerate(groups) for _ in group]
    if len(given) > 1 or len(flat) != len(entries):
        raise ValueError(
            f"{where}: its completions are ranked in two ways, by {given[0]} and by "
            f"{'lists of equally good ones' if len(given) == 1 else given[1]}: give one"
        )
    if given == ["best"]:
        best = row["best"]
        if type(best) is not int or not 0 <= best < len(flat):
            raise ValueError(
                f"{where}: best is {parse.quote(best)}, not the index of one of "
                f"{len(flat)} completions"
            )
        return flat, [int(n != best) for n in range(len(flat))]
    scores = row["scores"]
    if not isinstance(scores, list) or len(scores) != len(flat):
        raise ValueError(
            f"{where}: scores is {parse.quote(scores)}, not a number for each of {len(flat)} "
            "completions"
        )
    for score in scores:
        if type(score) not in (int, float) or not math.isfinite(score):
            raise ValueError(f"{where}: scores has {parse.quote(score)}, which is no number")
    order = sorted(set(scores), reverse=True)
    return flat, [order.index(score) for score in scores]


def _is_group(entry: Any) -> bool:
    """Whether an entry of `completions` is a list of equally good ones, and not of messages."""
    is_list = isinstance(entry, list) and bool(entry)
    return is_list and not all(isinstance(one, dict) and "role" in one for one in entry)


def _parse_answer(where: str, entry: Any) -> tuple[list[Message], bool]:
    """(the messages of an answer, whether it is said to be ended)."""
    if isinstance(entry, dict) and set(entry) <= {"text", "ended"} and "text" in entry:
        ended = entry.get("ended", False)
        if type(ended) is not bool:
            raise ValueError(f"{where}: ended is {parse.quote(ended)}, not true or false")
        return conversations.turn(
            where, "an answer", conversations.text(where, "text", entry["text"]), "assistant"
        ), ended
    return conversations.turn(where, "an answer", entry, "assistant"), False
