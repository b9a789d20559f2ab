"""Demonstrations: drawn, joined, fitted; and how a completion's tokens are found."""

import dataclasses

import pytest

from gptjax.config import protocol
from gptjax.data.tokenizer import Bytes
from gptjax.tasks.incontext import prompts, registry
from gptjax.tasks.incontext.task import Item

HOW = protocol.Protocol(shots=4, method=protocol.PerToken(), metric="accuracy", description="Sums:", separator="\n")
POOL = [Item(id=str(n), contexts=(f"{n} + 1 =",), completions=(f" {n + 1}",)) for n in range(10)]
ITEM = Item(id="x", contexts=("4 + 4 =",), completions=(" 8", " 9"))


def drawn(item=ITEM, pool=POOL, shots=4, seed=0, fixed=False):
    return [one.id for one in prompts.drawn("sums", item, pool, shots, seed, fixed)]


def test_demonstrations_are_drawn_anew_for_each_item_by_the_seed():
    assert drawn() == drawn()
    assert len({tuple(drawn(dataclasses.replace(ITEM, id=str(n)))) for n in "abcdef"}) > 1
    assert drawn(seed=1) != drawn()
    assert len(set(drawn(shots=10))) == 10


def test_a_smaller_number_is_the_beginning_of_a_larger_one():
    assert drawn(shots=9)[:3] == drawn(shots=3)


def test_fixed_ones_are_the_same_for_all_items_but_for_one_among_them():
    one, other = drawn(fixed=True), drawn(dataclasses.replace(ITEM, id="y"), fixed=True)
    assert one == other
    mine = drawn(dataclasses.replace(ITEM, id=one[1]), fixed=True)
    assert one[1] not in mine and mine[:1] == one[:1] and len(mine) == 4


def test_never_the_item_nor_its_group_nor_an_unknown_answer_nor_two_of_a_group():
    assert sorted(drawn(POOL[3], shots=9)) == [str(n) for n in range(10) if n != 3]
    grouped = [dataclasses.replace(one, group="ab"[number % 2]) for number, one in enumerate(POOL)]
    assert len(drawn(grouped[0], grouped, 1)) == 1 and drawn(grouped[0], grouped, 1)[0] in "13579"
    with pytest.raises(ValueError, match="2 demonstrations were asked for, and there are 1"):
        drawn(grouped[0], grouped, 2)
    unknown = [dataclasses.replace(one, right=()) for one in POOL[:9]] + POOL[9:]
    assert drawn(pool=unknown, shots=1) == ["9"]


def test_a_prompt_is_description_demonstrations_and_item():
    assert prompts.put(ITEM, POOL[:2], HOW) == ("Sums:\n0 + 1 = 1\n1 + 1 = 2\n4 + 4 =",)
    assert prompts.put(ITEM, [], dataclasses.replace(HOW, description="")) == ("4 + 4 =",)


def test_as_many_demonstrations_as_fit():
    whole = prompts.fitted(ITEM, POOL[:4], HOW, Bytes(), 1000)
    assert whole.shown == ("0", "1", "2", "3") and whole.completion_tokens == (tuple(b" 8"), tuple(b" 9"))
    assert bytes(whole.context_tokens[0]).decode() == whole.contexts[0]
    length = len(whole.contexts[0]) + 2
    for n_ctx, kept in [(length - 1, 4), (length - 2, 3), (length - 10, 3), (length - 12, 2), (18, 0)]:
        prompt = prompts.fitted(ITEM, POOL[:4], HOW, Bytes(), n_ctx)
        assert prompt.shown == whole.shown[:kept] and prompt.cut == 0
        assert len(prompt.context_tokens[0]) + 1 <= n_ctx


def test_long_first_demonstrations_do_not_keep_the_short_ones_out():
    long = dataclasses.replace(POOL[0], contexts=("0" * 60,))
    prompt = prompts.fitted(ITEM, [POOL[1], POOL[2], long, POOL[3]], HOW, Bytes(), 60)
    assert prompt.shown == ("1", "2")


def test_what_is_too_long_by_itself_loses_its_beginning():
    prompt = prompts.fitted(ITEM, POOL[:4], HOW, Bytes(), 6)
    assert prompt.shown == () and bytes(prompt.context_tokens[0]) == b"+ 4 =" and prompt.cut == len("Sums:\n4 + 4 =") - 5
    with pytest.raises(ValueError, match="item x: a completion leaves no room"):
        prompts.fitted(ITEM, [], HOW, Bytes(), 1)


def test_what_has_a_hint_loses_the_end_of_what_stands_before_it():
    """As a news article, whose lead says what it is about."""
    how = dataclasses.replace(HOW, method=protocol.Greedy(n_tokens=5), metric="exact_match", description="")
    item = Item(id="x", contexts=("first, then last.\nTL;DR:",), completions=(" first",), facts={"hint": "\nTL;DR:"})
    for n_ctx, kept in [(29, "first, then last.\nTL;DR:"), (28, "first, then last\nTL;DR:"), (18, "first,\nTL;DR:"), (9, ";DR:")]:
        prompt = prompts.fitted(item, POOL[:2], how, Bytes(), n_ctx)
        assert bytes(prompt.context_tokens[0]).decode() == kept and prompt.cut == 24 - len(kept)
    (article,) = registry.task("cnn_dailymail").items({"id": "0", "article": "a " * 90, "highlights": "x"}, how, 0)
    assert bytes(prompts.fitted(article, [], how, Bytes(), 45).context_tokens[0]).decode() == "a " * 16 + "a\nTL;DR:"


def test_a_task_that_writes_has_room_for_what_it_writes():
    how = dataclasses.replace(HOW, method=protocol.Greedy(n_tokens=5), metric="exact_match")
    whole = len(prompts.put(ITEM, POOL[:4], how)[0])
    assert len(prompts.fitted(ITEM, POOL[:4], how, Bytes(), whole + 5).shown) == 4
    short = prompts.fitted(ITEM, POOL[:4], how, Bytes(), whole + 4)
    assert len(short.shown) == 3 and short.completion_tokens == () and len(short.context_tokens) == 1


def test_contexts_of_their_own_share_an_ending():
    item = Item(id="w", contexts=("the cat sat for the cat", "the cat sat for the mat"), completions=(" was soft.",), right=(1,))
    prompt = prompts.fitted(item, [], dataclasses.replace(HOW, description=""), Bytes(), 100)
    assert [bytes(tokens).decode() for tokens in prompt.context_tokens] == list(item.contexts)
    assert prompt.completion_tokens == (tuple(b" was soft."),) * 2
    assert item.shown == "the cat sat for the mat was soft."


def test_contexts_of_their_own_lose_as_many_tokens_each():
    item = Item(id="w", contexts=("the big cat", "the mat"), completions=(" was",))
    prompt = prompts.fitted(item, [], dataclasses.replace(HOW, description=""), Bytes(), 11)  # 8 tokens before " was"
    assert [bytes(tokens).decode() for tokens in prompt.context_tokens] == [" big cat", " mat"] and prompt.cut == 3


def test_spaces_at_the_end_of_a_context_are_the_completions():
    found = prompts.paired(Bytes(), [("A: ", "yes"), ("", "yes"), ("A: ", "no")], "1")
    assert found == [(tuple(b"A:"), tuple(b" yes")), ((256,), tuple(b"yes")), (tuple(b"A:"), tuple(b" no"))]
    with pytest.raises(ValueError, match="item 1: the completion '' has no tokens"):
        prompts.paired(Bytes(), [("A:", "")], "1")
