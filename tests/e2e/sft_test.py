"""Supervised fine-tuning as a user runs it: it learns to answer, its result is the epoch with the
lowest loss, and what cannot be is one line."""

import json
import math
import random

import pytest

import gptjax
from gptjax import dpo, sft, train
from gptjax.report import events
from gptjax.runtime import run_dir
from gptjax.weights import open_model

pytestmark = pytest.mark.usefixtures("lean")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pre-trained run, pre/, and conversations, some of which are no good."""
    folder, draw = tmp_path_factory.mktemp("sft"), random.Random(0)
    words = ["red", "sea"]

    def conversation():
        word = draw.choice(words)
        question = {"role": "user", "content": f"{draw.randrange(300)} {word}"}
        return [question, {"role": "assistant", "content": word}]

    rows = [{"messages": conversation()} for _ in range(240)]
    rows += [{"messages": conversation()[::-1]}, {"messages": conversation()[:1]}] * 2
    dev = [{"messages": conversation()} for _ in range(20)]
    for name, part in {"c": rows, "dev": dev}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "text.txt").write_text("red sea. " * 500)
    flags = ["model.n_layers=1", "model.n_ctx=32", "train.batch_tokens=256", "train.steps=3"]
    flags += [f"data.sources=Text(path='{folder / 'text.txt'}')", "data.validation=Tail()"]
    assert train.main(["--config=smoke", f"--run_dir={folder / 'pre'}", *set_flags(flags)]) == 0
    return folder


def set_flags(sets):
    return [part for text in sets for part in ("--set", text)]


def arguments(folder, run, *sets, init="pre"):
    usual = [f"task.train={folder / 'c.jsonl'}", "task.batch_rows=4", "task.peak_lr=0.02"]
    return [
        "--config=sft",
        f"--init={folder / init}",
        f"--run_dir={folder / run}",
        *set_flags([*usual, *sets]),
    ]


def test_it_learns_to_answer_and_to_stop(folder, capsys):
    assert (
        sft.main(arguments(folder, "run", f"task.dev={folder / 'dev.jsonl'}", "task.epochs=9")) == 0
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "train: 2 conversations dropped: roles out of order (first:" in said
    assert "train: 2 conversations dropped: no turn of the assistant" in said
    assert "<|user|>" in said and "⟦" in said and "<|end|>⟧" in said
    assert "learned of" in said and "conversations to validate on" in said
    losses = {
        line["step"]: line["validation_loss"]
        for line in events.read(folder / "run")
        if "validation_loss" in line
    }
    best = min(losses, key=losses.__getitem__)
    assert losses[best] < 0.3 and run_dir.chosen_step(folder / "run") == best
    model = gptjax.load(folder / "run")
    assert [model.chat(f"17 {word}", temperature=0.0) for word in ("red", "sea")] == ["red", "sea"]
    assert open_model.open_model(folder / "run").description == f"step {best:,}"
    (folder / "run" / run_dir.CHOSEN).write_text(json.dumps({"step": min(losses)}))
    assert open_model.open_model(folder / "run").description == f"step {min(losses):,}"


def test_the_epoch_of_the_best_score_is_the_result(folder, capsys):
    """The score falls from call to call, so that it is not the epoch of the lowest loss."""
    (folder / "score_of_test.py").write_text(
        "import json\n"
        "calls = []\n"
        "def falling(prompts, answers):\n"
        "    calls.append(1)\n"
        "    scores = [len(a) / 100 - len(calls) for a in answers]\n"
        f"    with open({str(folder / 'calls.jsonl')!r}, 'a') as f:\n"
        "        print(json.dumps([prompts, answers, scores]), file=f)\n"
        "    return scores\n"
    )
    reward = f"PythonFunction(name='{folder / 'score_of_test.py'}:falling')"
    flags = [f"task.dev={folder / 'dev.jsonl'}", "task.epochs=2", "task.rows=single"]
    flags += [f"task.choose=BestScore(reward={reward},prompts=10,answer_tokens=6)"]
    assert sft.main(arguments(folder, "scored", *flags)) == 0
    records = [r for r in events.read(folder / "scored") if "validation_score" in r]
    scores = {r["step"]: r["validation_score"] for r in records}
    losses = {r["step"]: r["validation_loss"] for r in records}
    best = max(scores, key=lambda step: scores[step])
    assert len(scores) == 2 and best != min(losses, key=lambda step: losses[step])
    assert json.loads((folder / "scored" / run_dir.CHOSEN).read_text()) == {"step": best}
    said = " ".join(capsys.readouterr().out.split())
    assert f"step {best:,} has the highest score of answers on dev" in said
    assert "score_of_test.py:falling, of 10 held-out prompts" in said
    assert "highest score of answers" in said and "held-out prompts: score" in said
    calls = [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    assert [len(answers) for _, answers, _ in calls] == [4, 4, 4] * 2  # 10 prompts and padding
    for epoch, score in enumerate(scores.values()):
        prompts, _, values = (sum(parts, []) for parts in zip(*calls[3 * epoch :][:3], strict=True))
        assert score == pytest.approx(sum(values[:10]) / 10)
        lines = (folder / "dev.jsonl").read_text().splitlines()
        questions = [json.loads(line)["messages"][0]["content"] for line in lines]
        numbers = [*range(10), 8, 8]  # padding repeats a prompt
        for prompt, i in zip(prompts, numbers, strict=True):
            assert prompt.endswith(f"<|user|>{questions[i]}<|end|><|assistant|>")
    (folder / "score_of_test.py").write_text(
        "def falling(prompts, answers):\n    return [0] * len(answers)\n"
    )
    with pytest.raises(ValueError, match="the reward of .* is not the one that the run began with"):
        sft.main(arguments(folder, "scored", *flags))


def test_dpo_learns_from_pairs_and_keeps_its_reference(folder, capsys):
    """Trained to prefer `no`, from the model before any fine-tuning."""
    pairs = [{"prompt": f"{n} sea", "chosen": "no", "rejected": "sea"} for n in range(60)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    flags = ["task.batch_rows=4", "task.peak_lr=0.003", "task.dev_fraction=0.2"]

    def run(*sets):
        return dpo.main([
            "--config=dpo", f"--init={folder / 'pre'}", f"--run_dir={folder / 'dpo'}",
            *set_flags([f"task.train={folder / 'pairs.jsonl'}", *flags, *sets]),
        ])  # fmt: skip

    assert run("loop.every_log=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "pairs of answers" in said and "was never fine-tuned on conversations" in said
    lines = events.read(folder / "dpo")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < 0.3
    last = next(line for line in reversed(lines) if "validation_loss" in line)
    assert last["validation_accuracy"] == 1 and last["validation_margin"] > 1
    (reference,) = (folder / "dpo" / "data").glob("reference-*.npy")
    before = reference.read_bytes()
    assert run() == 0 and reference.read_bytes() == before
    assert "the run is finished" in " ".join(capsys.readouterr().out.split())
    reference.write_bytes(before[:200] + bytes([before[200] ^ 1]) + before[201:])
    with pytest.raises(ValueError, match=r"reference-\w+\.npy is damaged"):
        run()
    reference.unlink()
    with pytest.raises(ValueError, match=r"reference-\w+\.npy is missing"):
        run()
    same = [{"prompt": "a", "chosen": "b", "rejected": "b"}] * 2
    (folder / "same.jsonl").write_text("".join(json.dumps(row) + "\n" for row in same))
    with pytest.raises(ValueError, match="no pair is left to learn from; 2 were dropped: two of"):
        run(f"task.train={folder / 'same.jsonl'}", f"task.dev={folder / 'same.jsonl'}")


def test_dpo_of_plain_text_needs_no_chat_template(folder, capsys):
    pairs = [
        {"prompt": f"{n} sea", "chosen": {"text": " no", "ended": True}, "rejected": " red"}
        for n in range(60)
    ]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    flags = [f"task.train={folder / 'plain.jsonl'}", "task.text=plain", "task.batch_rows=4"]
    init = ["--config=dpo", f"--init={folder / 'pre'}", f"--run_dir={folder / 'plain'}"]
    assert dpo.main([*init, *set_flags([*flags, "task.peak_lr=0.003", "loop.every_log=1"])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "⟦ no<|endoftext|>⟧" in said and "never fine-tuned" not in said
    assert "gptjax.sample --model" in said and "gptjax.chat" not in said
    losses = [line["loss"] for line in events.read(folder / "plain") if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < 0.3
    before, after = (run_dir.load_config(folder / run) for run in ("pre", "plain"))
    assert after.data.tokenizer == before.data.tokenizer
    assert after.model.n_vocab == before.model.n_vocab


@pytest.mark.parametrize("sets, line", [
    (["task.train=none.jsonl"], "none.jsonl"),
    (["task.batch_rows=1000"], "fewer than task.batch_rows=1000"),
    (["n_ctx=64"], "--set longer_positions=repeat or =interpolate, or give at most n_ctx=32"),
    (["n_ctx=8"], "no conversation is left to learn from"),
    (["task.dev_fraction=0"], "leaves none for dev"),
    (["task.form=alpaca"], "has no 'instruction'"),
    (["loop.every_eval=3"], "leave it out"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(folder, sets, line):
    with pytest.raises(ValueError, match=line) as error:
        sft.main(arguments(folder, "refused", *sets))
    assert "\n" not in str(error.value) and not (folder / "refused").exists()


def test_what_is_missing_is_said(folder):
    with pytest.raises(ValueError, match="say which recipe with --config=NAME: sft, instruct"):
        sft.main([])
    with pytest.raises(ValueError, match="say which model with --init=PATH"):
        sft.main(["--config=sft"])
    with pytest.raises(ValueError, match="gptjax.sft --config=sft --init=RUN"):
        train.main(["--config=sft"])
