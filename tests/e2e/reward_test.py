"""A reward model as a user trains and reads one: its scores are normalized as its config says, its
run goes on bit for bit, and what cannot be is one line."""

import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import gptjax
from gptjax import reward, sample, train
from gptjax.data import conversations
from gptjax.model import scalar_gpt
from gptjax.report import events
from gptjax.runtime import checksums, run_dir
from gptjax.training import checkpoint, loop
from gptjax.weights import load, reward_model
from tests import tiny
from tests.e2e.sft_test import set_flags

WORDS = {"good": 2, "fine": 1, "dull": -1, "bad": -2}


pytestmark = pytest.mark.usefixtures("lean")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ranking(draw, n_answers):
    texts = [" ".join(draw.choices(list(WORDS), k=3)) for _ in range(n_answers)]
    scores = [sum(WORDS[word] for word in text.split()) for text in texts]
    return {"prompt": f"film {draw.randrange(99)}", "completions": texts, "scores": scores}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pre-trained run, pre/, whose output table is its own, rankings with ties, and
    demonstrations."""
    folder, draw = tmp_path_factory.mktemp("reward"), random.Random(0)
    rows = [ranking(draw, draw.randint(2, 4)) for _ in range(120)]
    rows += [{"prompt": "a", "completions": ["b", "c"], "scores": [1, 1]}]
    write(folder / "r.jsonl", rows)
    demonstrations = [("film 1", "good fine good"), ("film 2", "good good dull"), ("film 3", "bad")]
    write(folder / "d.jsonl", [{"prompt": p, "completion": c} for p, c in demonstrations])
    (folder / "text.txt").write_text("film good bad fine dull. " * 300)
    flags = ["model.n_ctx=40", "train.batch_tokens=320", "train.steps=3", "model.tied_output=False"]
    flags += ["model.n_layers=1"]
    flags += [f"data.sources=Text(path='{folder / 'text.txt'}')", "data.validation=Tail()"]
    assert train.main(["--config=smoke", f"--run_dir={folder / 'pre'}", *set_flags(flags)]) == 0
    return folder


def arguments(folder, run, *sets, config="reward"):
    usual = [f"task.train={folder / 'r.jsonl'}", "task.batch_rows=4", "task.peak_lr=0.01"]
    usual += ["task.epochs=2", "task.dev_fraction=0.2", "loop.every_log=5"]
    return [
        f"--config={config}",
        f"--init={folder / 'pre'}",
        f"--run_dir={folder / run}",
        *set_flags([*usual, *sets]),
    ]


def demonstrations(folder):
    return f"task.normalize=Demonstrations(path='{folder / 'd.jsonl'}')"


@pytest.fixture(scope="module")
def finished(folder):
    """A reward model of demonstrations that score 0."""
    assert reward.main(arguments(folder, "run", demonstrations(folder))) == 0
    return folder / "run"


def read_metrics(run):
    shown = ("seconds", "tokens_per_s")
    return [{name: x for name, x in line.items() if name not in shown} for line in events.read(run)]


def test_it_learns_which_completion_is_better(folder, finished, capsys):
    last = next(line for line in reversed(events.read(finished)) if "validation_loss" in line)
    assert last["validation_accuracy"] > 0.75 and last["validation_loss"] < 0.6
    assert last["validation_accuracy_low"] < last["validation_accuracy"]
    assert last["validation_accuracy"] <= last["validation_accuracy_high"]
    assert (finished / "calibration.png").stat().st_size > 10_000
    assert run_dir.load_config(finished).task.completions == 4
    chosen = (finished / run_dir.CHOSEN).read_bytes()
    (finished / run_dir.CHOSEN).unlink()  # as if it was killed before the end
    with pytest.raises(ValueError, match=r"the training of this reward model has not ended"):
        reward_model.load(finished)
    assert reward.main(arguments(folder, "run", demonstrations(folder))) == 0
    assert (finished / run_dir.CHOSEN).read_bytes() == chosen
    said = " ".join(capsys.readouterr().out.split())
    assert "dropped: all answers are equally good (first:" in said
    assert "pairs of equally good answers not learned (first:" in said
    assert "was never fine-tuned on conversations" in said
    assert "1. <|user|>film" in said and "demonstrations score 0 on average" in said
    assert f"{json.loads(chosen)['validation_accuracy']['n_pairs']:,} pairs" in said
    before = (folder / "d.jsonl").read_bytes()
    write(folder / "d.jsonl", [{"prompt": "film 4", "completion": "dull"}])
    with pytest.raises(ValueError, match="the data of .* have changed since it began"):
        reward.main(arguments(folder, "run", demonstrations(folder)))
    (folder / "d.jsonl").write_bytes(before)
    assert ", 95%) of " in said and f"gptjax.reward --model={finished} --score=FILE" in said


@pytest.mark.usefixtures("implicit_transfers")
def test_its_demonstrations_score_0_and_no_score_depends_on_its_neighbours(folder, finished):
    model = gptjax.load_reward_model(finished)
    chats = [messages for _, messages in conversations.read(str(folder / "d.jsonl"), "auto")]
    texts = [model.encode_answer(messages) for messages in chats]
    scores = model.score_answers(chats)
    assert abs(float(np.mean(scores))) < 1e-5 and scores[0] > scores[2]
    assert [model.score([text])[0] for text in texts[::-1]] == scores[::-1].tolist()
    assert "output_VD" not in model.params
    tokens = np.zeros((1, len(texts[0])), np.int32)
    tokens[0] = texts[0]
    last = np.array([len(texts[0]) - 1])
    alone = scalar_gpt.scores(model.model, model.params, tokens, last)
    np.testing.assert_allclose(np.asarray(alone), scores[:1], atol=1e-5)


def test_it_is_known_by_its_digest(finished, tmp_path):
    model = reward_model.load(finished)
    assert model.description().endswith(f"digest {model.digest}")
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert reward_model.load(copy).digest == model.digest
    result = json.loads((copy / run_dir.CHOSEN).read_text())
    (copy / run_dir.CHOSEN).write_text(json.dumps(result | {"bias": 3.0}))
    with pytest.raises(ValueError, match=r"chosen\.json is damaged, or was edited"):
        reward_model.load(copy)
    record = checksums.read(finished / run_dir.CHOSEN)
    checksums.save(copy / run_dir.CHOSEN, record | {"bias": 3.0})
    assert reward_model.load(copy).digest != model.digest
    (other_step,) = {int(d.name) for d in (copy / "checkpoints").iterdir()} - {record["step"]}
    checksums.save(copy / run_dir.CHOSEN, record | {"step": other_step})
    with pytest.raises(ValueError, match="is of other parameters than the checkpoint of step"):
        reward_model.load(copy)


def test_it_is_no_language_model(folder, finished):
    with pytest.raises(ValueError, match="is a reward model and cannot generate text"):
        sample.main([f"--model={finished}"])
    with pytest.raises(ValueError, match="is a reward model and cannot generate text"):
        load.load(finished)
    with pytest.raises(ValueError, match="pre is no reward model: python -m gptjax.reward"):
        reward_model.load(folder / "pre")


def test_scores_of_a_file_keep_its_order(folder, finished, tmp_path, capsys):
    rows = [
        {"prompt": "film 7", "completions": ["bad bad", ["good", "fine"]], "id": 3},
        {"prompt": "film 7", "completion": "good", "note": "half a pair \ud83d"},
        {"messages": [{"role": "user", "content": "film 7"}]},
        {"prompt": "film 7", "chosen": "bad bad", "rejected": "x" * 50},
    ]
    write(tmp_path / "in.jsonl", rows)
    flags = [f"--model={finished}", f"--score={tmp_path / 'in.jsonl'}"]
    assert reward.main([*flags, f"--out={tmp_path / 'out.jsonl'}"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "score"} for row in found] == rows
    (bad, good, fine), alone, none, (other_bad, too_long) = (row["score"] for row in found)
    assert bad == other_bad and good == alone and bad < min(good, fine)
    assert none is None and too_long is None
    said = " ".join(capsys.readouterr().out.split())
    assert "no turn of the assistant (first:" in said and "5 answers scored by" in said
    with pytest.raises(ValueError, match="line 1 has a column 'score' already"):
        reward.main([
            f"--model={finished}", f"--score={tmp_path / 'out.jsonl'}", f"--out={tmp_path}/o.jsonl"
        ])  # fmt: skip


class Killed(BaseException):
    pass


def kill_at(monkeypatch, owner, name, number):
    """Ends the program at call `number` of a method."""
    method, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("owner, name, number", [
    (loop.TrainLoop, "_evaluate", 2),
    pytest.param(checkpoint.CheckpointManager, "save", 2, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_killed_run_of_plain_text_goes_on_bit_for_bit(
    folder, owner, name, number, monkeypatch, capsys
):
    def run(where):
        shutil.rmtree(folder / where, ignore_errors=True)
        return arguments(folder, where, config="lm_human_preferences_reward")

    if not (folder / "whole").exists():
        assert reward.main(run("whole")) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "before training: gain" in said and "a standard deviation of 1" in said
        assert "several answers are the best" in said and "conversations, so" not in said
        assert "1. film" in said
    flags = run("killed")
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, number)
        with pytest.raises(Killed):
            reward.main(flags)
    assert not (folder / "killed" / run_dir.CHOSEN).exists()
    assert reward.main(flags) == 0
    whole, killed = folder / "whole", folder / "killed"
    assert read_metrics(killed) == read_metrics(whole)
    assert (killed / run_dir.CHOSEN).read_bytes() == (whole / run_dir.CHOSEN).read_bytes()
    model = reward_model.load(killed)
    assert model.digest == reward_model.load(whole).digest
    draw = model.score([model.encode_answer(
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": text}]
    ) for line in (folder / "r.jsonl").read_text().splitlines()
        for row in [json.loads(line)] for text in row["completions"]])  # fmt: skip
    assert abs(draw.mean()) < 0.3 and draw.std() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("rows, sets, line", [
    ([{"prompt": "a", "completions": [["b", "c"]]}], [],
     "no prompt is left to learn from; 1 were dropped: all answers are equally good"),
    ([{"prompt": "a", "completions": ["b"]}], [], "1 were dropped: a single answer"),
    ([{"prompt": "a", "completions": ["b", "c"], "scores": [1, float("nan")]}], [], "NaN|nan"),
    ([{"prompt": "a", "completions": ["b", "c" * 60]}], [], "longer than the context of 40"),
    ([{"prompt": "a", "completions": ["b", "c", "d"]}], ["task.completions=2"],
     "more than task.completions=2 answers"),
    ([{"prompt": "a", "completions": [["b", "c"], "d"]}], ["task.loss=best_of"],
     "several answers are the best"),
    ([{"prompt": "a", "completions": ["b", "b"]}], [], "two of the answers are the same"),
    ([{"prompt": "a", "completion": "b"}], [], "which is no form of preferences"),
    ([{"prompt": "a", "completions": ["b", "c"]}], ["task.normalize=Demonstrations(path='no')"],
     "no"),
    ([{"prompt": "a", "completions": ["b", "c"]}], [], "1 rows of training data are fewer than"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(folder, tmp_path, rows, sets, line):
    write(tmp_path / "bad.jsonl", rows)
    files = [f"task.train={tmp_path / 'bad.jsonl'}", f"task.dev={tmp_path / 'bad.jsonl'}"]
    with pytest.raises(ValueError, match=line) as error:
        reward.main(arguments(folder, "refused", *files, *sets))
    assert "\n" not in str(error.value) and not (folder / "refused").exists()


def test_what_is_missing_is_said(folder, finished, tmp_path):
    with pytest.raises(ValueError, match="say which recipe with --config=NAME: reward, instruct"):
        reward.main([])
    with pytest.raises(ValueError, match="give --model, --score and --out to score texts"):
        reward.main([f"--model={finished}"])
    with pytest.raises(ValueError, match="gptjax.reward --config=instructgpt_reward --init=RUN"):
        train.main(["--config=instructgpt_reward"])
    with pytest.raises(ValueError, match=r"give a \.jsonl file"):
        reward.main([f"--model={finished}", "--score=x.jsonl", "--out=scores.txt"])


def test_eight_devices_read_and_score_as_one(finished):
    model = reward_model.load(finished)
    texts = [model.tokenizer.encode(text) for text in ("good", "bad film", "dull")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptjax.sharding.device_mesh.make_mesh", tiny.MAKE_MESH)
        flags = ["mesh.sharding=fsdp_tensor", "mesh.fsdp=4", "mesh.tensor=2"]
        split = reward_model.load(finished, assignments=flags)
    assert len(split.mesh.devices.ravel()) == 8 == len(jax.devices())
    assert split.digest == model.digest
    np.testing.assert_allclose(split.score(texts), model.score(texts), atol=1e-5)


@pytest.mark.slow
def test_two_processes_make_the_reward_model_of_one(folder, finished):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [*arguments(folder, "two", demonstrations(folder), "mesh.fsdp=4"), "--num_processes=2"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "gptjax.reward", *flags, f"--coordinator=localhost:{port}",
             f"--process_id={i}"],
            cwd=pathlib.Path(__file__).parents[2], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    alone, together = (
        [line["loss"] for line in events.read(run) if "loss" in line]
        for run in (finished, folder / "two")
    )
    assert len(together) == len(alone)  # rounding grows with the steps
    np.testing.assert_allclose(together[:20], alone[:20], atol=1e-4)
    model = reward_model.load(folder / "two", assignments=["mesh.fsdp=1"])
    texts = [
        model.encode_answer(messages)
        for _, messages in conversations.read(str(folder / "d.jsonl"), "auto")
    ]
    assert abs(float(np.mean(model.score(texts)))) < 1e-5
