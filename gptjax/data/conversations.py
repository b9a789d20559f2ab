"""Conversations from files, and as token ids of which some are learned."""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gptjax.config import data, find_files, parse
from gptjax.data.sources import compression, files
from gptjax.data.sources import open as open_source
from gptjax.data.tokenizers import chat_template

Message = dict[str, str]
Template = chat_template.ChatTemplate | chat_template.TurnTemplate
FORM_COLUMNS = {  # form -> the columns it is known by
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "hh": ("chosen",),
}
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
TFDS_PREFIX = "tfds:"
HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")


class Unusable(ValueError):
    """A conversation that cannot be learned from; its text is the reason, the same for all such
    conversations."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The ids of a conversation, and for each whether it is learned, that is, predicted by the
    model as a part of an answer."""

    ids: list[int]
    learned: list[bool]


def read(path: str, form: str) -> Iterator[tuple[str, list[Message]]]:
    """Yields (where it stands, messages) for each conversation of the .jsonl and .parquet files
    that `path` names; of an unusable one no messages are given (an empty list).

    form: of config.chat.Conversations. Raises ValueError, in one line, for a file that is missing
    or damaged, for a form that cannot be recognized, and for a line that is not of the form."""
    for where, row in read_rows(path):
        if form == "auto":
            form = recognize(where, row)
        yield where, parse_row(where, row, form)


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (where it stands, columns) for each line or row of the .jsonl and .parquet files that
    `path` names, or of the prepared TFDS data set that tfds:NAME or tfds:NAME@SPLIT names. Raises
    ValueError, in one line, for what is missing or damaged."""
    if path.startswith(TFDS_PREFIX):
        yield from _rows_of_tfds(path)
        return
    for file in find_files.find(path).states:
        kind, suffix = find_files.file_type(file)
        if kind not in (".jsonl", ".parquet"):
            raise ValueError(f"{file}: give .jsonl or .parquet")
        yield from _rows_of_file(file, kind, suffix)


def check(messages: Sequence[Message]) -> None:
    """Raises Unusable unless the messages are a conversation: turns of a user and an assistant
    alternate, perhaps after one message of the system, none of them is empty, and the assistant
    has a turn."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[n % 2] for n in range(len(turns))]
    if turns != expected:
        raise Unusable("roles out of order")
    if "assistant" not in turns:
        raise Unusable("no turn of the assistant")
    if not all(message["content"].strip() for message in messages):
        raise Unusable("an empty turn")


def encode(template: Template, messages: Sequence[Message]) -> Encoded:
    """Returns a conversation as the template writes it. Learned are the assistant's turns, from the
    first token that the model would write to the control token that ends the turn.

    Raises Unusable for a conversation that `check` refuses, and if the template does not write the
    turns one after the other: if the ids up to an answer are not those that the model would see
    when it writes the answer, or if no control token follows it."""
    check(messages)
    ids = template.encode(messages, add_generation_prompt=False)
    learned = [False] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.encode(messages[:number], add_generation_prompt=True)
        if ids[: len(before)] != before:
            raise Unusable("the chat template writes earlier turns another way")
        # A text that spells the control token has other ids, so the first one ends the answer.
        if template.end_of_turn_id not in ids[len(before) :]:
            raise Unusable("the chat template writes no control token after an answer")
        stop = ids.index(template.end_of_turn_id, len(before)) + 1
        learned[len(before) : stop] = [True] * (stop - len(before))
    return Encoded(ids, learned)


class Notes:
    """What was dropped or truncated, counted by reason."""

    def __init__(self):
        self._counts, self._places = collections.Counter[str](), dict[str, str]()

    def add(self, note: str, where: str, count: int = 1) -> None:
        """Counts one more of these, or so many more."""
        if count:
            self._counts[note] += count
            self._places.setdefault(note, where)

    def print(self, split: str, noun: str, print_line: Callable[[str], None]) -> None:
        """Prints a line for each reason, with the first place."""
        for note, count in self._counts.most_common():
            print_line(
                f"{split}: {count:,} {noun}{'s' * (count > 1)} {note} (first: {self._places[note]})"
            )

    def reasons(self) -> str:
        """Returns the most frequent reasons, for an error."""
        return "".join(f"; {n:,} were {note}" for note, n in self._counts.most_common(3))


def encode_all(
    conversations: Iterator[tuple[str, list[Message]]],
    template: Template,
    n_ctx: int,
    too_long: str,
    print_line: Callable[[str], None],
    name: str,
) -> list[tuple[list[Message], Encoded]]:
    """Returns the conversations that can be learned from, each with at most n_ctx + 1 ids. What is
    dropped or truncated is counted by reason and printed, with the first place of each.

    too_long, name: "drop" or "truncate"; of the split, for the lines. Raises ValueError if none is
    left."""
    kept, notes = [], Notes()
    for where, messages in conversations:
        try:
            encoded = encode(template, messages)
            if len(encoded.ids) > n_ctx + 1:
                if too_long == "drop":
                    raise Unusable(f"longer than the context of {n_ctx:,} tokens")
                encoded = Encoded(encoded.ids[: n_ctx + 1], encoded.learned[: n_ctx + 1])
                if not any(encoded.learned):
                    raise Unusable("truncated before the first answer")
                notes.add(f"truncated to the context of {n_ctx:,} tokens", where)
            kept.append((messages, encoded))
        except ValueError as error:  # of the conversation, or of the template
            notes.add(f"dropped: {parse.one_line(str(error), 200)}", where)
    notes.print(name, "conversation", print_line)
    if not kept:
        raise ValueError(f"{name}: no conversation is left to learn from{notes.reasons()}")
    return kept


def _rows_of_file(
    file: pathlib.Path, kind: str, suffix: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with file.open("rb") as raw:
            stream = compression.decompress(raw, suffix)
            if kind == ".jsonl":
                for number, row in files.read_objects(stream, file):
                    yield f"{file} line {number:,}", row
                return
            for number, row in files.read_parquet_rows(stream, file):
                yield f"{file} row {number:,}", row
    except compression.CorruptFile as error:
        raise ValueError(f"{file} is damaged or cut short ({error}): fetch it again") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None


def _rows_of_tfds(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    name, _, split = path.removeprefix(TFDS_PREFIX).partition("@")
    examples = open_source.tfds_examples(data.Tfds(name=name, split=split or "train"))
    for number, example in enumerate(examples, 1):
        where = f"{path} example {number:,}"
        yield where, {column: _plain_value(value, where) for column, value in example.items()}


def _plain_value(value: Any, where: str) -> Any:
    """A value of TFDS as that of a .jsonl file: a sequence of records is a dict of lists there."""
    if isinstance(value, bytes):
        return parse.utf8(value, where)
    if isinstance(value, dict):
        columns = {name: _plain_value(part, where) for name, part in value.items()}
        if columns and all(isinstance(part, list) for part in columns.values()):
            rows = zip(*columns.values(), strict=True)
            return [dict(zip(columns, row, strict=True)) for row in rows]
        return columns
    if hasattr(value, "ndim") and not value.ndim:  # of NumPy
        return _plain_value(value.item(), where)
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        return value
    return [_plain_value(part, where) for part in value]


def recognize(where: str, row: dict[str, Any]) -> str:
    """Returns the form of a row, by its columns. Raises ValueError if it is of none."""
    for form, columns in FORM_COLUMNS.items():
        if all(column in row for column in columns):
            return form
    forms = "; ".join(f"{form}: {' and '.join(columns)}" for form, columns in FORM_COLUMNS.items())
    raise ValueError(
        f"{where} has {', '.join(row) or 'nothing'}, which is no form of conversations ({forms})"
    )


def parse_row(where: str, row: dict[str, Any], form: str) -> list[Message]:
    """Returns the messages of a row. Raises ValueError if it is not of the form."""
    missing = [column for column in FORM_COLUMNS[form] if column not in row]
    if missing:
        raise ValueError(
            f"{where} has no {missing[0]!r}, which the form {form} has: it has "
            f"{', '.join(row) or 'nothing'}; set task.form"
        )
    match form:
        case "messages":
            return _list_of_messages(where, row["messages"], "messages", "role", "content")
        case "completion":
            return [
                *turn(where, "prompt", row["prompt"], "user"),
                *turn(where, "completion", row["completion"], "assistant"),
            ]
        case "alpaca":
            texts = [
                text(where, name, row[name]) if row.get(name) is not None else ""
                for name in ("instruction", "input", "output")
            ]
            question = "\n\n".join(part for part in texts[:2] if part)
            return [
                {"role": "user", "content": question},
                {"role": "assistant", "content": texts[2]},
            ]
        case "sharegpt":
            found = _list_of_messages(where, row["conversations"], "conversations", "from", "value")
            for message in found:
                if message["role"] not in SHAREGPT_ROLES:
                    raise ValueError(
                        f"{where}: a turn is from {parse.quote(message['role'])}: it must be of "
                        f"{', '.join(SHAREGPT_ROLES)}"
                    )
            return [{"role": SHAREGPT_ROLES[m["role"]], "content": m["content"]} for m in found]
        case _:
            return split_hh(where, text(where, "chosen", row["chosen"]))


def split_hh(where: str, content: str) -> list[Message]:
    """Returns the messages of a text of HH-RLHF, whose turns begin with "\\n\\nHuman: " and
    "\\n\\nAssistant: "."""
    before, *parts = HH_TURN.split(content)
    if before.strip() or not parts:
        raise ValueError(
            f'{where}: its text does not begin with "\\n\\nHuman: ", as those of HH-RLHF do: write '
            "it so, or as a list of messages"
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": turn_text}
        for who, turn_text in zip(parts[::2], parts[1::2], strict=True)
    ]


def turn(where: str, column: str, value: Any, role: str) -> list[Message]:
    """Returns the messages of a column that holds a text, which is of `role`, or messages. Raises
    ValueError for anything else."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return _list_of_messages(where, value, column, "role", "content")


def _list_of_messages(
    where: str, value: Any, column: str, role: str, content: str
) -> list[Message]:
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get(role), str) and isinstance(m.get(content), str)
        for m in value
    ):
        raise ValueError(
            f"{where}: {column} is {parse.quote(value)}, not a list of "
            f'{{"{role}": ..., "{content}": ...}} with texts'
        )
    return [{"role": m[role], "content": m[content]} for m in value]


def text(where: str, column: str, value: Any) -> str:
    """Returns the value, which must be a text. Raises ValueError if it is none."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column} is {parse.quote(value)}, not a text")
    return value
