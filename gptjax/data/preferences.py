"""Preferences from files: pairs of answers to one prompt, of which one was preferred."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax.config import parse
from gptjax.data import conversations
from gptjax.data.conversations import Encoded, Message, Template, Unusable

FORM_COLUMNS = {  # form -> the columns it is known by
    "ranked": ("prompt", "completions"),
    "pairs": ("prompt", "chosen", "rejected"),
    "hh": ("chosen", "rejected"),
}


def read(path: str, form: str) -> Iterator[tuple[str, list[list[Message]]]]:
    """Yields (where it stands, conversations, the best first) for each prompt of the .jsonl and
    .parquet files that `path` names. The conversations differ in the last turn.

    form: of config.chat.Preferences. Raises ValueError, in one line, for a file that is missing or
    damaged, for a form that cannot be recognized, and for a line that is not of the form."""
    for where, row in conversations.read_rows(path):
        if form == "auto":
            form = _recognize(where, row)
        yield where, _rank(where, row, form)


def encode_pairs(
    template: Template, ranked: Sequence[Sequence[Message]], n_ctx: int
) -> list[tuple[Encoded, Encoded]]:
    """Returns each pair (the better, the worse) of the conversations, the best of which comes
    first; learned is the last answer alone. Raises Unusable if they are not answers to one prompt,
    if two are the same, or if one is longer than n_ctx + 1 ids."""
    encoded = []
    for messages in ranked:
        if messages[:-1] != ranked[0][:-1] or messages[-1]["role"] != "assistant":
            raise Unusable("the answers do not belong to one prompt")
        one = conversations.encode(template, messages)
        if len(one.ids) > n_ctx + 1:
            raise Unusable(f"longer than the context of {n_ctx:,} tokens")
        encoded.append(_learn_last(one))
    if any(a.ids == b.ids for a, b in itertools.combinations(encoded, 2)):
        raise Unusable("two of the answers are the same")
    if len(encoded) < 2:
        raise Unusable("a single answer")
    return list(itertools.combinations(encoded, 2))


def _learn_last(encoded: Encoded) -> Encoded:
    """The conversation with its last answer alone as what is learned."""
    last = len(encoded.learned) - 1 - encoded.learned[::-1].index(True)
    first = last
    while encoded.learned[first - 1]:
        first -= 1
    return Encoded(encoded.ids, [first <= i <= last for i in range(len(encoded.ids))])


def _recognize(where: str, row: dict[str, Any]) -> str:
    for form, columns in FORM_COLUMNS.items():
        if all(column in row for column in columns):
            if form == "hh" and not isinstance(row["chosen"], str):
                return "pairs"
            return form
    forms = "; ".join(f"{form}: {' and '.join(columns)}" for form, columns in FORM_COLUMNS.items())
    raise ValueError(
        f"{where} has {', '.join(row) or 'nothing'}, which is no form of preferences ({forms})"
    )


def _rank(where: str, row: dict[str, Any], form: str) -> list[list[Message]]:
    """The conversations of a row, the best first. ValueError if it is not of the form."""
    needed = ("chosen", "rejected") if form != "ranked" else FORM_COLUMNS[form]
    missing = [column for column in needed if column not in row]
    if missing:
        raise ValueError(
            f"{where} has no {missing[0]!r}, which the form {form} has: it has "
            f"{', '.join(row) or 'nothing'}; set task.form"
        )
    match form:
        case "ranked":
            answers = row["completions"]
            if not isinstance(answers, list) or not answers:
                raise ValueError(f"{where}: completions is {parse.quote(answers)}, not a list")
        case "pairs":
            answers = [row["chosen"], row["rejected"]]
        case _:
            return [
                conversations.split_hh(where, conversations.text(where, name, row[name]))
                for name in needed
            ]
    prompt = conversations.turn(where, "prompt", row.get("prompt", []), "user")
    return [prompt + conversations.turn(where, "an answer", a, "assistant") for a in answers]
