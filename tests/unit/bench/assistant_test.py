"""Questions of bench.assistant and bench.smollm2_format: answers, reward, and their split."""

import random

import pytest

from bench import assistant, assistant_data, assistant_tasks, smollm2_format
from bench.assistant_tasks import Item


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is 17 + 25?", "42"),
        ("Add 9 and 0.", "9"),
        ("Spell stone backwards.", "enots"),
        ("How many letters has rhyme?", "5"),
        ("What is the second letter of stone?", "t"),
        ("Give me the last letter of stone.", "e"),
        ("Put stone in capitals.", "STONE"),
        ("One city, two what?", "cities"),
        ("What is the plural of day?", "days"),
        ("What is the plural of church?", "churches"),
        ("Sort dog, cat, ant.", "ant, cat, dog"),
        ("What is the capital of France?", None),
        ("What is 17 + 25? And then?", None),
    ],
)
def test_solve(question, answer):
    assert assistant_tasks.solve(question) == answer


def test_reward_reads_the_question_of_the_last_turn():
    turn = "<|user|>Add 1 and 2.<|end|><|assistant|>"
    prompts = [turn, turn, turn + "3<|end|><|user|>Add 2 and 2.<|end|><|assistant|>"]
    assert assistant_tasks.reward(prompts, [" 3", "13", "4"]) == [1, 0, 1]
    with pytest.raises(ValueError, match="no question of TASKS"):
        assistant_tasks.reward(["<|user|>Hello<|end|><|assistant|>"], ["3"])


def test_every_question_of_a_task_has_its_answer():
    rng, side = random.Random(0), SIDE
    for task in assistant_data.N_TRAIN:
        for item in assistant_data.questions(rng, task, side, 3):
            assert item.task == task
            if task in assistant_tasks.TASKS:
                assert assistant_tasks.solve(item.question) == item.answer


def test_choose_names_the_word_of_the_gloss():
    glosses = SIDE.glosses
    for seed in range(8):
        item = assistant_data.choose_question(random.Random(seed), glosses)
        assert item.question.startswith(f"{glosses[item.answer]}: ")
        words = item.question.removesuffix("?").rsplit(": ")[1].split(" or ")
        assert item.answer in words
        assert len(set(words)) == 2


def test_the_wording_of_a_fact_that_is_held_out_is_never_trained():
    fact = ("France", "Paris")
    rng = random.Random(0)
    trained = {assistant_tasks.fact_question(rng, "capital", fact, False) for _ in range(50)}
    held_out = {assistant_tasks.fact_question(rng, "capital", fact, True) for _ in range(50)}
    assert (len(trained), len(held_out)) == (2, 1)
    assert not trained & held_out


def test_held_out_questions_are_none_of_training():
    items = [Item("add", "Add 1 and 2.", "3")]
    assistant_data.check_disjoint(items, [Item("add", "Add 2 and 1.", "3")])
    with pytest.raises(AssertionError, match="Add 1 and 2"):
        assistant_data.check_disjoint(items, items)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("{G{eorge} }Washington", "Washington"),
        ("St[.|] Paul|Paul", "St. Paul"),
        ("Bahr[a|e]in", "Bahrain"),
        ("Antigua and Barbuda", "Antigua and Barbuda"),
    ],
)
def test_plain(pattern, text):
    assert assistant_tasks.plain(pattern) == text


def test_read_gloss():
    line = "dog, domestic dog: a member of the genus Canis; occurs in many breeds"
    assert assistant_tasks.read_gloss(line) == ("dog", "a member of the genus Canis")
    assert assistant_tasks.read_gloss("living thing: a living entity") is None


def test_text_prompt_has_as_many_solved_questions_as_fit():
    shots = [Item("add", f"Add {i} and 1.", str(i + 1)) for i in range(3)]
    whole = text_prompt(shots, 1000)
    assert whole.count("Question: ") == 4
    assert whole.endswith("Question: Add 7 and 1.\nAnswer:")
    assert text_prompt(shots, 80).count("Question: ") == 2


def text_prompt(shots, n_tokens):
    ids = assistant.text_prompt(shots, "Add 7 and 1.", lambda text: [*text.encode()], n_tokens)
    return bytes(ids).decode()


def test_summary_counts_the_answers_of_each_task():
    items = [Item("add", "", "1"), Item("add", "", "2"), Item("define", "", "a big dog")]
    found = assistant.summarize([*items, items[2]], {"add": ["1", "3"], "define": ["big dog", "-"]})
    assert found["add"]["accuracy"] == 0.5
    assert found["define"]["f1"] == (0.5, 0.5)
    assert found["define"]["n"] == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"answer": 3, "unit": "keys"}', (3, "keys")),
        ('{"answer": 3.0, "unit": "keys"}\n', (3, "keys")),
        ('{"answer": "3", "unit": "keys"}', None),
        ('{"answer": true, "unit": "keys"}', None),
        ('{"answer": 3}', None),
        ('{"answer": 3, "unit": "keys", "why": ""}', None),
        ("3 keys", None),
        ("[3]", None),
    ],
)
def test_read_answer(text, found):
    assert smollm2_format.read_answer(text) == found


def test_scores_of_answers_in_a_format():
    item = smollm2_format.Item("How many keys?", 3, "keys")
    answers = ['{"answer": 3, "unit": "keys"}', '{"answer": 3, "unit": "pens"}', "2 + 1 = 3", "no"]
    found = smollm2_format.measure(answers, [item] * 4)
    shares = {key: value[0] for key, value in found.items()}
    assert shares == {"in_format": 0.5, "right_number": 0.75, "all_right": 0.25}


def test_questions_of_the_format_share_none():
    found = smollm2_format.make_questions()
    train, held_out = ({item.question for item in found[part]} for part in ("train", "held_out"))
    assert len(train) == smollm2_format.N_TRAIN
    assert len(held_out) == smollm2_format.N_HELD_OUT
    assert not train & held_out


SIDE = assistant_data.Side(
    words=["stone", "dog", "cat", "house"],
    plurals=["dog", "city"],
    pairs=[(3, 1), (7, 7)],
    glosses={"dog": "an animal", "stone": "a rock", "house": "a dwelling"},
    sentences=[("yes", "oui"), ("no", "non"), ("and", "et")],
    facts=[("capital", ("France", "Paris")), ("opposite", ("old", "new"))],
)
