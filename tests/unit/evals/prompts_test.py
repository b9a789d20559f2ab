"""Demonstrations: drawn, joined, fitted; and how a completion's tokens are found."""

import dataclasses
import sys

import pytest

from gptjax.config import evaluation
from gptjax.data.tokenizers.build import ByteTokenizer
from gptjax.evals import prompts, registry
from gptjax.evals.task import Item
from tests import tokenizers

HOW = evaluation.Protocol(
    shots=4, method=evaluation.PerToken(), metric="accuracy", description="Sums:", separator="\n"
)
POOL = [Item(id=str(n), contexts=(f"{n} + 1 =",), completions=(f" {n + 1}",)) for n in range(10)]
ITEM = Item(id="x", contexts=("4 + 4 =",), completions=(" 8", " 9"))


def drawn(item=ITEM, pool=POOL, shots=4, seed=0, fixed=False):
    return [one.id for one in prompts.sample_fewshot("sums", item, pool, shots, seed, fixed)]


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
    assert len(drawn(grouped[0], grouped, 2)) == 1  # there are no more
    unknown = [dataclasses.replace(one, right=()) for one in POOL[:9]] + POOL[9:]
    assert drawn(pool=unknown, shots=1) == ["9"]


def test_a_prompt_is_description_demonstrations_and_item():
    assert prompts.render(ITEM, POOL[:2], HOW) == ("Sums:\n0 + 1 = 1\n1 + 1 = 2\n4 + 4 =",)
    assert prompts.render(ITEM, [], dataclasses.replace(HOW, description="")) == ("4 + 4 =",)


def test_as_many_demonstrations_as_fit():
    whole = prompts.fit_context(ITEM, POOL[:4], HOW, ByteTokenizer(), 1000)
    assert whole.demonstration_ids == ("0", "1", "2", "3") and whole.completion_tokens == (
        tuple(b" 8"),
        tuple(b" 9"),
    )
    assert bytes(whole.context_tokens[0]).decode() == whole.contexts[0]
    length = len(whole.contexts[0]) + 2
    for n_ctx, kept in [
        (length - 1, 4),
        (length - 2, 3),
        (length - 10, 3),
        (length - 12, 2),
        (18, 0),
    ]:
        prompt = prompts.fit_context(ITEM, POOL[:4], HOW, ByteTokenizer(), n_ctx)
        assert prompt.demonstration_ids == whole.demonstration_ids[:kept] and prompt.n_cut == 0
        assert len(prompt.context_tokens[0]) + 1 <= n_ctx


def test_long_first_demonstrations_do_not_keep_the_short_ones_out():
    long = dataclasses.replace(POOL[0], contexts=("0" * 60,))
    prompt = prompts.fit_context(ITEM, [POOL[1], POOL[2], long, POOL[3]], HOW, ByteTokenizer(), 60)
    assert prompt.demonstration_ids == ("1", "2")


def test_an_item_that_is_too_long_loses_its_beginning():
    prompt = prompts.fit_context(ITEM, POOL[:4], HOW, ByteTokenizer(), 6)
    assert (
        prompt.demonstration_ids == ()
        and bytes(prompt.context_tokens[0]) == b"+ 4 ="
        and prompt.n_cut == len("Sums:\n4 + 4 =") - 5
    )
    with pytest.raises(ValueError, match="item x: a completion leaves no space"):
        prompts.fit_context(ITEM, [], HOW, ByteTokenizer(), 1)


def test_an_item_with_a_hint_loses_the_end_of_the_text_before_it():
    """As a news article, whose lead says what it is about."""
    how = dataclasses.replace(
        HOW, method=evaluation.Greedy(n_tokens=5), metric="exact_match", description=""
    )
    item = Item(
        id="x",
        contexts=("first, then last.\nTL;DR:",),
        completions=(" first",),
        facts={"hint": "\nTL;DR:"},
    )
    for n_ctx, kept in [
        (29, "first, then last.\nTL;DR:"),
        (28, "first, then last\nTL;DR:"),
        (18, "first,\nTL;DR:"),
        (9, ";DR:"),
    ]:
        prompt = prompts.fit_context(item, POOL[:2], how, ByteTokenizer(), n_ctx)
        assert bytes(prompt.context_tokens[0]).decode() == kept and prompt.n_cut == 24 - len(kept)
    (article,) = registry.get_task("cnn_dailymail").items(
        {"id": "0", "article": "a " * 90, "highlights": "x"}, how, 0
    )
    assert (
        bytes(prompts.fit_context(article, [], how, ByteTokenizer(), 45).context_tokens[0]).decode()
        == "a " * 16 + "a\nTL;DR:"
    )


class Prefixed(ByteTokenizer):
    """Bytes, with two ids before every prompt."""

    text_prefix = (256, 5)


@pytest.mark.parametrize("n_ctx", [1000, 60, 20, 8])
def test_what_stands_before_a_prompt_stays_there(n_ctx):
    """However much is cut: the rest is what a context that is so much shorter has."""
    for how in (HOW, dataclasses.replace(HOW, method=evaluation.Greedy(n_tokens=3))):
        expected = prompts.fit_context(ITEM, POOL[:4], how, ByteTokenizer(), n_ctx - 2)
        found = prompts.fit_context(ITEM, POOL[:4], how, Prefixed(), n_ctx)
        assert found.context_tokens == tuple((256, 5, *x) for x in expected.context_tokens)
        assert found.completion_tokens == expected.completion_tokens
        assert found.n_cut == expected.n_cut
    assert prompts.encode_pairs(Prefixed(), [("", "yes")], "1")[0][0] == (256, 5)


def test_a_generation_task_reserves_space_for_its_text():
    how = dataclasses.replace(HOW, method=evaluation.Greedy(n_tokens=5), metric="exact_match")
    whole = len(prompts.render(ITEM, POOL[:4], how)[0])
    assert (
        len(prompts.fit_context(ITEM, POOL[:4], how, ByteTokenizer(), whole + 5).demonstration_ids)
        == 4
    )
    short = prompts.fit_context(ITEM, POOL[:4], how, ByteTokenizer(), whole + 4)
    assert (
        len(short.demonstration_ids) == 3
        and short.completion_tokens == ()
        and len(short.context_tokens) == 1
    )


def test_contexts_of_their_own_share_an_ending():
    item = Item(
        id="w",
        contexts=("the cat sat for the cat", "the cat sat for the mat"),
        completions=(" was soft.",),
        right=(1,),
    )
    prompt = prompts.fit_context(
        item, [], dataclasses.replace(HOW, description=""), ByteTokenizer(), 100
    )
    assert [bytes(tokens).decode() for tokens in prompt.context_tokens] == list(item.contexts)
    assert prompt.completion_tokens == (tuple(b" was soft."),) * 2
    assert item.as_demonstration == "the cat sat for the mat was soft."


def test_contexts_of_their_own_lose_as_many_tokens_each():
    item = Item(id="w", contexts=("the big cat", "the mat"), completions=(" was",))
    prompt = prompts.fit_context(
        item, [], dataclasses.replace(HOW, description=""), ByteTokenizer(), 11
    )  # 8 tokens before " was"
    assert [bytes(tokens).decode() for tokens in prompt.context_tokens] == [
        " big cat",
        " mat",
    ] and prompt.n_cut == 3


def test_spaces_at_the_end_of_a_context_are_the_completions():
    found = prompts.encode_pairs(ByteTokenizer(), [("A: ", "yes"), ("", "yes"), ("A: ", "no")], "1")
    assert found == [
        (tuple(b"A:"), tuple(b" yes")),
        ((256,), tuple(b"yes")),
        (tuple(b"A:"), tuple(b" no")),
    ]
    with pytest.raises(ValueError, match="item 1: the completion '' has no tokens"):
        prompts.encode_pairs(ByteTokenizer(), [("A:", "")], "1")


# --- completions after their contexts: nothing but context + completion is scored -----------------

JOINS = [
    ("Ans", ["wer", "ers", " was"]),
    ("The sum is 1", ["2", "0", " or 2"]),
    ("She is un", ["likely", "happy", "-"]),
    ("The plural of dog is dog", ["s", "es", " s"]),
    ("Answer: (", ["a)", "b)"]),
    ("https:", ["//x", "/"]),
    ("\u65e5\u672c\u306e", ["\u9b54\u6cd5", "\u5c71", "\U0001f600"]),
    ("self.as", ["sertEqual", "_is"]),
    ("wait..", [".", "!"]),
    ("it ", [" is", "is", "\nis"]),
    ("", ["s", " s"]),
    (" \n", ["dogs", "Dogs ate"]),
    ("U", [".S.", "S"]),
    ("class Te", ["st:", "a"]),
    ("\u00e9", ["\u0301e", "x"]),
    ("f", ["i", "\ufb01"]),
]


@pytest.mark.parametrize("name", tokenizers.ALL)
def test_what_is_scored_is_the_context_and_the_completion_and_no_other_text(name):
    text = tokenizers.build(name)
    ragged = [
        (tokenizers.TEXT[:at], [tokenizers.TEXT[at : at + 9], tokenizers.TEXT[at + 1 : at + 7]])
        for at in range(0, 130, 3)
    ]
    for context, completions in JOINS + ragged:
        completions = [
            one
            for one in completions
            if text.encode(context + one) != text.encode(context.rstrip())
        ]
        pairs = [(context, one) for one in completions]
        found = prompts.encode_pairs(text, pairs, "0")
        assert (
            len({before for before, _ in found}) <= 1
        )  # after one text, or they cannot be compared
        for (before, after), (_, completion) in zip(found, pairs, strict=True):
            begun = (
                (text.start_of_text,)
                if before == (text.start_of_text,) != tuple(text.encode(context)[:1])
                else ()
            )
            said = text.decode((before + after)[len(begun) :])
            assert said == text.decode(text.encode(context + completion))
            assert after and before
            if name in tokenizers.EXACT:
                assert said == context + completion and text.decode(after).endswith(completion)
                assert text.decode(before[len(begun) :]) == context.rstrip()


def test_a_completion_that_a_token_joins_to_its_context_is_encoded_apart():
    text = tokenizers.build("gpt2")
    ((before, after), (_, other)) = prompts.encode_pairs(
        text, [("ques", "tion marks"), ("ques", " marks")], "0"
    )
    assert (list(before), list(after)) == (text.encode("ques"), text.encode("tion marks")) and list(
        other
    ) == text.encode(" marks")


def test_pairs_split_after_the_last_shared_token_if_separate_encoding_changes_the_text():
    text = tokenizers.build("words")
    found = prompts.encode_pairs(
        text, [("The dog", "s"), ("The dog", "gy"), ("The dog", " ran")], "0"
    )
    assert [tuple(text.decode(part) for part in pair) for pair in found] == [
        ("the ", "dogs "),
        ("the ", "doggy "),
        ("the ", "dog ran "),
    ]


@pytest.mark.parametrize("name", tokenizers.ALL)
def test_an_empty_context_is_what_the_tokenizer_begins_with(name):
    text = tokenizers.build(name)
    for context in ("", " ", "\n"):
        ((before, after),) = prompts.encode_pairs(text, [(context, "dogs")], "0")
        assert before == (text.start_of_text,) and text.decode(after).strip() == "dogs"
    how = dataclasses.replace(
        HOW, method=evaluation.Greedy(n_tokens=5), metric="exact_match", description=""
    )
    assert prompts.fit_context(
        Item(id="0", contexts=("",), completions=(" a",)), [], how, text, 20
    ).context_tokens == ((text.start_of_text,),)


def test_what_has_no_tokens_or_those_of_another_is_an_error_of_its_item():
    text = tokenizers.build("words")
    with pytest.raises(
        ValueError, match=r"item 0: the completion ' ' has no tokens in this tokenizer"
    ):
        prompts.encode_pairs(text, [("Yes", " "), ("Yes", " no")], "0")
    alike = Item(id="0", contexts=("It is",), completions=(" US", " us"), right=(1,))
    with pytest.raises(
        ValueError, match="item 0: a correct completion and a wrong one have the same tokens"
    ):
        prompts.fit_context(alike, [], HOW, text, 100)
    assert prompts.fit_context(dataclasses.replace(alike, right=(0, 1)), [], HOW, text, 100)


# --- what tells the answer is no demonstration ----------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"completions": (" 8", " 9")},
        {"completions": (" 9", " 8"), "right": (1,)},  # in another order
        {
            "contexts": (" 4 +  4\t=",),
            "completions": (" 8", " 1"),
        },  # other spaces, another wrong one
        {"contexts": ("\uff14 + 4 =",), "completions": (" 8", " 9")},  # another 4
        {"completions": (" 8", " 9"), "right": (1,)},  # another opinion
        {"contexts": ("4 + 4 = 8\n4 + 5 =",), "completions": (" 9", " 10")},  # the next question
    ],
)
def test_the_item_under_another_id_is_no_demonstration(other):
    same = Item(**{"id": "0", "contexts": ("4 + 4 =",), "completions": (" 8",)} | other)
    others = [dataclasses.replace(one, contexts=(f"{one.id} + 2 =",)) for one in POOL[:5]]
    assert (
        sorted(drawn(pool=[same, *others], shots=6)) == ["0", "1", "2", "3", "4"] and same.id == "0"
    )
    assert drawn(pool=[same], shots=1) == []


def test_the_same_question_answered_in_other_words_is_no_demonstration():
    one = dataclasses.replace(ITEM, completions=(" 8",))
    assert drawn(one, [dataclasses.replace(one, id="y", completions=(" eight",))], shots=1) == []


def test_items_that_only_look_alike_are_demonstrations():
    def choice(name, *completions, context="Which is grammatical?"):
        return Item(id=name, contexts=(context,), completions=completions)

    pool = [choice(str(n), f" We go {n}.", f" We goes {n}.") for n in range(4)]
    assert len(drawn(pool[0], pool, 3)) == 3  # one context for all, the choice is what differs
    unconditional = [choice(str(n), f"{n} dogs", f"{n} dog", context="") for n in range(4)]
    assert len(drawn(unconditional[0], unconditional, 3)) == 3
    assert len(drawn(ITEM, [dataclasses.replace(ITEM, id="y", contexts=("14 + 4 =",))], 1)) == 1


def test_no_two_demonstrations_are_alike():
    twice = POOL + [dataclasses.replace(one, id=f"again {one.id}") for one in POOL]
    found = drawn(pool=twice, shots=20)
    assert len({one.removeprefix("again ") for one in found}) == len(found) == 10


def test_to_draw_more_demonstrations_is_not_to_compare_each_with_each():
    pool = [
        Item(id=str(n), contexts=(f"{n} + 1 =",), completions=(f" {n + 1}",)) for n in range(1000)
    ]

    def calls(shots):
        """Of Python functions."""
        n = 0

        def count(frame, event, argument):
            nonlocal n
            n += event == "call"

        before = sys.getprofile()
        assert len(drawn(pool=pool, shots=shots)) == shots  # what is normalized is kept
        sys.setprofile(count)
        drawn(pool=pool, shots=shots)
        sys.setprofile(before)
        return n

    assert calls(320) < 15 * calls(32)
