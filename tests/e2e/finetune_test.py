"""Fine-tuning as a user runs it, on a made-up task: it learns, repeats itself, goes on after a crash, and refuses what cannot be."""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from gptjax import finetune, sample, train
from gptjax.report import events
from gptjax.tasks.finetune import scores

CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a pre-trained run, pre/, and the task's files: does a text speak of red or of sea?"""
    folder, draw = tmp_path_factory.mktemp("there"), random.Random(0)

    def example(n):
        word = draw.choice(["RRR", "SSS"])
        texts = [draw.choice(["up", "do"]), word, draw.choice(["it", "a"])]
        return {"idx": n, "sentence": " ".join(texts), "label": {"RRR": "positive", "SSS": "negative"}[word]}

    for split, n in (("train", 160), ("dev", 40), ("test", 20)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(example(i)) + "\n" for i in range(n)))
    sets = ["model.n_ctx=64", "train.batch_tokens=512", "train.steps=3", "loop.every_sample=None"]
    assert train.main(["--config=smoke", f"--run={folder / 'pre'}", *flags(sets)]) == 0
    return folder


def flags(sets):
    return [part for text in sets for part in ("--set", text)]


def arguments(there, run, *sets):
    files = [f"task.{split}={there / split}.jsonl" for split in ("train", "dev", "test")]
    usual = [*files, "task.peak=1e-2", "task.batch_examples=16", "task.epochs=6"]
    return ["--config=gpt1_sst2", f"--init={there / 'pre'}", f"--run={run}", *flags([*usual, *sets])]


def curve(run):
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in events.read(run)]


@pytest.fixture(scope="module")
def tuned(there, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "run"
    assert finetune.main(arguments(there, run)) == 0
    return run


def test_it_learns_and_leaves_what_it_should(there, tuned):
    result = json.loads((tuned / "result.json").read_text())
    assert result["dev"] > 90 and result["test"] > 90, result
    assert (result["dev_examples"], result["test_examples"], result["paper"]) == (40, 20, 91.3)
    evaluations = [line for line in curve(tuned) if "accuracy" in line]
    assert [line["step"] for line in evaluations] == [10, 20, 30, 40, 50, 60]
    assert result["dev"] == max(line["accuracy"] for line in evaluations) and result["step"] == 10 * result["epoch"]
    assert {path.name for path in (tuned / "predictions").iterdir()} == {"dev.jsonl", "test.jsonl", "SST-2.tsv"}
    assert (tuned / "loss.png").stat().st_size > 1000 and (tuned / "config.json").exists()
    answers = [json.loads(line) for line in (tuned / "predictions" / "test.jsonl").read_text().splitlines()]
    right = sum(float(a["answer"]) == a["label"] for a in answers)
    assert result["test"] == pytest.approx(100 * right / 20)


def test_the_same_command_again_repeats_the_result(there, tuned):
    before = (tuned / "result.json").read_text(), curve(tuned)
    (tuned / "result.json").unlink()
    assert finetune.main(arguments(there, tuned)) == 0
    assert ((tuned / "result.json").read_text(), curve(tuned)) == before


def test_other_data_and_a_wish_to_speak_are_refused(there, tuned):
    """What a run began with it goes on with; and its model has a head, not a voice."""
    train_file = there / "train.jsonl"
    text = train_file.read_text()
    train_file.write_text(text.replace('"label": "positive"', '"label": "negative"', 1))
    try:
        with pytest.raises(ValueError, match="the data of .* have changed since it began: give back what it read, or another --run"):
            finetune.main(arguments(there, tuned))
    finally:
        train_file.write_text(text)
    with pytest.raises(ValueError, match="was fine-tuned on gpt1_sst2"):
        sample.main([f"--run={tuned}"])


def test_a_run_that_crashed_goes_on_to_the_identical_record(there, tuned, tmp_path, monkeypatch):
    score, calls = scores.score, []

    def crash(*given):
        calls.append(given)
        if len(calls) == 3:
            raise RuntimeError("the machine is gone")
        return score(*given)

    monkeypatch.setattr(scores, "score", crash)
    with pytest.raises(RuntimeError, match="gone"):
        finetune.main(arguments(there, tmp_path / "run"))
    monkeypatch.undo()
    assert finetune.main(arguments(there, tmp_path / "run")) == 0
    assert curve(tmp_path / "run") == curve(tuned)
    assert (tmp_path / "run" / "result.json").read_text() == (tuned / "result.json").read_text()


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_and_not_one_bit_changed(there, tuned, tmp_path, times):
    run, draw = tmp_path / "run", random.Random()
    program = [sys.executable, "-m", "gptjax.finetune", *arguments(there, run)]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}  # a kill may tear its entries

    def written():
        return len((run / "metrics.jsonl").read_text().splitlines()) if (run / "metrics.jsonl").exists() else 0

    for _ in range(times):
        process = subprocess.Popen(program, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        until = written() + draw.randint(1, 60 // times)
        while process.poll() is None and written() < until:
            time.sleep(0.003)
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.communicate()
    done = subprocess.run(program, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert curve(run) == curve(tuned)
    assert (run / "result.json").read_text() == (tuned / "result.json").read_text()


@pytest.mark.parametrize("change", ["task.lm_weight=0", "task.transfer=Layers(n=1)"])
def test_the_papers_ablations_learn_too(there, tuned, tmp_path, change):
    assert finetune.main(arguments(there, tmp_path / "run", change)) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["dev"] > 90
    assert curve(tmp_path / "run")[0] != curve(tuned)[0]


@pytest.mark.slow
def test_several_seeds_show_their_median(there, tmp_path, capsys):
    assert finetune.main([*arguments(there, tmp_path / "run", "task.epochs=1", "task.transfer=Nothing()"), "--seeds=2"]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [one["seed"] for one in found] == [0, 1] and "2 seeds" in capsys.readouterr().out
    for one in found:
        assert json.loads((tmp_path / "run" / f"seed_{one['seed']}" / "result.json").read_text()) == one


REFUSED = {
    "unknown": (["--config=gpt1_sst"], "no fine-tuning recipe is called 'gpt1_sst'; did you mean gpt1_sst2"),
    "seeds": (["--seeds=0"], "--seeds=0: give 1 or more"),
    "profile": (["--profile=-1"], "--profile=-1: give a number of steps above 0"),
    "no weights": (["--init=no/such"], "no/such does not exist: give a run, or a folder of weights"),
    "labels": (["--set", "task.labels=('good', 'bad')"], "example 1: label is 'negative'; give good, bad, or a number from 0 to 1"),
    "column": (["--set", "task.fields=(text,)"], "has no column 'text': it has idx, sentence, label"),
    "batch": (["--set", "task.batch_examples=999"], "160 training examples are fewer than task.batch_examples=999"),
    "layers": (["--set", "task.transfer=Layers(n=3)"], "task.transfer=Layers(n=3): the model has 2 layers; give as many or fewer"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_clear_line(there, tmp_path, name):
    changes, said = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        finetune.main([*arguments(there, tmp_path / "run"), *changes])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_head_of_another_label_count_and_a_tuned_model_are_refused(there, tuned, tmp_path):
    with pytest.raises(ValueError, match="holds a run of another config .task.labels: .*; give another --run"):
        finetune.main(arguments(there, tuned, "task.labels=('negative', 'positive', 'neither')"))
    with pytest.raises(ValueError, match="was fine-tuned on gpt1_sst2: .*give the pre-trained run"):
        finetune.main([*arguments(there, tmp_path / "run"), f"--init={tuned}"])


def test_the_program_says_so_and_exits_with_2(there, tmp_path):
    program = [sys.executable, "-m", "gptjax.finetune", *arguments(there, tmp_path / "run", "task.dev=no.tsv")]
    done = subprocess.run(program, cwd=CHECKOUT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr == "error: no.tsv does not exist; give a .tsv or .csv or .jsonl file\n", done.stderr
