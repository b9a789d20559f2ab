"""Tasks of one's own: what rows may have, and what the file beside them says."""

import dataclasses
import json
import types

import pytest

from gptjax.config import evaluation
from gptjax.data.tokenizers import build
from gptjax.evals import metrics, registry, runner, task_data

BYTES = build.ByteTokenizer()


def written(folder, name, *lines, beside="", ending="toml"):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if beside:
        (folder / f"{name.removesuffix('_test')}.{ending}").write_text(beside)


def items(task, folder, shots=0):
    exam = runner.TaskRun(task.name, task, task.protocol, shots, 0, None, use_paper_shots=True)
    asked, pool = exam.load_items(
        lambda split: task_data.load_rows(task, task.protocol, split, str(folder))
    )
    return exam, asked, pool


def only(folder, row):
    written(folder, "mine", row)
    task = registry.get_task("mine", folder)
    _, (item,), _ = items(task, folder)
    return task, item


def test_several_right_answers(tmp_path):
    for row, shown, right in [
        ({"completion": " Paris", "answers": ["Lutetia", "Paris"]}, " Paris", ("Paris", "Lutetia")),
        ({"answers": ["Paris", "Lutetia"]}, " Paris", ("Paris", "Lutetia")),
        ({"answers": ["\nParis"]}, "Paris", ("Paris",)),
    ]:
        task, item = only(tmp_path, {"context": "Capital?"} | row)
        assert item.completions == (shown,) and item.answers == right and item.right == (0,)
        assert [task.score("exact_match", text, item) for text in (*right, "Rome")] == [1.0] * len(
            right
        ) + [0.0]
    assert (
        item.contexts == ("Capital?\n",) and item.as_demonstration == "Capital?\nParis"
    )  # a line end is the question's form


def test_several_right_choices_and_graded_ones(tmp_path):
    two = {"context": "Sugar is", "completions": [" sweet", " sour", " white"]}
    task, item = only(tmp_path, two | {"labels": [0, 2]})
    assert (
        item.right == (0, 2)
        and item.as_demonstration == "Sugar is sweet"
        and metrics.metric_names(task, task.protocol) == ["accuracy"]
    )
    task, item = only(tmp_path, two | {"labels": []})
    assert not item.has_answer
    task, item = only(tmp_path, two | {"grades": [0.5, 0, 1]})
    assert (
        item.right == (2,)
        and item.facts == {"grades": [0.5, 0.0, 1.0]}
        and metrics.metric_names(task, task.protocol) == ["grade"]
    )
    task, item = only(tmp_path, two | {"grades": [0, 0, 0]})
    assert (
        item.right == () and item.has_answer
    )  # whatever is chosen is worth nothing, which is known


@pytest.mark.parametrize(
    "row,said",
    [
        (
            {"completions": [" a", " b"], "label": 2},
            "item 0 has label 2 and 2 completions: give the number of one, from 0",
        ),
        ({"completions": [" a", " b"], "label": 0.5}, "item 0 has label 0.5 and 2 completions"),
        (
            {"completions": [" a", " b"], "labels": [0, -1]},
            "item 0 has label 0, -1 and 2 completions",
        ),
        (
            {"completions": [" a", " b"], "grades": [1]},
            r"item 0 has 2 completions and grades \[1\]: give each one from 0 to 1",
        ),
        ({"completions": [" a", " b"], "grades": [1, 2]}, "item 0 has 2 completions and grades"),
        ({"completion": " \n"}, "item 0 has no right answer, or an empty one"),
        ({"answers": []}, "item 0 has no right answer, or an empty one"),
        ({"completions": [" a", " b"]}, "has no column 'label'"),
        ({"answer": " a"}, "has no column 'completion'"),
        ({"completions": [" a", 3], "label": 0}, "completions holds"),
    ],
)
def test_an_unusable_row_is_a_one_line_error(row, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        only(tmp_path, {"context": "x"} | row)


def test_an_ambiguous_name_is_refused(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, said in (
        ("arithmetic", "arithmetic is a group of tasks, and .* has a file of that name"),
        ("deep/x", "--tasks=deep/x: a task"),
    ):
        written(tmp_path, name, {"context": "1 + 1 =", "completion": " 2"})
        with pytest.raises(ValueError, match=said):
            registry.get_tasks([name], tmp_path)
    assert len(registry.get_tasks(["arithmetic"], tmp_path / "deep")) > 1


def test_an_unusable_item_leaves_the_others(tmp_path, monkeypatch):
    real = runner.prompts.sample_fewshot
    lines = [{"context": f"{n} is", "completions": [" a", " b"], "label": n % 2} for n in range(5)]
    written(tmp_path, "mine", *lines, {"context": "x", "completions": [" a", " b"], "label": 7})
    task, refused = registry.get_task("mine", tmp_path), {}
    exam = runner.TaskRun("mine", task, task.protocol, 2, 0, None)
    drawn = []
    monkeypatch.setattr(
        runner.prompts, "sample_fewshot", lambda *given: drawn.append(given) or real(*given)
    )
    asked, pool = exam.load_items(
        lambda split: task_data.load_rows(task, task.protocol, split, str(tmp_path)), refused
    )
    model = types.SimpleNamespace(
        tokenizer=BYTES,
        inference_model=types.SimpleNamespace(
            model=types.SimpleNamespace(config=types.SimpleNamespace(n_ctx=40))
        ),
    )
    asked[1] = type(asked[1])(id="long", contexts=("x",), completions=(" a" * 40, " b"))
    made = exam.build_prompts(asked, pool, model, str, refused)
    assert [prompt.item.id for prompt in made] == ["0", "2", "3", "4"]
    assert (
        set(refused) == {"5", "long"}
        and "label 7" in refused["5"]
        and "leaves no space" in refused["long"]
    )
    drawn.clear()
    with pytest.raises(ValueError, match="9999 demonstrations are requested, and 5 are available"):
        dataclasses.replace(exam, shots=9999).build_prompts(asked, pool, model, str, {})
    assert not drawn  # at once: for each item it would take days
    with pytest.raises(ValueError, match="item long"):
        exam.build_prompts(asked, pool, model, str)  # nobody to tell
    with pytest.raises(ValueError, match="leaves no space"):
        exam.build_prompts([asked[1]], pool, model, str, {})  # nothing left to ask
    broken = dataclasses.replace(
        exam,
        task=dataclasses.replace(
            task, items=lambda row, *how: [int("x")] if row["id"] == "1" else task.items(row, *how)
        ),
    )
    with pytest.raises(ValueError, match="invalid literal"):
        broken.load_items(
            lambda split: task_data.load_rows(task, task.protocol, split, str(tmp_path)), {}
        )  # a bug is none of the data's
    empty = dataclasses.replace(exam, task=dataclasses.replace(task, items=lambda *row: []))
    with pytest.raises(ValueError, match="mine.jsonl has no item that can be evaluated"):
        empty.load_items(
            lambda split: task_data.load_rows(task, task.protocol, split, str(tmp_path)), {}
        )


BESIDE = """
about = "sums"
description = "Add up, \\"exactly\\":"
description_min_shots = 1
separator = "\\n"
method = "Beam"
metric = "rouge_l"
n_tokens = 9
stops = [";", "\\n\\n"]
few = 3
fixed_shots = true
language = "de"
"""


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_the_settings_file_sets_the_protocol(ending, tmp_path):
    import tomllib

    beside = BESIDE if ending == "toml" else json.dumps(tomllib.loads(BESIDE))
    written(
        tmp_path,
        "sums_test",
        {"context": "1 + 1 =", "completion": " 2"},
        beside=beside,
        ending=ending,
    )
    task = registry.get_task("sums", tmp_path)
    assert task.summary == "sums" and task.auto_fields == frozenset()
    assert task.protocol == evaluation.Protocol(
        shots=3,
        method=evaluation.Beam(n_tokens=9, stops=(";", "\n\n")),
        metric="rouge_l",
        description='Add up, "exactly":',
        description_min_shots=1,
        separator="\n",
        fixed_shots=True,
    )
    _, (item,), _ = items(task, tmp_path)
    assert item.facts == {"language": "de"} and metrics.metric_names(task, task.protocol) == [
        "rouge_l"
    ]


def test_methods_and_stops_are_written_as_on_the_command_line(tmp_path):
    for beside, method, still_open in [
        ("", evaluation.Greedy(n_tokens=32), {"shots", "n_tokens", "stops"}),
        ('method = "TopK(n_tokens=5, k=3)"', evaluation.TopK(n_tokens=5, k=3), {"shots", "stops"}),
        (
            'method = "Greedy"\nstops = "END"',
            evaluation.Greedy(n_tokens=32, stops=("END",)),
            {"shots", "n_tokens"},
        ),
        ("stops = []\nfew = 0", evaluation.Greedy(n_tokens=32, stops=()), {"n_tokens"}),
        (
            'method = "LastWord"\nmetric = "accuracy"',
            evaluation.LastWord(),
            {"shots", "n_tokens", "stops"},
        ),
    ]:
        written(tmp_path, "mine", {"context": "1", "completion": " 2"}, beside=beside or "\n")
        task = registry.get_task("mine", tmp_path)
        assert task.protocol.method == method and task.auto_fields == still_open
        assert metrics.metric_names(task, task.protocol)


WRITES, CHOOSES = (
    {"context": "1", "completion": " 2"},
    {"context": "1", "completions": [" 2", " 3"], "label": 0},
)


@pytest.mark.parametrize(
    "row,beside,ending,said",
    [
        (
            WRITES,
            'metod = "Beam"',
            "toml",
            r"mine.toml: there is no key 'metod'; did you mean method\?",
        ),
        (
            WRITES,
            '{"zzz": 1}',
            "json",
            "mine.json: there is no key 'zzz'; give any of about, language, description",
        ),
        (WRITES, "few = -1", "toml", "mine.toml: .*shots=-1"),
        (WRITES, "few = 2.5", "toml", "mine.toml: shots=2.5: give a whole number"),
        (WRITES, "n_tokens = 0", "toml", "mine.toml: .*n_tokens"),
        (WRITES, "about = 3", "toml", "mine.toml: 'about' is 3; it must be a text"),
        (WRITES, 'metric = "blue"', "toml", "mine.toml: metric=blue: give accuracy"),
        (
            WRITES,
            'metric = "accuracy"',
            "toml",
            "mine.toml: metric=accuracy does not apply to generated text; give one of exact_match",
        ),
        (WRITES, 'method = "Bean"', "toml", "mine.toml: method=Bean"),
        (WRITES, "method = 3", "toml", "mine.toml: method=3"),
        (WRITES, "method = {n = 3}", "toml", "mine.toml: "),
        (WRITES, "stops = [1]", "toml", "mine.toml: method.stops"),
        (WRITES, "few = ", "toml", "mine.toml is not TOML"),
        (WRITES, "[[" * 5000, "toml", "mine.toml is not TOML"),
        (WRITES, "few = " + "9" * 5000, "toml", "mine.toml"),
        (WRITES, "[1]", "json", "mine.json holds a JSON list"),
        (WRITES, "{", "json", "mine.json is not JSON"),
        (
            WRITES,
            'method = "PerToken"',
            "toml",
            r"mine.toml: method=PerToken\(\) does not work for rows with completion",
        ),
        (
            CHOOSES,
            'method = "Greedy"',
            "toml",
            "mine.toml: method=.* does not work for rows with completions, label",
        ),
        (
            CHOOSES,
            "n_tokens = 3",
            "toml",
            "mine.toml: method.n_tokens: PerToken has no field 'n_tokens'",
        ),
    ],
)
def test_an_invalid_settings_file_is_a_one_line_error(row, beside, ending, said, tmp_path):
    written(tmp_path, "mine", row, beside=beside, ending=ending)
    with pytest.raises(ValueError, match=said) as refused:
        registry.get_task("mine", tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 6000


def test_two_settings_files_or_bytes_that_are_not_text(tmp_path):
    written(tmp_path, "mine", WRITES, beside="few = 1")
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"mine.toml and .*mine.json both set the protocol of mine: keep one"
    ):
        registry.get_task("mine", tmp_path)
    (tmp_path / "mine.json").unlink()
    (tmp_path / "mine.toml").write_bytes(b"few = 1 # \xff")
    with pytest.raises(ValueError, match="mine.toml is not UTF-8 text"):
        registry.get_task("mine", tmp_path)


def test_few_shot_uses_the_available_demonstrations(tmp_path):
    for name, lines, few in [
        ("some", [{"context": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(17)], 16),
        (
            "twice",
            [{"context": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(17)] * 2,
            16,
        ),
        ("many", [{"context": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(80)], 32),
        (
            "unknown",
            [
                {"context": f"{n} is", "completions": [" a", " b"], "label": -(n % 2)}
                for n in range(10)
            ],
            4,
        ),
        ("one", [{"context": "1 + 1 =", "completion": " 2"}], 0),
    ]:
        written(tmp_path, name, *lines)
        task = registry.get_task(name, tmp_path)
        exam, asked, pool = items(task, tmp_path, task.protocol.shots)
        assert (
            task.protocol.shots == 32 and exam.fit_to_data(asked, pool, BYTES, 64).shots == few
        ), name
    told = runner.TaskRun("some", registry.get_task("some", tmp_path), task.protocol, 20, 0, None)
    assert (
        told.fit_to_data(*items(told.task, tmp_path)[1:], BYTES, 64).shots == 20
    )  # a number that was given is not changed


def test_chosen_settings_stay_and_long_answers_get_half_the_context(tmp_path):
    long = {"context": "Say:", "completion": " one\n" + "word " * 40}
    for beside, n_tokens, stops in [
        ("", 205, ()),
        ("n_tokens = 5", 5, ()),
        ('stops = ["\\n"]', 205, ("\n",)),
        ("", 50, ()),
        ("", 16, ()),
    ]:
        written(tmp_path, "mine", long, beside=beside or "\n")
        task = registry.get_task("mine", tmp_path)
        exam, asked, pool = items(task, tmp_path)
        method = exam.fit_to_data(
            asked, pool, BYTES, 2 * n_tokens if n_tokens in (50, 16) else 1000
        ).protocol.method
        assert method == evaluation.Greedy(n_tokens=n_tokens, stops=stops or ("\n\n",))
