"""gptjax.evaluate as a user runs it, on a tiny model that nearly knows nothing: tables, records,
resumption, refusals."""

import argparse
import dataclasses
import json
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import evaluate, train
from gptjax.evals import metrics as judging
from gptjax.evals import score_table
from gptjax.model import gpt
from gptjax.weights import open_model

pytestmark = pytest.mark.usefixtures("lean")


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a run, pre/, and data/ of two tasks of one's own and LAMBADA's."""
    folder = tmp_path_factory.mktemp("there")
    (folder / "data").mkdir()

    def written(name, *rows):
        (folder / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )

    written("copy_test", *({"context": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(12)))
    written(
        "copy_train", *({"context": f"Q: {n}\nA:", "completion": f" {n}"} for n in range(20, 30))
    )
    written(
        "taste",
        *(
            {"context": f"{n} is", "completions": [" sweet", " sour"], "label": n % 2}
            for n in range(8)
        ),
    )
    sets = [
        "model.n_layers=1",
        "model.n_ctx=64",
        "train.batch_tokens=512",
        "train.steps=3",
        "loop.every_sample=None",
    ]
    assert (
        train.main(
            [
                "--config=smoke",
                f"--run_dir={folder / 'pre'}",
                *(part for text in sets for part in ("--set", text)),
            ]
        )
        == 0
    )
    return folder


def asked(there, *more, tasks="copy,taste", shots="0,2", out="out"):
    return evaluate.main(
        [
            f"--model={there / 'pre'}",
            f"--tasks={tasks}",
            f"--num_fewshot={shots}",
            f"--task_data={there / 'data'}",
            f"--out={there / out}",
            *more,
        ]
    )


def records(there, out="out"):
    found = [json.loads(path.read_text()) for path in sorted((there / out).glob("*.json"))]
    return {(record["task"], record["shots"]): record for record in found}


@pytest.fixture(scope="module")
def done(there):
    assert (
        asked(
            there,
            "--set",
            "copy.method=Greedy(n_tokens=4)",
            "--set",
            "copy.description='Write it again.'",
        )
        == 0
    )
    return records(there)


@pytest.mark.usefixtures("implicit_transfers")
def test_a_model_with_nan_logits_is_refused_once(there, done, monkeypatch, capsys):
    opened = evaluate.load_model

    def broken(*given):
        model = opened(*given)
        params = jax.tree.map(lambda x: x * jnp.nan, model.inference_model.params)
        return dataclasses.replace(
            model, inference_model=model.inference_model.replace(params=params)
        )

    monkeypatch.setattr(evaluate, "load_model", broken)
    for tasks, sets in [
        ("copy,taste", ["--set", "copy.method=Greedy(n_tokens=4)"]),
        ("taste,copy", []),
    ]:
        with pytest.raises(ValueError, match="^the model's logits are NaN or infinite"):
            asked(there, *sets, tasks=tasks, out="broken")
    assert "warning" not in capsys.readouterr().err and not list((there / "broken").glob("*.json"))


def test_each_task_leaves_scores_and_all_they_are_made_of(there, done):
    assert set(done) == {("copy", 0), ("copy", 2), ("taste", 0), ("taste", 2)}
    record = done["taste", 2]
    assert (
        record["scores"]["accuracy"]["n"] == 8 and record["mean_shots"] == 2 and record["seed"] == 0
    )
    lines = [
        json.loads(line) for line in (there / "out" / record["outcomes"]).read_text().splitlines()
    ]
    assert sorted(line["id"] for line in lines) == [str(n) for n in range(8)]
    task = evaluate.build_runs(parsed(there, "taste"))[0].task
    right = [judging.score_item(task, task.protocol, line)["scores"]["accuracy"] for line in lines]
    assert record["scores"]["accuracy"]["value"] == pytest.approx(100 * sum(right) / 8)
    first = next(line for line in lines if line["id"] == "0")
    assert (
        first["asked"][0].endswith("\n\n0 is")
        and len(first["shown"]) == 2
        and len(first["log_probabilities"]) == 2
    )


FLAGS = {"num_fewshot": "0", "limit": None, "seed": 0, "task_data": None, "assignments": []}


def parsed(there, tasks):
    return argparse.Namespace(**FLAGS | {"tasks": tasks, "task_data": there / "data"})


def test_what_is_written_is_kept_with_its_prompt(there, done):
    record = done["copy", 2]
    lines = [
        json.loads(line) for line in (there / "out" / record["outcomes"]).read_text().splitlines()
    ]
    assert len(lines) == 12 and all(
        isinstance(line["written"], str) and "\n" not in line["written"] for line in lines
    )
    one = next(line for line in lines if line["id"] == "3")
    assert one["asked"][0].startswith("Write it again.\n\nQ: 2") and one["asked"][0].endswith(
        "\n\nQ: 3\nA:"
    )
    assert record["described"] and not done["taste", 2]["described"]


def test_what_is_done_is_not_done_again_and_a_kill_loses_one_item_at_most(there, done, monkeypatch):
    record = done["taste", 0]
    kept = there / "out" / record["outcomes"]
    whole = kept.read_text()
    lines = whole.splitlines(keepends=True)
    kept.write_text("".join(lines[:5]) + lines[5][:20])
    calls, original = [], evaluate_asking().loglikelihood

    def counted(model, questions, *more):
        calls.append(len(questions))
        return original(model, questions, *more)

    monkeypatch.setattr(evaluate_asking(), "loglikelihood", counted)
    assert asked(there, tasks="taste", shots="0") == 0
    assert calls == [3]  # of eight
    now, before = (
        {line["id"]: line for line in map(json.loads, text.splitlines())}
        for text in (kept.read_text(), whole)
    )
    assert now.keys() == before.keys()
    for (
        name
    ) in now:  # in other company a row is computed to another rounding, and so sealed otherwise
        assert now[name].pop("seal") and before[name].pop("seal")
        assert now[name].pop("log_probabilities") == pytest.approx(
            before[name].pop("log_probabilities"), abs=1e-4
        )
    assert now == before and records(there)["taste", 0] == record


def test_edited_outcomes_are_reported_and_evaluated_again(there, done, capsys):
    record = done["taste", 2]
    kept, file = (
        there / "out" / record["outcomes"],
        (there / "out" / record["outcomes"]).with_suffix(".json"),
    )
    lines = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(
        b"".join(
            [
                *lines[:2],
                lines[2].replace(b'"right": [', b'"right": [1, '),
                b"\xff[[{\n",
                *lines[4:],
            ]
        )
    )
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    assert asked(there, tasks="taste", shots="2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "lines 3, 4 of 8 are damaged or were edited; those items are evaluated again" in said
    assert f"{file.name} is damaged, or was edited: its seal is wrong; it is written again" in said
    assert records(there)["taste", 2]["scores"] == record["scores"]


def evaluate_asking():
    from gptjax.evals import loglikelihood

    return loglikelihood


def test_other_protocols_and_item_counts_are_stored_separately(there, done):
    assert (
        asked(
            there, "--set", "taste.method=Total", "--limit=5", tasks="taste", shots="0", out="other"
        )
        == 0
    )
    record = records(there, "other")["taste", 0]
    assert record["scores"]["accuracy"]["n"] == 5 and "Total()" in record["protocol"]


def test_a_missing_data_set_is_one_line_and_the_others_still_run(there, capsys):
    assert asked(there, tasks="hellaswag,taste", shots="0", out="some") == 1
    said = capsys.readouterr().out
    assert said.count("hellaswag: no hellaswag_validation.jsonl") == 1 and ("taste", 0) in records(
        there, "some"
    )


def test_too_few_demonstrations_are_one_line_and_the_others_still_run(there, capsys):
    assert asked(there, tasks="taste,copy", shots="8,1", out="few") == 1
    said = capsys.readouterr().out
    assert (
        said.count(
            "taste: 8 demonstrations are requested, and 7 are available; give fewer --num_fewshot"
        )
        == 1
    )
    assert {("taste", 1), ("copy", 1)} <= set(records(there, "few")) and (
        "taste",
        8,
    ) not in records(there, "few")


def test_too_long_a_prompt_gets_fewer_demonstrations_and_says_so(there, capsys):
    assert asked(there, tasks="copy", shots="8", out="long") == 0
    assert "12 items had no room for 8" in capsys.readouterr().out
    assert records(there, "long")["copy", 8]["mean_shots"] < 8


def test_items_that_cannot_be_evaluated_are_reported_as_is_a_second_task_with_the_same_error(
    there, capsys
):
    for name in ("one", "two"):
        rows = [
            {"context": "1 + 1 =", "completions": [" 2", " 3"], "label": n % 2} for n in range(3)
        ]
        rows += [
            {"context": "x", "completions": [" a", " b"], "label": 5},
            {"context": "", "completions": ["s" * 99, "es"], "label": 0},
        ]
        rows += [{"context": "x", "completions": [" a", " b"], "label": None}]
        (there / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    assert asked(there, tasks="one,two", shots="0", out="some_items") == 0
    said = " ".join(capsys.readouterr().out.split())
    for name in ("one", "two"):
        assert (
            f"{name}: 3 items cannot be asked, and do not count: {there}/data/{name}.jsonl line 6: "
            "label holds null, not number" in said
        )
        assert "; item 3 has label 5 and 2 completions" in said
        assert records(there, "some_items")[name, 0]["scores"]["accuracy"]["n"] == 3
    assert set(records(there, "some_items")["one", 0]["refused"]) == {"line 6", "3", "4"}
    for name in ("one", "two"):
        (there / "data" / f"{name}.jsonl").write_text(json.dumps(rows[-3]) + "\n")
    assert asked(there, tasks="one,two", shots="0,1", out="no_items") == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("one: item 0 has label 5") == said.count("two: item 0 has label 5") == 1


def test_custom_tasks_set_their_protocol(there, capsys):
    rows = [{"context": f"Q: {n}", "answers": [f"{n}", f"{n}\n{n}"]} for n in range(5)]
    (there / "data" / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (there / "data" / "own.toml").write_text(
        'metric = "bleu"\ndescription = "Again:"\nn_tokens = 4\n'
    )
    (there / "data" / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (there / "data" / "short.toml").write_text("n_tokens = 1\n")
    assert asked(there, tasks="own, short", shots="few,0", out="own") == 0
    found = records(there, "own")
    assert set(found) == {
        ("own", 0),
        ("own", 4),
        ("short", 0),
        ("short", 4),
    }  # few is what there is
    assert list(found["own", 4]["scores"]) == ["bleu"] and "Again:" in found["own", 4]["protocol"]
    assert "stops=('\\n\\n',)" in found["own", 4]["protocol"] and not found["own", 4]["unwritable"]
    assert found["short", 0]["unwritable"] == [str(n) for n in range(5)]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "short: no right answer of 5 items can be written in 1 tokens and before '\\n\\n': item 0, "
        "1, 2; set short.method.n_tokens" in said
    )
    (there / "data" / "own.toml").write_text("fewer = 3\n")
    with pytest.raises(ValueError, match="own.toml: there is no key 'fewer'; did you mean few"):
        asked(there, tasks="own", out="own")


@pytest.mark.parametrize("columns", [80, 160])
def test_tables_fit_the_terminal_and_align(there, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert asked(there, tasks="copy,taste", shots="0,2", out=f"wide {columns}") == 0
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "items" in line or "copy" in line or "taste" in line
    ]
    head = next(line for line in lines if line.startswith("task"))
    body = [line for line in lines if line.startswith(("copy ", "taste "))]
    assert len(body) == 4 and max(map(len, [head, *body])) <= columns
    assert (
        len(
            {
                line.index("100") if "100" in line else line.rindex(".")
                for line in body
                if "exact" in line
            }
        )
        == 1
    )
    assert all(
        line[head.index("metric")] in "ea" and line[head.index("metric") - 1] == " "
        for line in body
    )
    assert evaluate.main(["--list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= columns


def test_long_names_stand_above_their_scores():
    exams = evaluate.build_runs(
        argparse.Namespace(
            **FLAGS | {"tasks": "random_insertion_in_word:released,lambada,wmt14_en_fr:gpt2,enwik8"}
        )
    )
    said = []
    out = types.SimpleNamespace(print=lambda line, style="": said.append(line), width=80)
    table = score_table.ScoreTable(exams, {"parameters": 10**8}, 80)
    table.print_header(out)
    for exam in exams:
        metrics = judging.metric_names(exam.task, exam.protocol)
        table.print_scores(
            exam,
            {
                "scores": {
                    metric: {"metric": metric, "value": 99.5, "error": 1.0, "n": 10_000}
                    for metric in metrics
                }
            },
            out,
        )
    assert max(map(len, said)) <= 80 and said[1] == "random_insertion_in_word:released"
    assert len({line.index("99.50") for line in said if "99.50" in line}) == 1
    assert len({line.index("10,000") for line in said if "10,000" in line}) == 1


@pytest.mark.usefixtures("implicit_transfers")
def test_texts_are_predicted_as_by_a_plain_pass(there, capsys):
    """Each token by a forward pass of its own, after what its window holds; bytes from the file."""
    text, lines = (
        "Caf\u00e9 is a word.\n\nAnd so on, to a second window, and to a third one that is not "
        "full." * 2,
        ["one", "two \u20ac"],
    )
    (there / "a.txt").write_text(text)
    (there / "b.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    model = open_model.open_model(there / "pre", [], str)

    @jax.jit
    def forward(tokens_BT):
        hidden_BTD = model.train_step.model.apply({"params": model.params}, tokens_BT)
        return jax.nn.log_softmax(
            gpt.logits(hidden_BTD, model.params["token_VD"], model.config.model.n_vocab)
        )[0]

    for stride in (None, 10):
        more = [] if stride is None else [f"--stride={stride}"]
        given = [
            f"--text={there / 'a.txt'}",
            f"--text={there / 'b.jsonl'}",
            f"--out={there / f'texts {stride}'}",
        ]
        assert evaluate.main([f"--model={there / 'pre'}", *given, *more]) == 0
        said = capsys.readouterr().out
        assert f"windows of 64 tokens, stride {stride or 64}" in said and "all 2" in said
        kept = {
            path.name.split("-")[1]: json.loads(path.read_text())
            for path in (there / f"texts {stride}").glob("text-*.json")
        }
        for name, documents in (("a.txt", [text]), ("b.jsonl", lines)):
            tokens = [list(document.encode()) for document in documents]
            nats = -sum(likely(forward, ids, stride or 64) for ids in tokens)
            n, n_words = sum(map(len, tokens)), sum(len(document.split()) for document in documents)
            assert kept[name]["tokens"] == kept[name]["bytes"] == n and kept[name][
                "documents"
            ] == len(documents)
            assert kept[name]["loss"] == pytest.approx(nats / n, rel=1e-5)
            assert kept[name]["perplexity"] == pytest.approx(math.exp(nats / n), rel=1e-4)
            assert kept[name]["bits_per_byte"] == pytest.approx(nats / n / math.log(2), rel=1e-5)
            assert kept[name]["perplexity_by_word"] == pytest.approx(
                math.exp(nats / n_words), rel=1e-3
            )
            assert f"{kept[name]['loss']:.4f}" in said
    (there / "c.md").write_text("# any ending\n")
    (there / "empty").write_text("")
    assert (
        evaluate.main(
            [f"--model={there / 'pre'}", f"--text={there / 'c.md'}", f"--out={there / 'texts 10'}"]
        )
        == 0
    )
    assert "c.md" in capsys.readouterr().out
    with pytest.raises(ValueError, match="empty is empty"):
        evaluate.main(
            [f"--model={there / 'pre'}", f"--text={there / 'empty'}", f"--out={there / 'texts 10'}"]
        )
    with pytest.raises(ValueError, match="--stride=65: give 1 to 64, the model's context"):
        evaluate.main([f"--model={there / 'pre'}", f"--text={there / 'a.txt'}", "--stride=65"])


def likely(forward, ids, stride):
    """The log-probability of a text, window by window, each a plain forward pass."""
    x, total = [256, *ids], 0.0
    for start in range(0, len(ids), stride):
        stop = min(start + stride, len(ids))
        first = max(0, stop - 64)
        p = np.asarray(
            forward(jnp.asarray([x[first:stop] + [0] * (64 - stop + first)] * 8, jnp.int32))
        )  # a row for each device
        total += sum(float(p[at - first, x[at + 1]]) for at in range(start, stop))
    return total


def test_the_curve_is_drawn_from_the_records(there, done):
    assert evaluate.main([f"--curve={there / 'curve.png'}", f"--out={there / 'out'}"]) == 0
    assert (there / "curve.png").stat().st_size > 5000


def test_the_list_shows_every_task(capsys):
    assert evaluate.main(["--list"]) == 0
    assert "hellaswag" in capsys.readouterr().out


REFUSED = {
    "nobody": (["--tasks=copy"], "say whom to ask what: --model=DIR with --tasks=NAMES"),
    "unknown": (
        ["--model=x", "--tasks=helaswag"],
        ("no task is called 'helaswag'; did you mean hellaswag"),
    ),
    **{
        f"shots {word[:9]}": (
            ["--model=x", "--tasks=hellaswag", f"--num_fewshot={word}"],
            ("give numbers of demonstrations, 0 or more"),
        )
        for word in ("-1", "x", "", "1,,2", "9" * 5000, "1e300", "0.5")
    },
    "format": (
        ["--curve=x.nope", "--out=."],
        ("--curve=x.nope: a picture's name ends with .png, .pdf, .svg"),
    ),
    "neither": (["--model=x"], "say whom to ask what"),
    "both": (["--model=x", "--tasks=lambada", "--text=x"], "say whom to ask what"),
    "stride": (["--model=x", "--tasks=lambada", "--stride=3"], "--stride=3 is of --text=FILE"),
    "no text": (["--model=x", "--text=no/such"], "no/such"),
    "empty name": (["--model=x", "--text="], "an empty path"),
    "set": (
        ["--model=x", "--tasks=hellaswag", "--set", "piqa.shots=3"],
        ("piqa is not among --tasks=hellaswag"),
    ),
    "form": (
        ["--model=x", "--tasks=hellaswag", "--set", "shots"],
        ("is not of the form TASK.FIELD=VALUE"),
    ),
    "method": (["--model=x", "--tasks=hellaswag", "--set", "all.method=Best"], "Best"),
    "metric": (
        ["--model=x", "--tasks=hellaswag", "--set", "all.metric=bleu"],
        ("hellaswag: PerToken() does not support bleu, but accuracy"),
    ),
    "run": (["--model=no/such", "--tasks=hellaswag"], "no/such does not exist"),
    "curve": (["--curve=x.png", "--out=no/such"], "no results are in no/such"),
    "whose": (
        ["--curve=x.png"],
        ("--curve=x.png: say whose results to draw: runs, after it, or --out=DIR"),
    ),
    "runs": (["x", "y"], "x y: runs alone are for --curve=FILE.png"),
    "kind": (
        ["--model=x", "--tasks=hellaswag", "--set", "all.method=LastWord"],
        ("hellaswag: its items do not work with LastWord"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_clear_line(name):
    given, said = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        evaluate.main(given)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "flag",
    [
        "seed=-1",
        f"seed={2**64}",
        "seed=x",
        "limit=0",
        f"limit={'9' * 30}",
        "stride=0",
        "model=",
        "out=",
        "task_data=",
    ],
)
def test_flags_have_bounds(flag, capsys):
    with pytest.raises(SystemExit) as refused:
        evaluate.main([f"--{flag}"])
    said = capsys.readouterr().err
    assert (
        refused.value.code == 2
        and re.match(rf"error: argument --{flag.partition('=')[0]}(/--output_path)?: ", said)
        and said.count("\n") == 1
    )


def test_a_malformed_line_is_named(there, capsys):
    (there / "data" / "broken.jsonl").write_text(
        '{"context": "a", "completion": " b"}\n{"context": "a"\n'
    )
    assert asked(there, tasks="broken", shots="0", out="broken") == 1
    assert "broken.jsonl line 2" in capsys.readouterr().out.replace("\n", " ")
