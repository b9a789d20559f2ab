"""gptjax.evaluate as a user runs it, on a tiny model that nearly knows nothing: tables, records, resumption, refusals."""

import json

import pytest

from gptjax import evaluate, train
from gptjax.tasks.incontext import judging


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a run, pre/, and data/ of two tasks of one's own and LAMBADA's."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "data").mkdir()

    def written(name, *rows):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    written("copy_test", *({"context": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(12)))
    written("copy_train", *({"context": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(20, 30)))
    written("taste", *({"context": f"{n} is", "completions": [" sweet", " sour"], "label": n % 2} for n in range(8)))
    sets = ["model.n_ctx=64", "train.batch_tokens=512", "train.steps=3", "loop.every_sample=None"]
    assert train.main(["--config=smoke", f"--run={folder / 'pre'}", *(part for text in sets for part in ("--set", text))]) == 0
    return folder


def asked(there, *more, tasks="copy,taste", shots="0,2", out="out"):
    return evaluate.main(
        [f"--run={there / 'pre'}", f"--tasks={tasks}", f"--shots={shots}", f"--data={there / 'data'}", f"--out={there / out}", *more]
    )


def records(there, out="out"):
    found = [json.loads(path.read_text()) for path in sorted((there / out).glob("*.json"))]
    return {(record["task"], record["shots"]): record for record in found}


@pytest.fixture(scope="module")
def done(there):
    assert asked(there, "--set", "copy.method=Greedy(n_tokens=4)", "--set", "copy.description='Write it again.'") == 0
    return records(there)


def test_each_task_leaves_scores_and_all_they_are_made_of(there, done):
    assert set(done) == {("copy", 0), ("copy", 2), ("taste", 0), ("taste", 2)}
    record = done["taste", 2]
    assert record["scores"]["accuracy"]["n"] == 8 and record["mean_shots"] == 2 and record["seed"] == 0
    lines = [json.loads(line) for line in (there / "out" / record["outcomes"]).read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == [str(n) for n in range(8)]
    task = evaluate.examinations(parsed(there, "taste"))[0].task
    right = [judging.judged(task, task.protocol, line)["scores"]["accuracy"] for line in lines]
    assert record["scores"]["accuracy"]["value"] == pytest.approx(100 * sum(right) / 8)
    first = next(line for line in lines if line["id"] == "0")
    assert first["asked"][0].endswith("\n\n0 is") and len(first["shown"]) == 2 and len(first["log_probabilities"]) == 2


def parsed(there, tasks, shots="0"):
    import argparse

    return argparse.Namespace(tasks=tasks, shots=shots, examples=None, seed=0, data=there / "data", assignments=[])


def test_what_is_written_is_kept_with_its_prompt(there, done):
    record = done["copy", 2]
    lines = [json.loads(line) for line in (there / "out" / record["outcomes"]).read_text().splitlines()]
    assert len(lines) == 12 and all(isinstance(line["written"], str) and "\n" not in line["written"] for line in lines)
    one = next(line for line in lines if line["id"] == "3")
    assert one["asked"][0].startswith("Write it again.\n\nQ: 2") and one["asked"][0].endswith("\n\nQ: 3\nA:")
    assert record["described"] and not done["taste", 2]["described"]


def test_what_is_done_is_not_done_again_and_a_kill_loses_one_item_at_most(there, done, monkeypatch):
    record = done["taste", 0]
    kept = there / "out" / record["outcomes"]
    whole = kept.read_text()
    lines = whole.splitlines(keepends=True)
    kept.write_text("".join(lines[:5]) + lines[5][:20])
    calls, likelihoods = [], evaluate_asking().likelihoods

    def counted(reader, questions, *more):
        calls.append(len(questions))
        return likelihoods(reader, questions, *more)

    monkeypatch.setattr(evaluate_asking(), "likelihoods", counted)
    assert asked(there, tasks="taste", shots="0") == 0
    assert calls == [3]  # of eight
    now, before = ({line["id"]: line for line in map(json.loads, text.splitlines())} for text in (kept.read_text(), whole))
    assert now.keys() == before.keys()
    for name in now:  # in other company a row is computed to another rounding, and so sealed otherwise
        assert now[name].pop("seal") and before[name].pop("seal")
        assert now[name].pop("log_probabilities") == pytest.approx(before[name].pop("log_probabilities"), abs=1e-4)
    assert now == before and records(there)["taste", 0] == record


def evaluate_asking():
    from gptjax.tasks import asking

    return asking


def test_another_protocol_and_fewer_items_stand_beside(there, done):
    assert asked(there, "--set", "taste.method=Total", "--examples=5", tasks="taste", shots="0", out="other") == 0
    record = records(there, "other")["taste", 0]
    assert record["scores"]["accuracy"]["n"] == 5 and "Total()" in record["protocol"]


def test_a_missing_data_set_is_one_line_and_the_others_still_run(there, capsys):
    assert asked(there, tasks="hellaswag,taste", shots="0", out="some") == 1
    said = capsys.readouterr().out
    assert said.count("hellaswag: no hellaswag_validation.jsonl") == 1 and ("taste", 0) in records(there, "some")


def test_too_few_demonstrations_are_one_line_and_the_others_still_run(there, capsys):
    assert asked(there, tasks="taste,copy", shots="8,1", out="few") == 1
    said = capsys.readouterr().out
    assert said.count("taste: 8 demonstrations were asked for, and there are 7 to draw from; give fewer --shots") == 1
    assert {("taste", 1), ("copy", 1)} <= set(records(there, "few")) and ("taste", 8) not in records(there, "few")


def test_too_long_a_prompt_gets_fewer_demonstrations_and_says_so(there, capsys):
    assert asked(there, tasks="copy", shots="8", out="long") == 0
    assert "12 items had no room for 8" in capsys.readouterr().out
    assert records(there, "long")["copy", 8]["mean_shots"] < 8


def test_the_curve_is_drawn_from_the_records(there, done):
    assert evaluate.main([f"--curve={there / 'curve.png'}", f"--out={there / 'out'}"]) == 0
    assert (there / "curve.png").stat().st_size > 5000


def test_the_list_shows_every_task(capsys):
    assert evaluate.main(["--list"]) == 0
    assert "hellaswag" in capsys.readouterr().out


REFUSED = {
    "nobody": (["--tasks=copy"], "say whom to ask what: --run=DIR with --tasks=NAMES"),
    "unknown": (["--run=x", "--tasks=helaswag"], "no task is called 'helaswag'; did you mean hellaswag"),
    "shots": (["--run=x", "--tasks=hellaswag", "--shots=-1"], "--shots=-1: give numbers of demonstrations, 0 or more"),
    "set": (["--run=x", "--tasks=hellaswag", "--set", "piqa.shots=3"], "piqa is not among --tasks=hellaswag"),
    "form": (["--run=x", "--tasks=hellaswag", "--set", "shots"], "is not of the form TASK.FIELD=VALUE"),
    "method": (["--run=x", "--tasks=hellaswag", "--set", "all.method=Best"], "Best"),
    "metric": (["--run=x", "--tasks=hellaswag", "--set", "all.metric=bleu"], "hellaswag: PerToken() cannot tell bleu, but accuracy"),
    "run": (["--run=no/such", "--tasks=hellaswag"], "no/such does not exist"),
    "curve": (["--curve=x.png", "--out=no/such"], "no results are in no/such"),
    "whose": (["--curve=x.png"], "--curve=x.png: say whose results to draw: runs, after it, or --out=DIR"),
    "runs": (["x", "y"], "x y: runs alone are for --curve=FILE.png"),
    "kind": (["--run=x", "--tasks=hellaswag", "--set", "all.method=Word"], "hellaswag: its items cannot be asked by Word"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_clear_line(name):
    given, said = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        evaluate.main(given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_malformed_line_is_named(there, capsys):
    (there / "data" / "broken.jsonl").write_text('{"context": "a", "completion": " b"}\n{"context": "a"\n')
    assert asked(there, tasks="broken", shots="0", out="broken") == 1
    assert "broken.jsonl line 2" in capsys.readouterr().out.replace("\n", " ")
