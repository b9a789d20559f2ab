"""Prompts are what stands before the last answer, whatever the form of a row."""

import pytest

from gptjax.data import prompts
from tests.unit.data.conversations_test import FORMS as CONVERSATIONS
from tests.unit.data.conversations_test import turns, write
from tests.unit.data.preferences_test import FORMS as PREFERENCES

FORMS = {
    "prompt": {"prompt": "Hi"},
    "messages of the user": {"messages": turns("Hi")},
    "prompt of messages": {"prompt": turns("Hi", "Hello")},
    **CONVERSATIONS,
    **PREFERENCES,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_prompt(tmp_path, form):
    ((where, prompt),) = prompts.read(write(tmp_path, FORMS[form]), "chat")
    assert prompt == turns("Hi") and where.endswith("line 1")


@pytest.mark.parametrize(("row", "text", "line"), [
    ({"text": "Hi"}, "chat", "has text, which is no form of prompts (prompt: a text or messages;"),
    ({}, "chat", "has nothing, which is no form"),
    ({"chosen": "Hi", "rejected": "No"}, "chat", "does not begin with"),
    ({"rejected": "No"}, "chat", "has rejected, which is no form of prompts"),
    ({"prompt": 3}, "chat", "prompt is 3, not a list of"),
    ({"messages": turns("Hi")}, "plain", "no 'prompt', which plain text has: it has messages"),
    ({"prompt": turns("Hi")}, "plain", "not a text"),
])  # fmt: skip
def test_a_row_without_a_prompt_is_one_line(tmp_path, row, text, line):
    with pytest.raises(ValueError, match=r"c\.jsonl line 1") as error:
        list(prompts.read(write(tmp_path, row), text))
    assert line in str(error.value) and "\n" not in str(error.value)
