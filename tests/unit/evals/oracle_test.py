"""Who gives each right answer, as far as tokenizer, stops and n_tokens let it, scores 100%: for
all tasks, all tokenizers."""

import dataclasses
import json

import pytest

from gptjax.config import evaluation
from gptjax.evals import metrics, prompts, registry, runner, task_data
from gptjax.generate import streaming
from tests import tokenizers

HARD = [
    "U.S.",
    "1,000",
    "don't",
    "-42",
    "Portland, Oregon",
    "March 5, 1862",
    "\u0218tefan",
    "3.5%",
    "The Who",
    "x",
    "O'Neil & Co.",
]
ROWS = {  # beside each task's example
    **{
        name: [{"question": "q", "answers": [answer, "another"]} for answer in HARD]
        for name in ("natural_questions", "web_questions", "trivia_qa")
    },
    "squad2": [
        {"title": "t", "context": "c", "question": "q", "answers": answers}
        for answers in [[], *([one] for one in HARD)]
    ],
    "drop": [
        {"passage": "p", "question": "q", "answers": answers}
        for answers in [
            *([[one]] for one in HARD),
            [["Berlin, Germany", "Paris, France"]],
            [["a", "b, c", "d, e, f"]],
            [["Ann", "Ben"], ["Ann"]],
        ]
    ],
    "coqa": [{"story": "s", "questions": ["q"], "answers": [[one, one]]} for one in HARD],
    "quac": [
        {
            "title": "t",
            "section": "s",
            "context": "c",
            "questions": ["q"],
            "answers": [[one, one, one]],
        }
        for one in [*HARD, "CANNOTANSWER"]
    ],
    "cnn_dailymail": [{"article": "a", "highlights": "They won't pay 1,000 .\nIt said so ."}],
}
TASKS = {
    name: task
    for name, task in registry.all_tasks().items()
    if isinstance(task.protocol.method, evaluation.GenerationMethod)
}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "N_RESAMPLES", 2)


def oracle(text, item, how):
    """What a model writes that is sure of the right answer."""
    before = prompts._encode_context(text, item.contexts[0])
    whole = tuple(text.encode(item.contexts[0] + item.completions[0]))
    after = (
        whole[len(before) :] if whole[: len(before)] == before else text.encode(item.completions[0])
    )
    told = streaming.StreamingDetokenizer(
        text, before, streaming.normalize_stops(text, how.method.stops)
    )
    return told.add(after[: how.method.n_tokens]) + told.end()


def outcome(text, item, how):
    kept = dataclasses.asdict(item) | {
        "written": oracle(text, item, how),
        "spelling": metrics.tokenizer_forms(item, text),
    }
    return json.loads(json.dumps(kept))


def rows_of(task):
    made = (
        task.make_rows(task.protocol, 0, "test")
        if task.make_rows and "digit" in task.name
        else [task.example]
    )
    return [row for row, _ in zip(made, range(30), strict=False)] + (
        ROWS[task.name] if task.name in ROWS else []
    )


@pytest.mark.parametrize("speaker", tokenizers.ALL)
def test_the_correct_text_scores_full(speaker):
    text = tokenizers.build(speaker)
    for name, task in TASKS.items():
        items = [
            item
            for number, row in enumerate(rows_of(task))
            for item in task.items({"id": str(number), **row}, task.protocol, 0)
        ]
        known = [item for item in items if item.right]
        lost = runner._unreachable_items(task.protocol, known, text)
        able = [item for item in known if item.id not in lost]
        assert len(able) == len(known) or speaker == "bytes", name
        outcomes = [
            metrics.score_item(task, task.protocol, outcome(text, item, task.protocol))
            for item in able
        ]
        for score in metrics.aggregate(task, task.protocol, outcomes, 0):
            best = 100.0
            if name in (
                "coqa",
                "quac",
            ):  # a reference is left out in turn: the shown answer itself may have less
                best = (
                    100
                    * sum(task.score(score.metric, item.completions[0], item) for item in able)
                    / len(able)
                )
            assert score.value == pytest.approx(best) or score.value > best, (name, score)


@pytest.mark.parametrize("speaker", tokenizers.ALL)
def test_other_answers_are_wrong(speaker):
    """The comparison in the tokenizer's spelling lets nothing else pass."""
    text = tokenizers.build(speaker)
    for name, task in TASKS.items():
        for item in task.items(task.example, task.protocol, 0):
            kept = outcome(text, item, task.protocol) | {
                "written": text.decode(text.encode(" something else entirely"))
            }
            found = metrics.score_item(task, task.protocol, kept)["scores"]
            assert (
                all(value < 0.5 for value in found.values()) or name == "wsc" and not item.right
            ), name


def test_the_most_likely_correct_completion_scores_full():
    for name, task in registry.all_tasks().items():
        for how in (task.protocol, *task.conventions.values()):
            if not isinstance(how.method, evaluation.ChoiceMethod):
                continue
            likely = []
            for item in task.items(task.example, how, 0):
                n = len(item.pairs)
                logs = [-1.0 if number in item.right else -50.0 for number in range(n)]
                kept = dataclasses.asdict(item) | {
                    "log_probabilities": logs,
                    "tokens": [1] * n,
                    "before": [-1.0] * n,
                }
                likely.append(
                    metrics.score_item(dataclasses.replace(task, protocol=how), how, kept)
                )
            found = metrics.aggregate(dataclasses.replace(task, protocol=how), how, likely, 0)
            assert found and all(score.value == pytest.approx(100) for score in found), name


# --- tasks of one's own ---------------------------------------------------------------------------

OWN = {
    "a line end in the answer": [("Repeat:", " one\ntwo"), ("Say:", " three")],
    "a blank line in it": [("Repeat:", " one\n\ntwo")],
    "a line end first": [("Q: 1+1?\nA:", "\n2"), ("Q: 1+2?\nA:", "\n\n 3")],
    "long": [("Spell:", " " + " ".join(["word"] * 40)), ("Count:", " 1,000 men")],
    "hard ones": [(f"{n}?", f" {answer}") for n, answer in enumerate(HARD)],
    "spaces": [("x:", " a  b"), ("y:", " 10\u00a0km"), ("z:", " yes\n"), ("w: ", "no")],
    "joined": [("The plural of dog is dog", "s"), ("U", ".S."), ("2 + 2 is 1", "2")],
}


@pytest.mark.parametrize("speaker", tokenizers.ALL)
@pytest.mark.parametrize("metric", ["exact_match", "f1", "bleu", "bleu_mb", "rouge"])
def test_own_tasks_fit_themselves_to_their_answers(speaker, metric, tmp_path):
    text = tokenizers.build(speaker)
    for name, pairs in OWN.items():
        lines = [
            json.dumps({"context": context, "completion": completion}) + "\n"
            for context, completion in pairs
        ]
        (tmp_path / "mine.jsonl").write_text("".join(lines))
        (tmp_path / "mine.toml").write_text(f'metric = "{metric}"')
        task = registry.get_task("mine", tmp_path)
        exam = runner.TaskRun("mine", task, task.protocol, 0, 0, None)
        items, pool = exam.load_items(
            lambda split: task_data.load_rows(task, task.protocol, split, str(tmp_path))  # noqa: B023
        )
        exam = exam.fit_to_data(items, pool, text, 1024)
        assert not runner._unreachable_items(exam.protocol, items, text)
        outcomes = [
            metrics.score_item(task, exam.protocol, outcome(text, item, exam.protocol))
            for item in items
        ]
        for score in metrics.aggregate(task, exam.protocol, outcomes, 0):
            assert score.value == pytest.approx(100), (name, score, outcomes)


def test_unreachable_answers_are_counted(tmp_path):
    text = tokenizers.build("bytes")
    how = evaluation.Protocol(shots=0, method=evaluation.Greedy(n_tokens=4), metric="exact_match")
    items = [
        prompts.Item(id=answer, contexts=("x",), completions=(f" {answer}",), answers=(answer,))
        for answer in ("yes", "nine", "a\nb")
    ]
    assert runner._unreachable_items(how, items, text) == ["nine", "a\nb"]
    assert (
        runner._unreachable_items(how, [dataclasses.replace(items[1], answers=("nine", "9"))], text)
        == []
    )
    assert (
        runner._unreachable_items(
            dataclasses.replace(how, method=evaluation.PerToken(), metric="accuracy"), items, text
        )
        == []
    )
    unknown = prompts.Item(id="u", contexts=("x",), completions=("",), right=())
    assert runner._unreachable_items(how, [unknown], text) == []


def test_stops_are_found_as_the_tokenizer_writes_them():
    """ "Q:" is "q :" to a tokenizer that puts spaces between words: an answer that has it cannot
    be written."""
    text = tokenizers.build("words")
    how = evaluation.Protocol(
        shots=0, method=evaluation.Greedy(n_tokens=9, stops=("Q:",)), metric="exact_match"
    )
    items = [
        prompts.Item(id=answer, contexts=("x",), completions=(f" {answer}",), answers=(answer,))
        for answer in ("yes Q: no", "yes")
    ]
    assert runner._unreachable_items(how, items, text) == ["yes Q: no"]
