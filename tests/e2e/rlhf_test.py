"""Learning from a reward as a user runs it: the reward rises, a run that was interrupted goes on to
the same numbers, and what cannot be is one line."""

import json
import math

import pytest

import gptjax
from gptjax import rlhf, sft, train
from gptjax.report import events
from gptjax.training.rlhf import program
from tests import tiny

RECORDED = (
    "score", "reward", "kl", "kl_coef", "entropy", "length", "no_ending", "clip_fraction",
    "value_clip_fraction", "explained_variance", "sampler_gap", "ratio", "approx_kl",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        tiny.limit_devices(patch, 1)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pre-trained run, pre/, one that answers, sft/, prompts and rewards."""
    folder = tmp_path_factory.mktemp("rlhf")
    rows = [{"prompt": f"{i} {w}", "completion": w} for i in range(60) for w in ("red", "sea")]
    for name, keys in {"c": ("prompt", "completion"), "p": ("prompt",)}.items():
        lines = [json.dumps({key: row[key] for key in keys}) + "\n" for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "text.txt").write_text("red sea. " * 500)
    (folder / "rewards_of_test.py").write_text(
        "def vowels(prompts, answers):\n"
        "    return [sum(c in 'aeiou' for c in a) / 4 - len(a) / 10 for a in answers]\n"
        "def nan(prompts, answers):\n    return [float('nan')] * len(answers)\n"
        "def raises(prompts, answers):\n    raise KeyError('no')\n"
        "def few(prompts, answers):\n    return [1.0]\n"
        "def words(prompts, answers):\n    return ['a'] * len(answers)\n"
    )
    flags = ["model.n_ctx=32", "train.batch_tokens=256", "train.steps=3"]
    flags += [f"data.sources=Text(path='{folder / 'text.txt'}')", "data.validation=Tail()"]
    assert train.main(["--config=smoke", f"--run_dir={folder / 'pre'}", *set_flags(flags)]) == 0
    flags = [f"task.train={folder / 'c.jsonl'}", "task.batch_rows=4", "task.peak_lr=0.02"]
    flags += ["task.epochs=1"]
    init = ["--config=sft", f"--init={folder / 'pre'}", f"--run_dir={folder / 'sft'}"]
    assert sft.main([*init, *set_flags(flags)]) == 0
    return folder


@pytest.fixture(autouse=True)
def rewards(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))


def set_flags(sets):
    return [part for text in sets for part in ("--set", text)]


def arguments(folder, run, *sets, init="sft"):
    usual = [
        f"task.prompts={folder / 'p.jsonl'}", "task.prompt_tokens=16", "task.answer_tokens=8",
        "task.reward=PythonFunction(name='rewards_of_test:vowels')", "task.batch_rows=16",
        "task.minibatches=2", "task.episodes=96", "task.peak_lr=0.003", "task.kl_coef=0.05",
        "task.warmup_iterations=0", "task.eval_answers=4", "loop.every_eval=3", "loop.every_save=2",
    ]  # fmt: skip
    return [
        "--config=ppo",
        f"--init={folder / init}",
        f"--run_dir={folder / run}",
        *set_flags([*usual, *sets]),
    ]


def records(folder, run):
    """(records of steps, those of evaluations) without times."""
    rows = [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_s")}
        for row in events.read(folder / run)
    ]
    return [r for r in rows if "score" in r], [r for r in rows if "validation_score" in r]


def test_the_reward_rises_and_an_interrupted_run_goes_on_to_the_same_numbers(folder, capsys):
    assert rlhf.main(arguments(folder, "ppo")) == 0
    steps, evaluations = records(folder, "ppo")
    assert len(steps) == 6 and set(RECORDED) <= set(steps[0])
    assert all(math.isfinite(x) for row in steps for x in row.values())
    assert steps[0]["kl"] == 0 and steps[0]["sampler_gap"] < 1e-5
    assert steps[-1]["score"] > steps[0]["score"] and steps[-1]["kl"] > 0
    assert [row["step"] for row in evaluations] == [3, 6]
    assert "validation_loss" not in evaluations[-1]
    shown = capsys.readouterr().out
    assert "the first prompt" in shown and "score" in shown and "gptjax.chat" in shown

    def stop(*given):
        raise KeyboardInterrupt

    # Killed within the updates of step 4: the checkpoint of step 2 is there.
    with pytest.MonkeyPatch.context() as patch:
        update = program.RlhfProgram._gradients
        calls = []

        def gradients(self, *given):
            calls.append(1)
            return stop() if len(calls) == 8 else update(self, *given)

        patch.setattr(program.RlhfProgram, "_gradients", gradients)
        with pytest.raises(KeyboardInterrupt):
            rlhf.main(arguments(folder, "again"))
    assert rlhf.main(arguments(folder, "again")) == 0
    assert records(folder, "again") == (steps, evaluations)
    models = [gptjax.load_model(str(folder / run)) for run in ("ppo", "again")]
    first, second = (m.generate("1 red", max_new_tokens=8, seed=1) for m in models)
    assert first == second
