"""How each task of choices is put, against the figures of GPT-3's Appendix G, and how TFDS'
features become its rows.

Features are those of tensorflow_datasets 4.9.10."""

import dataclasses
import importlib
import pkgutil

import pytest

from gptjax.config.evaluation import PerToken, Total, Unconditional
from gptjax.evals import metrics, task_data, tasks
from gptjax.evals.task import Task

MODULES = (
    "analogies anli arc hellaswag multirc openbookqa piqa record storycloze superglue winograd "
    "winogrande wsc"
).split()
TASKS: dict[str, Task] = {
    task.name: task
    for name in MODULES
    for task in importlib.import_module(f"gptjax.evals.tasks.{name}").TASKS
}


def items(name, row=None, shots=0, **changes):
    task = TASKS[name]
    return list(
        task.items(row or task.example, dataclasses.replace(task.protocol, **changes), shots)
    )


def test_every_module_is_there():
    assert set(MODULES) <= {module.name for module in pkgutil.iter_modules(tasks.__path__)}


PUT = {  # of each example: the context, the completions, the numbers of those that are right
    "sat_analogies": (
        "kitten is to cat as",
        (
            " puppy is to dog",
            " hen is to egg",
            " leaf is to tree",
            " cow is to milk",
            " nest is to bird",
        ),
        (0,),
    ),
    "storycloze": (
        "Ana found a wallet on the bus. There was money in it. She asked the driver for help. He "
        "knew the owner.",
        (
            " The wallet was back with its owner that evening.",
            " The bus learned to swim that evening.",
        ),
        (0,),
    ),
    "piqa": (
        "How to keep a door open.",
        (" Push a wedge under its lower edge.", " Push a wedge under its handle."),
        (0,),
    ),
    "arc_easy": (
        "Question: Which of these gives off light of its own?\nAnswer:",
        (" the sun", " the moon", " a mirror", " a window"),
        (0,),
    ),
    "openbookqa": (
        "A plant that stands in a dark cupboard will",
        (" grow pale.", " sing.", " turn to stone.", " catch mice."),
        (0,),
    ),
    "anli_r2": (
        "anli 2: anli 2: The lighthouse of the island was built in 1871 and has been dark since "
        "1990.\n"
        "Question: The lighthouse shone for more than a century. True, False, or Neither?",
        (" True", " Neither", " False"),
        (0,),
    ),
    "boolq": (
        "Tidal island -- A tidal island is land that is joined to the mainland by a way that is "
        "under water at high tide.\n"
        "question: can you walk to a tidal island?\nanswer:",
        (" no", " yes"),
        (1,),
    ),
    "cb": (
        "Nobody at the inn believed that the bridge had fallen. They had crossed it that morning.\n"
        "question: the bridge had fallen. true, false, or neither?\nanswer:",
        (" true", " false", " neither"),
        (1,),
    ),
    "copa": (
        "The candle went out because",
        (" the wind blew through the window.", " the table was made of oak."),
        (0,),
    ),
    "rte": (
        "The ferry to the island was cancelled on Monday because of the storm.\n"
        "question: The ferry sailed on Monday. True or False?\nanswer:",
        (" True", " False"),
        (1,),
    ),
    "wic": (
        "They fished from the bank.\nThe bank closes at four.\n"
        "question: Is the word 'bank' used in the same way in the two sentences above?\nanswer:",
        (" no", " yes"),
        (0,),
    ),
    "wsc": (
        "Passage: The baker thanked the miller because *he* had brought the flour early.\n"
        'Question: In the passage above, what does the pronoun "*he*" refer to?\nAnswer:',
        (" the miller",),
        (0,),
    ),
    "record": (
        "Mayor Ines Falk opened the bridge over the Lund on Friday. The old one fell in 2009, when "
        "Per Dahl was mayor.\n\n"
        "- The bridge cost nine million\n- The old one was built in 1911",
        tuple(
            f"\n- Under {name} the town was without a bridge for a year."
            for name in ("Ines Falk", "Lund", "Per Dahl")
        ),
        (2,),
    ),
}


@pytest.mark.parametrize("name", PUT)
def test_prompts_are_those_of_the_figures(name):
    (item,) = items(name)
    assert ((item.contexts[0],), item.completions, item.right) == (item.contexts, *PUT[name][1:])
    assert item.contexts[0] == PUT[name][0]


@pytest.mark.parametrize("name", TASKS)
def test_invariants_of_every_item(name):
    task = TASKS[name]
    found = items(name)
    assert all(
        item.right
        and item.as_demonstration
        and task.summary
        and task.data_hint
        and task.scorer_source
        and task.paper_scores
        for item in found
    )
    for item in found:
        assert not any(context.endswith((" ", "\n")) for context in item.contexts), (
            "completions bring their own space"
        )
        assert all(completion[0] in " \n" for completion in item.completions)
        assert len(item.contexts) in (1, len(item.completions))
    assert (
        task.example["id"] == "0"
        and task_data.check_row(task.example, task.schema, name) == task.example
    )


K = {
    "sat_analogies": 20,
    "hellaswag": 20,
    "storycloze": 70,
    "winograd": 7,
    "winogrande": 50,
    "piqa": 50,
    "arc_easy": 50,
    "arc_challenge": 50,
    "openbookqa": 100,
    **dict.fromkeys(["anli_r1", "anli_r2", "anli_r3"], 50),
    **dict.fromkeys(["boolq", "cb", "copa", "rte", "wic", "wsc", "multirc", "record"], 32),
}


def test_protocols():
    assert {name: task.protocol.shots for name, task in TASKS.items()} == K
    assert {name for name, task in TASKS.items() if task.protocol.fixed_shots} == {"wsc", "multirc"}
    for name in ("arc_easy", "arc_challenge", "openbookqa"):
        assert TASKS[name].protocol.method == Unconditional(answer_context="Answer:")
    assert TASKS["winograd"].protocol.method == TASKS["winogrande"].protocol.method == Total()
    assert TASKS["hellaswag"].protocol.method == PerToken()
    assert TASKS["multirc"].protocol.metric == "group_accuracy"


def test_scores_of_the_papers():
    best = {
        name: {p.shots: p.scores["gpt3_175b"] for p in task.paper_scores if p.paper == "GPT-3"}
        for name, task in TASKS.items()
    }
    assert best["hellaswag"] == {"zero": 78.9, "one": 78.1, "few": 79.3} and best["anli_r3"] == {
        "few": 40.2
    }
    assert best["winograd"]["few"] == 88.6 and best["record"]["zero"] == 90.2
    assert [p.scores for p in TASKS["winograd"].paper_scores if p.paper == "GPT-2"] == [
        {"gpt2_1558m": 70.7}
    ]


# --- transformations ------------------------------------------------------------------------------


def test_hellaswag_begins_its_last_sentence_with_a_capital_and_may_be_cleaned():
    (item,) = items("hellaswag")
    assert item.contexts == (
        "Mending a fence: A man carries a plank into a garden. He holds it against a broken "
        "fence. He",
    )
    row = TASKS["hellaswag"].example | {
        "activity_label": "Home",
        "context": "[header] How to mop [title] Fill a pail. [step] Use e.g. warm water.",
        "endings": ["[substeps] Rinse.", "Sing.", "Jump.", "Read."],
    }
    (plain,), (cleaned,) = (
        items("hellaswag", row),
        items("hellaswag", row, prompt_variant="cleaned"),
    )
    assert plain.contexts == (
        "Home: [header] How to mop [title] Fill a pail. [step] Use e.g. warm water.",
    )
    assert cleaned.contexts == ("Home: How to mop. Fill a pail. Use e.g. warm water.",)
    assert (plain.completions[0], cleaned.completions[0]) == (" [substeps] Rinse.", " Rinse.")


def test_winograd_is_a_context_for_each_noun_and_one_ending():
    (partial,), (full,) = items("winograd"), items("winograd", prompt_variant="full")
    before = "The trunk would not go into the car because"
    assert (
        partial.contexts == (f"{before} the trunk", f"{before} the car")
        and partial.completions == (" was too small.",) * 2
    )
    assert full.contexts == (before,) and full.completions == (
        " the trunk was too small.",
        " the car was too small.",
    )
    assert (
        partial.right == full.right == (1,)
        and partial.as_demonstration == full.as_demonstration == f"{before} the car was too small."
    )
    with pytest.raises(ValueError, match="prompt_variant=whole: this task has partial, full"):
        items("winograd", prompt_variant="whole")


@pytest.mark.parametrize(
    "text,pronoun,nouns",
    [
        ("Tim lent Bob a pen but lost his cap.", "his", ("Tim's", "Bob's")),
        ("Ann met Eve and saw her cap.", "her", ("Ann's", "Eve's")),
        ("Ann met Eve and greeted her.", "her", ("Ann", "Eve")),
        ("Ann met Eve and greeted her with joy.", "her", ("Ann", "Eve")),
        ("Dogs met cats and ate their food.", "their", ("Dogs'", "cats'")),
    ],
)
def test_nouns_in_the_place_of_possessive_pronouns(text, pronoun, nouns):
    start = text.index(f" {pronoun}") + 1
    options = [noun.removesuffix("'s").removesuffix("'") for noun in nouns]
    row = {
        "id": "0",
        "text": text,
        "option1": options[0],
        "option2": options[1],
        "pronoun_start": start,
    }
    (item,) = items("winograd", row | {"pronoun_end": start + len(pronoun), "label": 0})
    assert item.contexts == tuple(text[:start] + noun for noun in nouns)


def test_winogrande_fills_the_gap():
    (item,) = items("winogrande")
    before = "Olga lent the bicycle to Tom although the"
    assert (
        item.contexts == (f"{before} bicycle", f"{before} garage")
        and item.completions == (" had a flat tyre.",) * 2
    )


def test_copa_keeps_the_word_i():
    row = TASKS["copa"].example | {
        "choice1": "I blew it out.",
        "choice2": "It was a cold night.",
        "question": "effect",
    }
    (item,) = items("copa", row)
    assert (item.contexts, item.completions) == (
        ("The candle went out therefore",),
        (" I blew it out.", " it was a cold night."),
    )


def test_wsc_is_yes_if_the_noun_is_written():
    score = TASKS["wsc"].score
    (yes,) = items("wsc")
    (no,) = items("wsc", TASKS["wsc"].example | {"span1_text": "The baker", "label": 0})
    (test,) = items("wsc", TASKS["wsc"].example | {"label": -1})
    assert no.right == () and no.answers == () and yes.answers == ("the miller",)
    assert (yes.has_answer, no.has_answer, test.has_answer) == (
        True,
        True,
        False,
    )  # that it is not this noun is an answer too
    written = [" the miller", " Miller", " the old miller", " the baker", ""]
    assert [score("accuracy", text, yes) for text in written] == [1, 1, 1, 0, 0]
    assert [score("accuracy", text, no) for text in (" the baker", " the miller", "", " the")] == [
        0,
        1,
        0,
        0,
    ]
    (choice,) = items("wsc", prompt_variant="choice")
    assert choice.completions == (" no", " yes") and choice.right == (1,)
    assert 'does the pronoun "*he*" refer to "The miller"?' in choice.contexts[0]


@pytest.mark.parametrize(
    "noun,same,others",
    [
        (
            "her dog",
            [" his dog", " Dog", " the big dog", " whose dog"],
            [" her dogs", " dog.", " its  cat"],
        ),
        ("Ida", [" ida", " Ida Lind"], [" Ida's", " Ida's dog", " idas"]),
        ("Ida's hat", [" Ida's", " his Ida's hat"], [" hat", " Ida", " Ida\u2019s hat"]),
        ("the friend", [" my friend", " Friend of mine"], [" friends", " miller."]),
        ("men, women", [" men, women", " women", " some women"], [" men", " men women"]),
        ("These few", [], [" these", " few", " men"]),
    ],
)
def test_wsc_says_the_noun_as_t5_finds_it(noun, same, others):
    """Each by running postprocessors.py's wsc_simple."""
    score, (item,) = TASKS["wsc"].score, items("wsc", TASKS["wsc"].example | {"span1_text": noun})
    assert [text for text in same + others if score("accuracy", text, item)] == same


def test_wsc_drops_21_determiners():
    score, (item,) = (
        TASKS["wsc"].score,
        items("wsc", TASKS["wsc"].example | {"span1_text": "black dog"}),
    )
    words = (
        "a an few her his each every many much my our some that the their these this those "
        "which whose your"
    ).split()
    assert {
        word
        for word in [*words, "its", "no", "one", "no"]
        if score("accuracy", f" {word} dog", item)
    } == set(words)


def test_wsc_marks_the_pronoun_that_is_meant():
    row = TASKS["wsc"].example | {
        "text": "He said that he, not Tom, saw him.",
        "span2_text": "he",
        "span2_index": 3,
    }
    (item,) = items("wsc", row)
    assert item.contexts[0].startswith("Passage: He said that *he*, not Tom, saw him.\n")
    with pytest.raises(
        ValueError, match="span2_text is 'she', which the text does not have at its word 3"
    ):
        items("wsc", row | {"span2_text": "she"})


def test_multirc_asks_each_answer_and_shows_whole_questions():
    found = items("multirc")
    assert [item.id for item in found] == ["0-0", "0-1", "0-2"] and {
        item.group for item in found
    } == {"0"}
    assert found[1].completions == ("\n- [True] Her brother", "\n- [False] Her brother")
    assert [item.right for item in found] == [(0,), (1,), (0,)]
    assert {item.as_demonstration for item in found} == {
        "Ida rowed to the island at dawn. She took bread, a lamp and her brother's map. At noon "
        "the fog came.\n\n"
        "What did Ida take along?\n- [True] A lamp\n- [False] Her brother\n- [True] A map and some "
        "bread"
    }


def test_record_takes_every_right_name_and_each_name_once():
    row = TASKS["record"].example | {
        "entities": ["Lund", "Dahl", "Lund", "Per Dahl"],
        "answers": ["Per Dahl", "Dahl"],
    }
    (item,) = items("record", row)
    assert (
        item.facts["names"] == ["Lund", "Dahl", "Per Dahl"]
        and item.right == (1, 2)
        and len(item.completions) == 3
    )


def test_record_has_the_f1_of_the_chosen_name():
    row = TASKS["record"].example | {
        "entities": ["Lund", "Dahl", "Per Dahl"],
        "answers": ["Per Dahl"],
    }
    (item,) = items("record", row)
    how = TASKS["record"].protocol
    for likeliest, f1 in [(0, 0.0), (1, 2 / 3), (2, 1.0)]:
        outcome = dataclasses.asdict(item) | {
            "tokens": [1] * 3,
            "log_probabilities": [-float(i != likeliest) for i in range(3)],
        }
        judged = metrics.score_item(TASKS["record"], how, outcome)
        assert judged["scores"] == {"accuracy": float(likeliest == 2), "f1": pytest.approx(f1)}


# --- TFDS -----------------------------------------------------------------------------------------

# (features of an example, what the item must be: the beginning of what is shown of it, and the
# right completion)
TFDS = {
    "hellaswag": (
        {
            "context": "A man. he",
            "endings": ["a", "b", "c", "d"],
            "activity_label": "X",
            "label": 2,
            "split_type": "",
            "source_id": "",
        },
        ("X: A man. He", " c"),
    ),
    "storycloze": ({"context": "S.", "endings": ["a", "b"], "label": 2}, ("S.", " b")),
    "winograd": (
        {
            "text": "A hit B as he did.",
            "option1": "A",
            "option1_normalized": "the A",
            "option2": "B",
            "option2_normalized": "the B",
            "pronoun_start": 11,
            "pronoun_end": 13,
            "pronoun_text": "he",
            "label": 1,
            "idx": 3,
        },
        ("A hit B as the B", " did."),
    ),
    "winogrande": (
        {"sentence": "A _ b.", "option1": "x", "option2": "y", "label": 1},
        ("A y", " b."),
    ),
    "piqa": ({"id": "z", "goal": "G", "sol1": "a", "sol2": "b", "label": 1}, ("G", " b")),
    "arc_easy": (
        {
            "id": "Q1",
            "question": "W?",
            "choices": {"text": ["a", "b", "c"], "label": [0, 1, 2]},
            "answerKey": 1,
        },
        ("Question: W?\nAnswer:", " b"),
    ),
    "openbookqa": (
        {
            "question": {
                "stem": "W",
                "choice_A": "a",
                "choice_B": "b",
                "choice_C": "c",
                "choice_D": "d",
            },
            "fact1": "",
            "answerKey": 3,
        },
        ("W", " d"),
    ),
    "anli_r1": (
        {"uid": "u", "context": "C", "hypothesis": "H", "label": 2},
        ("anli 1: anli 1: C\nQuestion: H True", " False"),
    ),
    "boolq": ({"question": "q", "passage": "P", "idx": 4, "label": 0}, ("P\nquestion: q?", " no")),
    "cb": (
        {"premise": "P", "hypothesis": "h", "idx": 4, "label": 2},
        ("P\nquestion: h.", " neither"),
    ),
    "copa": (
        {
            "premise": "P.",
            "choice1": "A",
            "choice2": "B",
            "question": "effect",
            "idx": 4,
            "label": 1,
        },
        ("P therefore", " b"),
    ),
    "rte": (
        {"premise": "P", "hypothesis": "h.", "idx": 4, "label": 0},
        ("P\nquestion: h. True", " True"),
    ),
    "wic": (
        {
            "word": "w",
            "sentence1": "A w.",
            "sentence2": "B w.",
            "start1": 2,
            "start2": 2,
            "end1": 3,
            "end2": 3,
            "idx": 4,
            "label": 1,
        },
        ("A w.\nB w.\nquestion: Is the word 'w'", " yes"),
    ),
    "wsc": (
        {
            "text": "A saw him.",
            "span1_index": 0,
            "span2_index": 2,
            "span1_text": "A",
            "span2_text": "him",
            "idx": 4,
            "label": 1,
        },
        ("Passage: A saw *him*.", " a"),
    ),
    "record": (
        {
            "passage": "T\n@highlight\nh",
            "query": "q @placeholder",
            "entities": ["a", "b"],
            "answers": ["b"],
            "idx": {"passage": 1, "query": 2},
        },
        ("T\n\n- h", "\n- q b"),
    ),
}


@pytest.mark.parametrize("name", TFDS)
def test_an_example_of_tfds_is_a_row(name):
    task = TASKS[name]
    features, (context, completion) = TFDS[name]
    (row,) = task.merge_rows([task.from_tfds(features)])
    assert task_data.check_row(row, task.schema, name) and task.tfds
    (item,) = items(name, {"id": "0"} | row)
    assert (
        item.as_demonstration.startswith(context) and item.completions[item.right[0]] == completion
    )


UNKNOWN = {
    "storycloze": -1,
    "hellaswag": -1,
    "piqa": -1,
    "winogrande": -1,
    "boolq": -1,
    "wic": -1,
    "anli_r1": -1,
    "wsc": -1,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_test_sets_have_no_right_answer(name):
    task = TASKS[name]
    (item,) = items(name, {"id": "0"} | task.from_tfds(TFDS[name][0] | {"label": UNKNOWN[name]}))
    assert item.right == ()


def test_multirc_gathers_the_answers_that_tfds_shuffled():
    def answer(paragraph, question, number, text, label):
        at = {"paragraph": paragraph, "question": question, "answer": number}
        return {
            "paragraph": f"P{paragraph}",
            "question": f"Q{question}",
            "answer": text,
            "label": label,
            "idx": at,
        }

    task = TASKS["multirc"]
    shuffled = [answer(0, 1, 1, "b", 1), answer(2, 5, 0, "c", 0), answer(0, 1, 0, "a", 0)]
    found = list(task.merge_rows(map(task.from_tfds, shuffled)))
    assert found == [
        {"id": "0-1", "paragraph": "P0", "question": "Q1", "answers": ["a", "b"], "labels": [0, 1]},
        {"id": "2-5", "paragraph": "P2", "question": "Q5", "answers": ["c"], "labels": [0]},
    ]
    assert [item.group for row in found for item in items("multirc", row)] == ["0-1", "0-1", "2-5"]
    (unknown,) = items("multirc", found[1] | {"labels": [-1]})
    assert unknown.right == () and unknown.demonstration == ""
