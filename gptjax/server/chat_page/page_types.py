"""Bodies of the chat page's requests as pydantic models."""

from typing import Annotated

import pydantic
from pydantic import Field

from gptjax.data import unicode
from gptjax.server.openai_types import Flag, Record, int_range, number_range, validator

MAX_TEXT_CHARS = 1_000_000
MAX_FILES = 10

# Half of a surrogate pair, which JSON's escapes can write, cannot be stored as UTF-8.
Text = Annotated[
    str,
    validator(f"a text of up to {MAX_TEXT_CHARS:,} characters", unicode.replace_surrogates),
    Field(max_length=MAX_TEXT_CHARS),
]


class Login(Record):
    """POST /chat/login."""

    name: Text
    password: Text


class Settings(Record):
    """POST /chat/settings: how answers to a user are written. max_tokens None: as many as fit into
    the context. seed None: another one for each answer. token_view: whether answers have the
    log-probabilities of their tokens."""

    system_prompt: Text = ""
    temperature: Annotated[float, number_range(0, 2)] = 1.0
    top_p: Annotated[float, number_range(0, 1, above=True)] = 1.0
    max_tokens: Annotated[int | None, int_range(1)] = None
    seed: Annotated[int | None, int_range(0, 2**32 - 1)] = None
    token_view: Flag = False


class File(Record):
    """A file whose text is put before a message."""

    name: Text
    text: Text


class AttentionRequest(Record):
    """POST /chat/conversations/ID/attention: of the answer `message`. layer, head: from 0; head
    None: the mean of all."""

    message: int
    layer: Annotated[int, int_range(0)]
    head: Annotated[int | None, int_range(0)] = None


class AnswerRequest(Record):
    """POST /chat/conversations/ID/answer. replaces: a message that goes, with all after it: one of
    the user's for another by content and files, or an answer, which is written again."""

    model: Text
    content: Text = ""
    files: Annotated[list[File], Field(max_length=MAX_FILES)] = pydantic.Field(default_factory=list)
    replaces: int | None = None
