"""Preferences of every form become the same pairs, of which the last answers are learned."""

import math

import pytest

from gptjax.data import preferences
from gptjax.data.conversations import Unusable
from tests.unit.data.conversations_test import (
    TEMPLATE,
    TOKENIZER,
    learned_text,
    of_kind,
    turns,
    write,
)


def ranked(*answers, ranks=None, prompt=("Hi",)):
    """The ranking of answers to the prompt, by default the best first."""
    conversations = [turns(*prompt, answer) for answer in answers]
    n = len(answers)
    return preferences.Ranking(conversations, ranks or list(range(n)), [False] * n)


FORMS = {
    "pairs": {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    "pairs of messages": {
        "prompt": turns("Hi"),
        "chosen": turns("", "Hello")[1:],
        "rejected": turns("", "No")[1:],
    },
    "whole conversations": {"chosen": turns("Hi", "Hello"), "rejected": turns("Hi", "No")},
    "whole conversations beside the prompt": {
        "prompt": "Hi",
        "chosen": turns("Hi", "Hello"),
        "rejected": turns("Hi", "No"),
    },
    "ranked": {"prompt": "Hi", "completions": ["Hello", "No"]},
    "ranked messages": {
        "prompt": "Hi",
        "completions": [turns("", "Hello")[1:], turns("", "No")[1:]],
    },
    "scores": {"prompt": "Hi", "completions": ["Hello", "No"], "scores": [3, -0.5]},
    "best": {"prompt": "Hi", "completions": ["Hello", "No"], "best": 0},
    "hh": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
        "rejected": "\n\nHuman: Hi\n\nAssistant: No",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_pair(tmp_path, form):
    ((where, ranking),) = preferences.read(write(tmp_path, FORMS[form]), "auto")
    assert ranking == ranked("Hello", "No") and where.endswith("line 1")


@pytest.mark.parametrize("row, line", [
    ({"prompt": "Hi", "completion": "x"}, "which is no form of preferences"),
    ({"prompt": "Hi", "completions": "x"}, "completions is 'x', not a list"),
    ({"prompt": "Hi", "chosen": 3, "rejected": "x"}, "not a list of"),
    ({"chosen": "Hello", "rejected": "x"}, "does not begin with"),
    ({"prompt": "Hi", "completions": ["a", "b"], "scores": [1]}, "not a number for each of 2"),
    ({"prompt": "Hi", "completions": ["a", "b"], "scores": [1, math.nan]}, "nan, which is no num"),
    ({"prompt": "Hi", "completions": ["a", "b"], "scores": [1, True]}, "True, which is no number"),
    ({"prompt": "Hi", "completions": ["a", "b"], "best": 2}, "best is 2, not the index of one of"),
    ({"prompt": "Hi", "completions": [["a", "b"]], "scores": [1]}, "ranked in two ways, by scores"),
    ({"prompt": "Hi", "completions": ["a"], "scores": [1], "best": 0}, "by scores and by best"),
    ({"prompt": "Hi", "completions": ["a", {"text": "b", "ended": 1}]}, "ended is 1, not true"),
])  # fmt: skip
def test_a_row_of_another_form_is_one_line(tmp_path, row, line):
    with pytest.raises(ValueError, match=r"c\.jsonl line 1") as error:
        list(preferences.read(write(tmp_path, row), "auto"))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_all_pairs_of_a_ranking_the_better_first():
    ranking = ranked("1", "2", "3", prompt=("a?", "x.", "b?"))
    pairs = preferences.encode_pairs(TOKENIZER, TEMPLATE, ranking, 50)
    found = [tuple(learned_text(one) for one in pair) for pair in pairs]
    assert found == [(f"{a}<|end|>", f"{b}<|end|>") for a, b in ("12", "13", "23")]


@pytest.mark.parametrize("row, ranks", [
    ({"completions": ["a", ["b", "c"], "d"]}, [0, 1, 1, 2]),
    ({"completions": ["a", "b", "c", "d"], "scores": [2, 7, 2.0, -1]}, [1, 0, 1, 2]),
    ({"completions": ["a", "b", "c", "d"], "best": 2}, [1, 1, 0, 1]),
    ({"completions": ["a", "b", "c", "d"], "scores": None}, [0, 1, 2, 3]),
])  # fmt: skip
def test_ties_have_one_rank_and_are_no_pair(tmp_path, row, ranks):
    ((_, ranking),) = preferences.read(write(tmp_path, {"prompt": "Hi"} | row), "auto")
    assert ranking == ranked("a", "b", "c", "d", ranks=ranks)
    found = [
        tuple(learned_text(one)[0] for one in pair)
        for pair in preferences.encode_pairs(TOKENIZER, TEMPLATE, ranking, 50)
    ]
    rank = dict(zip("abcd", ranks, strict=True))
    assert sorted(found) == [(x, y) for x in "abcd" for y in "abcd" if rank[x] < rank[y]]
    assert rank[found[0][0]] == 0 and ranking.n_ties == 6 - len(found)


@pytest.mark.parametrize("ranking, reason", [
    (ranked("b", "b"), "two of the answers are the same"),
    (ranked("b"), "a single answer"),
    (ranked("b", "c", ranks=[0, 0]), "all answers are equally good"),
    (preferences.Ranking([turns("a", "b"), turns("c", "d")], [0, 1], [False] * 2), "one prompt"),
    (ranked("c", "d", prompt=("a", "b")), "do not belong to one prompt"),
    (ranked("b", "b" * 60), "longer than the context of 50 tokens"),
    (ranked("b", ""), "an empty turn"),
    (preferences.Ranking([turns("a", "b"), turns("a", "c")], [0, 1], [True] * 2), "only plain"),
])  # fmt: skip
def test_what_is_no_pair_is_not_learned(ranking, reason):
    with pytest.raises(Unusable, match=reason):
        preferences.encode_pairs(TOKENIZER, TEMPLATE, ranking, 50)


def test_an_answer_is_read_as_the_model_that_sampled_it_reads_it():
    messages = turns("a?", "x.", "b?", "no")
    ids = preferences.encode_answer(TOKENIZER, TEMPLATE, messages).ids
    prompt = preferences.encode_prompt(TOKENIZER, TEMPLATE, messages[:-1])
    end = TEMPLATE.end_of_turn_id
    assert ids == [*prompt, *TOKENIZER.encode("no"), end]
    messages = turns("The film", " was good")
    ids = preferences.encode_answer(TOKENIZER, None, messages).ids
    prompt = preferences.encode_prompt(TOKENIZER, None, turns("The film"))
    assert ids == [*prompt, *TOKENIZER.encode(" was good")]
    ended = preferences.encode_answer(TOKENIZER, None, messages, ended=True)
    assert ended.ids == [*ids, TOKENIZER.end_of_text]
    assert ended.learned == [False] * len(prompt) + [True] * (len(ended.ids) - len(prompt))


@pytest.mark.parametrize("kind", ["llama3", "phi3", "gemma"])
def test_an_answer_ends_with_the_token_that_a_sampled_one_ends_with(kind):
    """Some templates write a line break after it."""
    tokenizer, template = of_kind(kind)
    ids = preferences.encode_answer(tokenizer, template, turns("a?", "b.")).ids
    assert ids[-1] == template.end_of_turn_id
    prompt = preferences.encode_prompt(tokenizer, template, turns("a?"))
    assert ids[: len(prompt)] == prompt


@pytest.mark.parametrize("messages, ended, reason", [
    (turns("a", "b", "c", "d"), False, "more than a prompt and an answer"),
    (turns("a", ""), False, "an empty answer"),
])  # fmt: skip
def test_what_is_no_plain_answer_is_not_read(messages, ended, reason):
    with pytest.raises(Unusable, match=reason):
        preferences.encode_answer(TOKENIZER, None, messages, ended)
