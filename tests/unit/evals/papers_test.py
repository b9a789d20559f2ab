"""How tasks that read and write put their rows, beyond what tests/golden/prompts.txt shows; rows
from TFDS; bad rows."""

import dataclasses
import json

import numpy as np
import pytest

from gptjax.evals import registry, task_data
from gptjax.evals.tasks import translation


def items(name, shots=0, way=None, **change):
    task = registry.get_task(name)
    protocol = task.conventions[way] if way else task.protocol
    return list(task.items({**task.example, **change}, protocol, shots))


def test_lambadas_last_word_keeps_the_space_before_it():
    (item,) = items("lambada", text=' He said, "No."\n\nThen he left \n')
    assert (item.contexts, item.completions) == (('He said, "No."\n\nThen he',), (" left",))
    (item,) = items("lambada", text="He said:\nyes")
    assert (item.contexts, item.completions) == (("He said:",), ("\nyes",))
    (item,) = items("lambada", shots=1, text="He said:\nyes")
    assert item.as_demonstration == "He said:\n____. -> yes"


def test_gpt2s_lambada_is_prepared_as_in_its_issue_131():
    """Its preprocess, run: four kinds of marks become straight ones, apostrophes stay, a newline
    stands in front."""
    text = " \u201cIt\u2019s the dog's,\u201d said ``Ida'', and \"left\u201d\n"
    (item,) = items("lambada", way="gpt2", text=text)
    assert item.contexts[0] + item.completions[
        0
    ] == '\n"It\u2019s the dog\'s," said "Ida", and "left"' and item.completions == (' "left"',)
    assert items("lambada", way="plain", text=text)[0].contexts[0].startswith("\u201cIt")


def test_an_unknown_prompt_variant_is_refused():
    task = registry.get_task("lambada")
    with pytest.raises(
        ValueError, match="^prompt_variant=gpt9: this task has paper, plain, blank, gpt2$"
    ):
        list(task.items(task.example, dataclasses.replace(task.protocol, prompt_variant="gpt9"), 0))


def test_a_candidate_keeps_what_stands_close_to_it():
    (item,) = items(
        "cbt_ne",
        sentences=["Oh ."],
        question="`` XXXXX 's here , '' he said .",
        candidates=["Ida", "Rex"],
        answer="Rex",
    )
    assert item.contexts == ('Oh. "',) and item.completions == (
        "Ida's here,\" he said.",
        "Rex's here,\" he said.",
    )
    assert item.right == (1,)


def test_units_are_those_of_the_text_as_published():
    assert (
        items("ptb", text=" a b \n c \n")[0].units == 5 == items("ptb", text=" a b \n c ")[0].units
    )
    assert items("wikitext103", text=" a @-@ b \n")[0].units == 3
    assert (
        items("enwik8", text="\u00e9a")[0].units == 3
        and items("text8", text="\u00e9a")[0].units == 2
    )
    assert items("wikitext2", text="a b")[0].units == 0  # its tokens


def test_the_articles_other_questions_stand_before():
    first, second = items("race_h")
    assert first.contexts[0].index("Ida goes there _ .\n\nA: weekly") < first.contexts[0].index(
        "Q: How does Ida"
    )
    assert second.contexts[0].endswith("A: By boat\n\nQ: Ida goes there _ .\n\nA:")
    assert (first.right, second.right) == ((1,), (2,))


def test_questions_of_the_closed_book_are_written_as_sentences():
    """Figures G.24, G.35 and, as it is, G.34; Natural Questions have neither capital nor mark,
    WebQuestions no capital."""
    for name, put in (
        ("natural_questions", "Who was he?"),
        ("web_questions", "Who was he?"),
        ("trivia_qa", "who was he"),
    ):
        for shots in (0, 64):
            assert items(name, shots, question="who was he")[0].contexts == (f"Q: {put}\n\nA:",)
    for question, put in (
        (" what is it? ", "What is it?"),
        ("what is it ?", "What is it?"),
        ("\u00e9a?", "\u00c9a?"),
        ("is it 5", "Is it 5?"),
    ):
        for name in ("natural_questions", "web_questions"):
            assert items(name, question=question)[0].contexts == (f"Q: {put}\n\nA:",)
    assert items("natural_questions", way="gpt2", question="who was he")[0].contexts == (
        "Q: Who was he?\nA:",
    )
    assert items("trivia_qa", question=" 'Nude' is by whom? ")[0].contexts == (
        "Q: 'Nude' is by whom?\n\nA:",
    )


def test_the_earlier_questions_about_a_paragraph_stand_before(tmp_path):
    """Figure G.28, from a file with a question a line, in which paragraphs may be mixed."""
    blitz, other = (
        {"title": "The_Blitz", "context": "From the German point of view."},
        {"title": "The_Blitz", "context": "Other."},
    )
    lines = [
        blitz
        | {"question": "How many sorties were flown in March 1941?", "answers": ["4,000", "4000"]},
        other | {"question": "Who?", "answers": []},
        blitz
        | {
            "question": "When did the Luftwaffe fly inland missions?",
            "answers": ["only on moonlit nights"],
        },
        other | {"question": "Where?", "answers": ["there"]},
        blitz | {"question": "And then?", "answers": []},
    ]
    (tmp_path / "squad2_validation.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    task = registry.get_task("squad2")
    found = task_data.load_rows(task, task.protocol, "validation", str(tmp_path)).rows
    first, who, second, where, third = [
        item for row in found for item in task.items(row, task.protocol, 16)
    ]
    head = "Title: The_Blitz\n\nBackground: From the German point of view.\n\n"
    assert first.contexts == (
        head + "Q: How many sorties were flown in March 1941?\n\nA:",
    ) and first.as_demonstration.endswith("A: 4,000")
    assert second.contexts == (
        first.as_demonstration + "\n\nQ: When did the Luftwaffe fly inland missions?\n\nA:",
    )
    assert (
        third.contexts == (second.as_demonstration + "\n\nQ: And then?\n\nA:",)
        and third.answers == ()
    )
    assert (
        "\n\nBackground: Other.\n\nQ: Who?\n\nA: unanswerable\n\nQ: Where?\n\nA:"
        in where.contexts[0]
    )


def test_quacs_paragraph_is_on_the_line_after_its_title():
    first, second = items("quac")
    assert first.contexts[0].startswith(
        "TITLE: Anna Lind - Early work\nPARAGRAPH: Lind built"
    ) and second.contexts[0].startswith(first.as_demonstration)
    assert registry.get_task("quac").tfds is None  # whose questions are shuffled


def test_what_is_not_answered():
    assert all(
        items("squad2", answers=none)[0].as_demonstration.endswith("A: unanswerable")
        for none in ([], [""])
    )
    assert (
        items("natural_questions", answers=[])[0].right
        == ()
        == items("drop", answers=[[""]])[0].right
    )
    assert items("drop", answers=[["Lind", "Berg"]])[0].as_demonstration.endswith(
        "Answer: Lind, Berg"
    )


def test_gpt2s_translations_are_cut_to_a_sentence():
    assert items("wmt14_en_fr", way="gpt2")[0].facts == {"language": "fr", "sentences": 1}
    assert items("wmt14_en_fr")[0].facts == {"language": "fr"}


BAD = {
    "one word": ("lambada", {"text": "word"}, "lambada, row 0: a passage has two words or more"),
    "no blank": (
        "cbt_cn",
        {"question": "no gap ."},
        "cbt, row 0: a question has one XXXXX, and the answer is one of the candidates",
    ),
    "no candidate": ("cbt_cn", {"answer": "whale"}, "cbt, row 0: a question has one XXXXX"),
    "a letter beyond": (
        "race_h",
        {"answers": ["B", "E"]},
        "race, row 0: give each question its options and the letter",
    ),
    "no letter": ("race_h", {"answers": ["B"]}, "race, row 0: give each question"),
    "an answer short": (
        "coqa",
        {"answers": [["x"]]},
        "coqa, row 0: 3 questions, 1 lists of answers; give one each",
    ),
    "no answer": (
        "quac",
        {"answers": [["x"], []]},
        "quac, row 0: 2 questions, 2 lists of answers; give one each",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_row_is_a_one_line_error(name):
    task, change, said = BAD[name]
    with pytest.raises(ValueError, match=f"^{said}"):
        items(task, **change)


def texts(*given):
    return np.array([text.encode() for text in given], object)


# One example of each set as TFDS 4.9.10 has it, by the features in its source.
TFDS = {
    "lambada": {"passage": b"one two three\n"},
    "natural_questions": {"question": b"who", "answer": texts("A", "B")},
    "web_questions": {"url": b"u", "question": b"who", "answers": texts("A")},
    "trivia_qa": {
        "question_id": b"q7",
        "question": b"who",
        "answer": {"value": b"A", "aliases": texts("A", "B"), "type": b""},
    },
    "wmt14_en_fr": {"en": b"yes", "fr": b"oui"},
    "wmt16_ro_en": {"en": b"yes", "ro": b"da"},
    "cnn_dailymail": {"article": b"x. y.", "highlights": b"x .", "publisher": b"", "id": b"7"},
    "lm1b": {"text": b"It rains ."},
    "coqa": {
        "source": b"s",
        "story": b"x",
        "questions": texts("a?", "b?"),
        "answers": {
            "input_text": texts("a", "b"),
            "answer_start": np.array([0, 1], np.int32),
            "answer_end": np.array([0, 1], np.int32),
        },
    },
    "squad2": {
        "id": b"q7",
        "title": b"t",
        "context": b"x",
        "plausible_answers": {"text": texts(), "answer_start": np.array([], np.int32)},
        "question": b"a?",
        "is_impossible": np.bool_(True),
        "answers": {"text": texts(), "answer_start": np.array([], np.int32)},
    },
    "drop": {
        "passage": b"x",
        "question": b"a?",
        "answer": b"3",
        "validated_answers": texts("3", ""),
        "query_id": b"q7",
    },
    "race_h": {
        "article": b"x",
        "questions": texts("a?"),
        "answers": texts("B"),
        "options": [texts("u", "v", "w", "x")],
        "example_id": b"high1.txt",
    },
}


@pytest.mark.parametrize("name", TFDS)
def test_tfds_examples_become_rows(name):
    task = registry.get_task(name)
    row = {"id": "0", **task.from_tfds(task_data.decode_example(TFDS[name], name))}
    assert task_data.check_row(row, task.schema, name) == row and task.tfds
    assert list(task.items(row, task.protocol, 0))
    if name in ("trivia_qa", "squad2", "drop"):
        assert row["id"] == "q7"
    if name == "drop":
        assert row["answers"] == [["3"], ["3"]]  # what is empty is no answer


def test_every_tfds_data_set_of_these_tasks_is_tried():
    pairs = {task.name for task in translation.TASKS} | {"race_m"}
    families = {
        "lambada",
        "cbt",
        "language_modeling",
        "closed_book",
        "translation",
        "summaries",
        "coqa",
        "squad",
        "drop",
        "race",
    }
    mine = {
        name
        for name, task in registry.all_tasks().items()
        if task.tfds and task.items.__module__.rsplit(".", 1)[-1] in families
    }
    assert mine - pairs == {*TFDS} - pairs
