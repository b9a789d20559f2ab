"""Preferences of every form become the same pairs, of which the last answers are learned."""

import pytest

from gptjax.data import preferences
from gptjax.data.conversations import Unusable
from tests.unit.data.conversations_test import TEMPLATE, learned_text, turns, write

FORMS = {
    "pairs": {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    "pairs of messages": {
        "prompt": turns("Hi"),
        "chosen": turns("", "Hello")[1:],
        "rejected": turns("", "No")[1:],
    },
    "whole conversations": {"chosen": turns("Hi", "Hello"), "rejected": turns("Hi", "No")},
    "ranked": {"prompt": "Hi", "completions": ["Hello", "No"]},
    "hh": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(tmp_path, form):
    ((where, ranked),) = preferences.read(write(tmp_path, FORMS[form]), "auto")
    assert ranked == [turns("Hi", "Hello"), turns("Hi", "No")] and where.endswith("line 1")


@pytest.mark.parametrize("row, line", [
    ({"prompt": "Hi", "completion": "x"}, "which is no form of preferences"),
    ({"prompt": "Hi", "completions": "x"}, "completions is 'x', not a list"),
    ({"prompt": "Hi", "chosen": 3, "rejected": "x"}, "not a list of"),
    ({"chosen": "Hello", "rejected": "x"}, "does not begin with"),
])  # fmt: skip
def test_a_row_of_another_form_is_one_line(tmp_path, row, line):
    with pytest.raises(ValueError, match=r"c\.jsonl line 1") as error:
        list(preferences.read(write(tmp_path, row), "auto"))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_all_pairs_of_a_ranking_the_better_first():
    ranked = [turns("a?", "x.", "b?", answer) for answer in ("1", "2", "3")]
    pairs = preferences.encode_pairs(TEMPLATE, ranked, 50)
    found = [tuple(learned_text(one) for one in pair) for pair in pairs]
    assert found == [(f"{a}<|end|>", f"{b}<|end|>") for a, b in ("12", "13", "23")]


@pytest.mark.parametrize("ranked, reason", [
    ([turns("a", "b"), turns("a", "b")], "two of the answers are the same"),
    ([turns("a", "b")], "a single answer"),
    ([turns("a", "b"), turns("c", "d")], "do not belong to one prompt"),
    ([turns("a", "b", "c"), turns("a", "b", "d")], "do not belong to one prompt"),
    ([turns("a", "b"), turns("a", "b" * 60)], "longer than the context of 50 tokens"),
    ([turns("a", "b"), turns("a", "")], "an empty turn"),
])  # fmt: skip
def test_what_is_no_pair_is_not_learned(ranked, reason):
    with pytest.raises(Unusable, match=reason):
        preferences.encode_pairs(TEMPLATE, ranked, 50)
