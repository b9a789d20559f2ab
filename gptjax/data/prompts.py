"""Prompts from files, as token ids: what a policy answers."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gptjax.config import parse, rlhf
from gptjax.data import conversations, held_out, preferences
from gptjax.data.conversations import Message, Template
from gptjax.data.tokenizers.build import Tokenizer

FORMS = "prompt: a text or messages; or a form of conversations or preferences: " + "; ".join(
    " and ".join(columns)
    for columns in dict.fromkeys(
        (*conversations.FORM_COLUMNS.values(), *preferences.FORM_COLUMNS.values())
    )
    if "prompt" not in columns
)


def read(path: str, text: str) -> Iterator[tuple[str, str | list[Message]]]:
    """Yields (where it stands, prompt) for each line or row of the .jsonl and .parquet files that
    `path` names: the text of its column `prompt` if `text` is "plain", else messages of which the
    last is the user's: of the column `prompt`, or of a conversation or preference of any form that
    `gptjax.sft` and `gptjax.dpo` read, without the last answer.

    Raises ValueError, in one line, for a file that is missing or damaged and for a line that has no
    prompt."""
    for where, row in conversations.read_rows(path):
        if text == "plain":
            if "prompt" not in row:
                raise ValueError(
                    f"{where} has no 'prompt', which plain text has: it has "
                    f"{', '.join(row) or 'nothing'}; set task.text"
                )
            yield where, conversations.text(where, "prompt", row["prompt"])
            continue
        messages = _messages(where, row)
        yield where, messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _messages(where: str, row: dict[str, Any]) -> list[Message]:
    """A prompt, or a conversation that ends with an answer to it."""
    if "prompt" in row:
        return conversations.turn(where, "prompt", row["prompt"], "user")
    forms = preferences if "rejected" in row else conversations
    try:
        form = forms.recognize(where, row)
    except ValueError:
        raise ValueError(
            f"{where} has {', '.join(row) or 'nothing'}, which is no form of prompts ({FORMS})"
        ) from None
    if forms is preferences:
        return preferences.rank(where, row, form).prompt
    return conversations.parse_row(where, row, form)


def encode(
    prompt: str | list[Message], task: rlhf.Rlhf, tokenizer: Tokenizer, template: Template | None
) -> list[int]:
    """Returns the ids of a prompt, at most task.prompt_tokens. Raises conversations.Unusable for
    one that is empty, too long, or no conversation."""
    if isinstance(prompt, str):
        prefix, ids = tokenizer.text_prefix, tokenizer.encode(prompt)
        n_kept = max(1, task.prompt_tokens - len(prefix))
        ids = [*prefix, *(ids[-n_kept:] if task.too_long == "truncate" else ids)]
    else:
        assert template is not None
        # An answer follows, with which it must be a conversation.
        conversations.check([*prompt, {"role": "assistant", "content": "."}])
        ids = template.encode(prompt, add_generation_prompt=True)
    if not ids:
        raise conversations.Unusable("empty")
    if len(ids) > task.prompt_tokens:
        raise conversations.Unusable(f"longer than task.prompt_tokens={task.prompt_tokens:,}")
    return ids


class PromptRows:
    """The prompts of a task, read, split into train and dev and encoded. A data.epochs.TaskRows.

    train, dev: int32 (prompts, 1 + task.prompt_tokens), the length of a prompt and its ids, then
    zeros."""

    def __init__(
        self,
        task: rlhf.Rlhf,
        tokenizer: Tokenizer,
        template: Template | None,
        print_line: Callable[[str], None],
    ):
        """Raises ValueError, in one line, for anything wrong with the data."""
        self.task, self.tokenizer, self.template = task, tokenizer, template
        self.train, self.dev = (
            self._encode(items, name, print_line)
            for name, items in held_out.split(
                task.prompts, task.dev, task.dev_fraction, lambda path: read(path, task.text), repr
            ).items()
        )

    def _encode(self, items: Iterator, name: str, print_line: Callable[[str], None]) -> np.ndarray:
        rows, notes = [], conversations.Notes()
        for where, prompt in items:
            try:
                ids = encode(prompt, self.task, self.tokenizer, self.template)
            except ValueError as error:  # of the prompt, or of the template
                notes.add(f"dropped: {parse.one_line(str(error), 200)}", where)
                continue
            rows.append([len(ids), *ids, *[0] * (self.task.prompt_tokens - len(ids))])
        notes.print(name, "prompt", print_line)
        if not rows:
            raise ValueError(f"{name}: no prompt is left{notes.reasons()}")
        return np.array(rows, np.int32)

    def digest(self) -> str:
        """Returns a digest of all rows and of the tokenizer."""
        hasher = hashlib.sha256(self.tokenizer.digest.encode())
        for rows in (self.train, self.dev):
            hasher.update(rows.tobytes())
        return hasher.hexdigest()

    def summary(self) -> str:
        """Returns a line with the numbers of prompts."""
        return f"{len(self.train):,} prompts, {len(self.dev):,} to validate on"

    def description(self) -> dict[str, Any]:
        """Returns what data.json records of the data."""
        return {
            "task": repr(self.task),
            "tokenizer": self.tokenizer.digest,
            "digest": self.digest(),
            "summary": self.summary(),
        }
