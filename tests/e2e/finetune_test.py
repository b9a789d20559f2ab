"""Fine-tuning as a user runs it, on a made-up task: it learns, repeats itself, goes on after a
crash, and refuses what cannot be."""

import io
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import classify, finetune, sample, train
from gptjax.config import count, overrides
from gptjax.configs import registry
from gptjax.data.tokenizers import build, gpt2_bpe
from gptjax.report import events, loss_plot
from gptjax.runtime import run_dir
from gptjax.training import checkpoint, metrics
from gptjax.training.classification import metrics as scores
from gptjax.training.classification import text_classifier

pytestmark = pytest.mark.usefixtures("lean")
draw_loss = loss_plot.draw
CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A folder with a pre-trained run, pre/, and the task's files: does a text speak of red or
    of sea?"""
    folder, draw = tmp_path_factory.mktemp("there"), random.Random(0)

    def example(n):
        word = draw.choice(["RRR", "SSS"])
        texts = [draw.choice(["up", "do"]), word, draw.choice(["it", "a"])]
        return {
            "idx": n,
            "sentence": " ".join(texts),
            "label": {"RRR": "positive", "SSS": "negative"}[word],
        }

    for split, n in (("train", 160), ("dev", 40), ("test", 20)):
        (folder / f"{split}.jsonl").write_text(
            "".join(json.dumps(example(i)) + "\n" for i in range(n))
        )
    sets = ["model.n_ctx=64", "train.batch_tokens=512", "train.steps=3", "loop.every_sample=None"]
    assert train.main(["--config=smoke", f"--run_dir={folder / 'pre'}", *flags(sets)]) == 0
    return folder


def flags(sets):
    return [part for text in sets for part in ("--set", text)]


def arguments(there, run, *sets):
    files = [f"task.{split}={there / split}.jsonl" for split in ("train", "dev", "test")]
    usual = [
        *files,
        "task.fields=sentence",
        "task.peak_lr=1e-2",
        "task.batch_examples=16",
        "task.epochs=6",
    ]
    return ["--config=own", f"--init={there / 'pre'}", f"--run_dir={run}", *flags([*usual, *sets])]


def curve(run):
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")}
        for line in events.read(run)
    ]


@pytest.fixture(scope="module")
def tuned(there, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "run"
    assert finetune.main(arguments(there, run)) == 0
    return run


def test_it_learns_and_leaves_what_it_should(there, tuned):
    result = json.loads((tuned / "result.json").read_text())
    assert result["dev"] > 90 and result["test"] > 90, result
    assert (result["dev_examples"], result["test_examples"], result["paper"]) == (40, 20, None)
    evaluations = [line for line in curve(tuned) if "accuracy" in line]
    assert [line["step"] for line in evaluations] == [10, 20, 30, 40, 50, 60]
    assert (
        result["dev"] == max(line["accuracy"] for line in evaluations)
        and result["step"] == 10 * result["epoch"]
    )
    assert {path.name for path in (tuned / "predictions").iterdir()} == {"dev.jsonl", "test.jsonl"}
    assert (
        "labels=('negative', 'positive')" in json.loads((tuned / "config.json").read_text())["task"]
    )  # found, since none were named
    draw_loss(tuned)
    assert (tuned / "loss.png").stat().st_size > 1000 and (tuned / "config.json").exists()
    answers = [
        json.loads(line) for line in (tuned / "predictions" / "test.jsonl").read_text().splitlines()
    ]
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
    text, dev_file = train_file.read_text(), there / "dev.jsonl"
    dev_text = dev_file.read_text()
    train_file.write_text(text.replace('"label": "positive"', '"label": "negative"', 1))
    try:
        before = {path: path.read_bytes() for path in tuned.rglob("*") if path.is_file()}
        for file, other in (("train", train_file.read_text()), ("train", text + text), ("dev", "")):
            train_file.write_text(other if file == "train" else text)
            dev_file.write_text(
                dev_text.replace("up", "up and up", 1) if file == "dev" else dev_text
            )
            with pytest.raises(
                ValueError,
                match=(
                    f"the data of .* have changed since it began: task.{file} holds other "
                    "examples; give back"
                ),
            ):
                finetune.main(arguments(there, tuned))
        assert before == {path: path.read_bytes() for path in tuned.rglob("*") if path.is_file()}
    finally:
        train_file.write_text(text)
        dev_file.write_text(dev_text)
    with pytest.raises(
        ValueError, match="is a classifier fine-tuned on own and cannot generate text"
    ):
        sample.main([f"--model={tuned}"])


def said_to(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_new_texts_are_read_with_the_tokenizer_files_that_the_run_keeps(
    tuned, tmp_path, monkeypatch
):
    """Not with those of the folder that it began with, which may be gone."""
    config = overrides.override(run_dir.load_config(tuned), "data.tokenizer=Gpt2Bpe(path='/gone')")
    for name in gpt2_bpe.FILES.digests:
        (tmp_path / name).touch()

    def opened(spec):
        raise ValueError(repr(spec))

    monkeypatch.setattr(build, "build", opened)
    with pytest.raises(ValueError, match=re.escape(f"Gpt2Bpe(path={str(tmp_path)!r})")):
        text_classifier.Classifier(
            text_classifier.ClassifierRun(tmp_path, None, config), warn=print
        )


def test_new_texts_get_the_labels_that_they_had_as_a_test_set(
    there, tuned, tmp_path, capsys, monkeypatch
):
    """In each format, from a file and from standard input; what is written to predictions/ is
    what is said."""
    rows = [json.loads(line) for line in (there / "test.jsonl").read_text().splitlines()]
    scored = [
        json.loads(line) for line in (tuned / "predictions/test.jsonl").read_text().splitlines()
    ]
    shares = [np.exp(line["scores"]) / np.sum(np.exp(line["scores"])) for line in scored]
    names = ["negative", "positive"]
    bare = [{"sentence": row["sentence"]} for row in rows]
    contents = {
        "new.txt": "\ufeff" + "".join(f"{row['sentence']}\r\n\n" for row in rows),
        "new.jsonl": "".join(json.dumps(row | {"label": "?"}) + "\n" for row in rows),
        "new.tsv": "sentence\n" + "".join(f"{row['sentence']}\n" for row in bare),
        "new.csv": '"sentence"\n' + "".join(f'"{row["sentence"]}"\n' for row in bare),
    }
    (first, *others) = [tmp_path / name for name in contents]
    for file in (first, *others):
        file.write_text(contents[file.name])
    capsys.readouterr()
    assert classify.main([f"--model={tuned}", f"--text={first}"]) == 0
    found = said_to(capsys)
    assert [line["label"] for line in found] == [names[int(line["answer"])] for line in scored]
    np.testing.assert_allclose(
        [list(line["probabilities"].values()) for line in found], shares, atol=2e-6
    )
    task = run_dir.load_config(tuned).task
    examples = classify.read_examples(task, str(first), None)
    assert all(classify.read_examples(task, str(file), None) == examples for file in others[1:])
    for name, same in (
        ("UP.TSV", others[1]),
        ("lines.json", others[0]),
        ("lines.ndjson", others[0]),
    ):
        (tmp_path / name).write_text(contents[same.name])
        assert classify.read_examples(task, str(tmp_path / name), None) == classify.read_examples(
            task, str(same), None
        )
    assert [(e.texts, e.index) for e in classify.read_examples(task, str(others[0]), None)] == [
        (e.texts, str(row["idx"])) for e, row in zip(examples, rows, strict=True)
    ]
    monkeypatch.setattr(
        sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(contents["new.csv"].encode()))
    )
    assert (
        classify.main(
            [
                f"--model={tuned}",
                "--text=-",
                "--format=csv",
                "--as=tsv",
                f"--out={tmp_path / 'out' / 'said.tsv'}",
            ]
        )
        == 0
    )
    head, *lines = [
        line.split("\t") for line in (tmp_path / "out/said.tsv").read_text().splitlines()
    ]
    assert head == ["index", "label", "negative", "positive"]
    assert [line[:2] for line in lines] == [[str(n), line["label"]] for n, line in enumerate(found)]
    long = "up RRR it " * 30
    (tmp_path / "long.txt").write_text(long)
    assert classify.main([f"--model={tuned}", f"--text={tmp_path / 'long.txt'}"]) == 0
    said = capsys.readouterr()
    assert (
        "1 of 1 texts are longer than 16 tokens and were truncated" in said.err
        and len(said.out.splitlines()) == 1
    )


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("empty.txt", b"", "holds no text to label"),
        ("blank.txt", b"\n \n\r\n", "holds no text to label"),
        ("binary.txt", b"\xff\x00", "is not text: a zero byte"),
        (
            "other.jsonl",
            b'{"text": "x"}',
            "line 1 has no column 'sentence': it has text; name the one that is meant with "
            "task.fields",
        ),
        ("empty.csv", b"sentence\n\n", "holds no text to label"),
        ("blank.csv", b'sentence,more\n" ",x\n', "line 2: sentence is empty"),
        ("list.jsonl", b'{"sentence": ["x"]}', "line 1: sentence holds a list, not a text"),
        (".", None, "is not a file: give one, or - to read standard input"),
        ("no.txt", None, "cannot be read: No such file"),
    ],
)
def test_what_cannot_be_labelled_is_one_line(tuned, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        classify.main([f"--model={tuned}", f"--text={tmp_path / name}"])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_run_without_labels_has_none_to_give(there):
    with pytest.raises(
        ValueError, match="pre was not fine-tuned on a task: it has no labels to give"
    ):
        classify.main([f"--model={there / 'pre'}", f"--text={there / 'test.jsonl'}"])


def test_a_task_of_pairs_counts_both_orders_and_labels_new_pairs(
    there, tmp_path, capsys, monkeypatch
):
    told = []
    monkeypatch.setattr(metrics, "mfu", lambda flops, speed, devices: told.append(flops))
    pairs = "sentence1\tsentence2\tlabel\n" + "up\tdo\tyes\ndo\tit\tno\n" * 8
    (tmp_path / "pairs.tsv").write_text(pairs)
    sets = [f"task.{split}={tmp_path / 'pairs.tsv'}" for split in ("train", "dev")] + [
        "task.labels=(no, yes)",
        "task.batch_examples=16",
    ]
    run_there = tmp_path / "run"
    assert (
        finetune.main(
            [
                "--config=gpt1_mrpc",
                f"--init={there / 'pre'}",
                f"--run_dir={run_there}",
                *flags([*sets, "task.epochs=1"]),
            ]
        )
        == 0
    )
    assert told == [2 * count.train_flops_per_token(run_dir.load_config(run_there).model)]
    capsys.readouterr()
    assert classify.main([f"--model={run_there}", f"--text={tmp_path / 'pairs.tsv'}"]) == 0
    answers = [
        json.loads(line) for line in (run_there / "predictions/dev.jsonl").read_text().splitlines()
    ]
    assert [line["label"] for line in said_to(capsys)] == [
        ("no", "yes")[int(line["answer"])] for line in answers
    ]
    (tmp_path / "new.txt").write_text("up")
    with pytest.raises(
        ValueError,
        match=(
            "has one text a line, and this task reads sentence1, sentence2: give a .tsv, .csv or "
            ".jsonl file"
        ),
    ):
        classify.main([f"--model={run_there}", f"--text={tmp_path / 'new.txt'}"])


def test_a_field_may_be_named_as_the_runs_config_does():
    made = finetune.read_recipe(
        "gpt1_sst2",
        ["train.optimizer.bias_correction=moments", "model.dropout.residual=0.2", "seed=3"],
    )
    assert (made.optimizer.bias_correction, made.dropout.residual, made.seed) == ("moments", 0.2, 3)


def test_own_files_have_no_paper_score_and_no_submission_by_default():
    recipe = registry.finetuning("gpt1_sst2")
    assert finetune.read_recipe("gpt1_sst2", []) == recipe and recipe.task.paper == 91.3
    for split in ("train", "dev", "test"):
        task = finetune.read_recipe("gpt1_sst2", [f"task.{split}=x.tsv"]).task
        assert (task.paper, task.submission, task.labels) == (None, None, recipe.task.labels)
    task = finetune.read_recipe("gpt1_sst2", ["task.train=x.tsv", "task.submission=SST-2"]).task
    assert (task.paper, task.submission) == (None, "SST-2")


def test_the_epoch_that_is_best_on_dev_is_taken_and_a_result_is_always_written(
    there, tuned, capsys, monkeypatch
):
    """The curve is made to peak in the middle. A submission may be asked for afterwards; what
    cannot be written of answers is a warning."""
    kept = {
        path: path.read_bytes()
        for path in (
            tuned / "config.json",
            tuned / "result.json",
            *(tuned / "predictions").iterdir(),
        )
    }
    peaks = {10: 50.0, 20: 70.0, 30: 90.0, 40: 90.0, 50: 60.0, 60: 40.0}
    lines = [
        line | {"accuracy": peaks[line["step"]]} if "accuracy" in line else line
        for line in events.read(tuned)
    ]
    try:
        (tuned / "predictions").rename(tuned / "elsewhere")
        (tuned / "predictions").write_text("in the way")
        (tuned / "result.json").unlink()
        assert finetune.main(arguments(there, tuned)) == 0
        assert "warning: the answers of dev cannot be written" in capsys.readouterr().out
        assert (tuned / "result.json").read_bytes() == kept[tuned / "result.json"]
        (tuned / "predictions").unlink()
        (tuned / "elsewhere").rename(tuned / "predictions")
        monkeypatch.setattr(events, "read", lambda directory: lines)
        assert finetune.main(arguments(there, tuned, "task.submission=Mine")) == 0
        assert json.loads((tuned / "result.json").read_text())["epoch"] == 3
        assert (tuned / "predictions/Mine.tsv").read_text().startswith("index\tprediction\n0\t")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
        (tuned / "predictions/Mine.tsv").unlink()


@pytest.mark.usefixtures("implicit_transfers")
def test_an_epoch_that_is_damaged_is_named_and_passed_over(tmp_path):
    said, wanted = [], {"w": jax.ShapeDtypeStruct((), jnp.int32)}
    with checkpoint.CheckpointManager(tmp_path, 9, None, said.append) as checkpoints:
        for step in (10, 20, 30, 40):
            checkpoints.save(step, {"params": {"w": jnp.int32(step)}}, {"about": step})
    saved = checkpoint.CheckpointReader(tmp_path, said.append)
    for step in (30, 40):
        (tmp_path / str(step) / "_CHECKPOINT_METADATA").unlink()
    step, params, about = text_classifier.restore_best(saved, "here", [30, 20, 10], wanted)
    assert (step, int(params["w"]), about) == (20, 20, {"about": 20})
    assert (
        len(said) == 1
        and "the checkpoint of step 30 is damaged: _CHECKPOINT_METADATA is missing" in said[0]
    )
    with pytest.raises(
        ValueError,
        match="every checkpoint in .* is damaged .30, 40: _CHECKPOINT_METADATA is missing",
    ):
        text_classifier.restore_best(saved, "here", [30, 40], wanted)
    with pytest.raises(ValueError, match="here has no epoch that was evaluated and saved"):
        text_classifier.restore_best(saved, "here", [], wanted)
    (tmp_path / "10").rename(tmp_path / "50")
    with pytest.raises(
        ValueError,
        match="50 is of step 10: a folder was renamed or copied; name it 10 again, or remove it",
    ):
        text_classifier.restore_best(saved, "here", [50, 20], wanted)


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


# A crash within the process is above, kills at any moment are in train_test.py.
def run_in_a_process(there, run, kills=()):
    """Runs the program on one device, killed at each of some numbers of lines of metrics, until it
    ends."""
    program = [sys.executable, "-m", "gptjax.finetune", *arguments(there, run)]
    environment = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }  # a kill may tear its entries
    flags = os.environ["XLA_FLAGS"].split()
    environment["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    metrics = run / "metrics.jsonl"
    for lines in kills:
        process = subprocess.Popen(
            program, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        until = lines + (len(metrics.read_text().splitlines()) if metrics.exists() else 0)
        while process.poll() is None and not (
            metrics.exists() and len(metrics.read_text().splitlines()) >= until
        ):
            time.sleep(0.003)
        time.sleep(random.random() * 0.1)
        process.kill()
        process.communicate()
    done = subprocess.run(
        program, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(there, tmp_path_factory):
    """A run in a process of its own, in which XLA has other options than in that of the tests."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_in_a_process(there, run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 4])
def test_killed_and_not_one_bit_changed(there, whole, tmp_path, times):
    run = tmp_path / "run"
    run_in_a_process(there, run, [random.randint(1, 60 // times) for _ in range(times)])
    assert curve(run) == curve(whole)
    assert (run / "result.json").read_text() == (whole / "result.json").read_text()


@pytest.mark.parametrize(
    "change",
    ["task.lm_weight=0", pytest.param("task.transfer=Layers(n=1)", marks=pytest.mark.slow)],
)
def test_the_papers_ablations_learn_too(there, tuned, tmp_path, change):
    assert finetune.main(arguments(there, tmp_path / "run", change)) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["dev"] > 90
    assert curve(tmp_path / "run")[0] != curve(tuned)[0]


@pytest.mark.slow
def test_several_seeds_show_their_median(there, tmp_path, capsys):
    assert (
        finetune.main(
            [
                *arguments(there, tmp_path / "run", "task.epochs=1", "task.transfer=Nothing()"),
                "--seeds=2",
            ]
        )
        == 0
    )
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [one["seed"] for one in found] == [0, 1] and "2 seeds" in capsys.readouterr().out
    for one in found:
        assert (
            json.loads((tmp_path / "run" / f"seed_{one['seed']}" / "result.json").read_text())
            == one
        )


def test_each_seed_is_a_run_of_its_own(there, tmp_path, monkeypatch):
    seen = []

    def stands_in(config, directory, learning, args, here):
        seen.append((config.seed, directory))
        learning.result = {"seed": config.seed}
        return 0

    monkeypatch.setattr(finetune, "run_seed", stands_in)
    monkeypatch.setattr(finetune, "print_results", lambda out, results: None)
    (tmp_path / "run").mkdir()
    assert finetune.main([*arguments(there, tmp_path / "run", "seed=5"), "--seeds=2"]) == 0
    assert seen == [(5, f"{tmp_path / 'run'}/seed_5"), (6, f"{tmp_path / 'run'}/seed_6")]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == [{"seed": 5}, {"seed": 6}]


REFUSED = {
    "unknown": (
        ["--config=gpt1_sst"],
        ("no fine-tuning recipe is called 'gpt1_sst'; did you mean gpt1_sst2"),
    ),
    "a seed": (["--set", "seed=-1"], "seed=-1: give a whole number from 0 to"),
    "the last seed": (
        ["--seeds=2", "--set", "seed=4294967295"],
        ("seed=4294967296: give a whole number from 0 to"),
    ),
    "a submission": (
        ["--set", "task.submission=../../evil"],
        ("task.submission='../../evil': it names a file of predictions/"),
    ),
    "no weights": (
        ["--init=no/such"],
        ("no/such does not exist: give a run, or a folder of weights"),
    ),
    "labels": (
        ["--set", "task.labels=('good', 'bad')"],
        ("line 1: label is 'negative'; give good, bad, or a number from 0 to 1"),
    ),
    "column": (
        ["--set", "task.fields=(text,)"],
        ("has no column 'text': it has idx, sentence, label"),
    ),
    "batch": (
        ["--set", "task.batch_examples=999"],
        ("160 training examples are fewer than task.batch_examples=999"),
    ),
    "layers": (
        ["--set", "task.transfer=Layers(n=3)"],
        ("task.transfer=Layers(n=3): the model has 2 layers; give as many or fewer"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_clear_line(there, tmp_path, name):
    changes, said = REFUSED[name]
    with pytest.raises(ValueError) as refused:
        finetune.main([*arguments(there, tmp_path / "run"), *changes])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_head_of_another_label_count_and_a_tuned_model_are_refused(there, tuned, tmp_path):
    with pytest.raises(
        ValueError, match="holds a run of another config .task.labels: .*; give another --run_dir"
    ):
        finetune.main(arguments(there, tuned, "task.labels=('negative', 'positive', 'neither')"))
    with pytest.raises(ValueError, match="fine-tuned on own and cannot .*give the pre-trained run"):
        finetune.main([*arguments(there, tmp_path / "run"), f"--init={tuned}"])


def test_the_program_says_so_and_exits_with_2(there, tmp_path):
    program = [
        sys.executable,
        "-m",
        "gptjax.finetune",
        *arguments(there, tmp_path / "run", "task.dev=no.tsv"),
    ]
    done = subprocess.run(
        program, cwd=CHECKOUT, env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert (
        done.returncode == 2
        and done.stderr == "error: no.tsv does not exist; give a .tsv or .csv or .jsonl file\n"
    ), done.stderr
