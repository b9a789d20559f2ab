"""Learning from a reward as a user runs it: the reward rises, a run that was interrupted goes on to
the same numbers, and what cannot be is one line."""

import json
import math

import jax
import numpy as np
import pytest

import gptjax
from gptjax import reward as reward_program
from gptjax import rlhf, sft, train
from gptjax.data.prompts import PromptRows
from gptjax.data.tokenizers.build import ByteTokenizer
from gptjax.report import events, reward_plot
from gptjax.runtime import checksums, run_dir
from gptjax.training.rlhf import dataset, program
from gptjax.weights import load, reward_model
from tests import tiny

RECORDED = (
    "score", "reward", "kl", "kl_coef", "entropy", "length", "no_ending", "clip_fraction",
    "value_clip_fraction", "explained_variance", "sampler_gap", "ratio", "approx_kl",
)  # fmt: skip


pytestmark = pytest.mark.usefixtures("lean")
draw_reward = reward_plot.draw


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
        "def huge(prompts, answers):\n    return [1e39] * len(answers)\n"
        "def whole(prompts, answers):\n    return [10**400] * len(answers)\n"
        "def none(prompts, answers):\n    pass\n"
        "def ends(prompts, answers):\n    raise SystemExit(0)\n"
        "def words(prompts, answers):\n    return ['a'] * len(answers)\n"
    )
    flags = ["model.n_layers=1", "model.n_ctx=32", "train.batch_tokens=256", "train.steps=3"]
    flags += [f"data.sources=Text(path='{folder / 'text.txt'}')", "data.validation=Tail()"]
    assert train.main(["--config=smoke", f"--run_dir={folder / 'pre'}", *set_flags(flags)]) == 0
    flags = [f"task.train={folder / 'c.jsonl'}", "task.batch_rows=4", "task.peak_lr=0.02"]
    flags += ["task.epochs=1"]
    init = ["--config=sft", f"--init={folder / 'pre'}", f"--run_dir={folder / 'sft'}"]
    assert sft.main([*init, *set_flags(flags)]) == 0
    return folder


def set_flags(sets):
    return [part for text in sets for part in ("--set", text)]


def reward(folder, name, file="rewards_of_test"):
    return f"PythonFunction(name='{folder / file}.py:{name}')"


def arguments(folder, run, *sets, init="sft"):
    usual = [
        f"task.prompts={folder / 'p.jsonl'}", "task.prompt_tokens=16", "task.answer_tokens=8",
        f"task.reward={reward(folder, 'vowels')}", "task.batch_rows=16",
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
    models = [gptjax.load(str(folder / run)) for run in ("ppo", "again")]
    first, second = (m.generate("1 red", max_new_tokens=8, seed=1) for m in models)
    assert first == second


def test_text_mixed_in_and_a_running_mean_are_of_the_result(folder, monkeypatch):
    monkeypatch.setattr(reward_plot, "draw", draw_reward)
    flags = ["task.ptx=Ptx(rows_per_answer=2)", "task.ema=0.5", "task.episodes=32"]
    assert rlhf.main(arguments(folder, "ptx", *flags)) == 0
    steps, evaluations = records(folder, "ptx")
    assert len(steps) == 2 and all("lm_loss" in row for row in steps)
    assert 0 < evaluations[-1]["validation_loss"] < 10
    assert (folder / "ptx" / "reward.png").is_file()
    reader = load.RunWeights(folder / "ptx", (), folder / "ptx" / "checkpoints", print)
    mean = gptjax.load(str(folder / "ptx"))
    assert reader.config.task.ema == 0.5 and mean.generate("1 red", max_new_tokens=4, seed=0)


@pytest.mark.parametrize(
    "advantage", ["GroupMean(answers=4)", "LeaveOneOut(answers=4)", "Gae(value=SharedValue())"]
)
def test_other_advantages_and_plain_text(folder, advantage):
    run = advantage[:3]
    flags = [f"task.advantage={advantage}", "task.text=plain", "task.episodes=32"]
    flags += ["task.ending=CutAt(text='e',after=2)", "task.no_ending_score=-1.0"]
    assert rlhf.main(arguments(folder, run, *flags, init="pre")) == 0
    steps, _ = records(folder, run)
    assert len(steps) == 2 and steps[0]["length"] == 8 and 0 < steps[0]["no_ending"] <= 1
    if "answers" in advantage:  # each prompt is there four times
        prompts = PromptRows(run_dir.load_config(folder / run).task, ByteTokenizer(), None, print)
        rows = dataset.RlhfDataset(prompts, 0, None, 0)
        numbers = [rows.row(i)[1:].tolist() for i in range(8)]
        assert numbers[0] == numbers[3] != numbers[4] == numbers[7]


def train_reward_model(folder):
    """Trains folder/rm; returns the flags of a run of RLHF with it."""
    rows = [{"prompt": f"{i} red", "completions": ["red", "sea"]} for i in range(40)]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"task.train={folder / 'r.jsonl'}", "task.batch_rows=8", "task.peak_lr=0.003"]
    init = ["--config=reward", f"--init={folder / 'sft'}", f"--run_dir={folder / 'rm'}"]
    assert reward_program.main([*init, *set_flags(flags)]) == 0
    return [
        f"task.reward=RewardModel(path='{folder / 'rm'}')", "task.episodes=32", "loop.every_save=1"
    ]  # fmt: skip


@pytest.mark.usefixtures("implicit_transfers")
def test_a_reward_model_scores_the_answers_and_begins_the_value_function(folder, monkeypatch):
    flags, seen = train_reward_model(folder), []
    answers = program.RlhfProgram.answers

    def remember(self, state, *given):
        out, statistics = answers(self, state, *given)
        seen.append((jax.device_get(out), statistics["score"], jax.device_get(state.value)))
        return out, statistics

    monkeypatch.setattr(program.RlhfProgram, "answers", remember)
    assert rlhf.main(arguments(folder, "learned", *flags)) == 0
    out, scores, value = seen[0]
    model = reward_model.load(folder / "rm")
    texts = [
        row[: int(np.flatnonzero(mask)[-1]) + 2].tolist()
        for row, mask in zip(out.tokens_BT, out.mask_BT, strict=True)
    ]
    np.testing.assert_allclose(scores, model.score(texts), rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, value, jax.device_get(model.params))
    chosen = folder / "rm" / run_dir.CHOSEN
    before = checksums.read(chosen)
    checksums.save(chosen, before | {"bias": 3.0})
    with pytest.raises(ValueError, match="the reward of .* is not the one that the run began with"):
        rlhf.main(arguments(folder, "learned", *flags))
    checksums.save(chosen, before)


@pytest.mark.slow
def test_a_reward_model_in_bfloat16_on_another_mesh_and_for_sft(folder, monkeypatch):
    flags, dtypes = train_reward_model(folder), []
    answers = program.RlhfProgram.answers

    def remember(self, state, *given):
        trees = self._reference, self._reward.params, state.params
        dtypes.append([tree["token_VD"].dtype.name for tree in trees])
        return answers(self, state, *given)

    monkeypatch.setattr(program.RlhfProgram, "answers", remember)
    assert rlhf.main(arguments(folder, "learned", *flags)) == 0
    assert dtypes[-1] == ["float32"] * 3
    # In bfloat16 the reference takes half the memory, and the policy begins as the reference; the
    # reward model computes as it was trained.
    half = "compute.dtype=bfloat16", "task.episodes=16"
    assert rlhf.main(arguments(folder, "half", *flags, *half)) == 0
    assert dtypes[-1] == ["bfloat16", "float32", "float32"]
    assert records(folder, "half")[0][0]["kl"] == 0
    # On a mesh that the reward model was not trained on.
    with pytest.MonkeyPatch.context() as patch:
        tiny.limit_devices(patch, 4)
        split = ["mesh.sharding=fsdp_tensor", "mesh.fsdp=2", "mesh.tensor=2", "task.episodes=16"]
        assert rlhf.main(arguments(folder, "split", *flags, *split)) == 0
    whole, parts = (records(folder, run)[0][0] for run in ("learned", "split"))
    for name in ("score", "loss", "grad_norm", "entropy"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name
    # It also chooses the epoch of a run of SFT, whose tokens it reads.
    flags_sft = [f"task.train={folder / 'c.jsonl'}", "task.batch_rows=4", "task.epochs=1"]
    flags_sft += [f"task.choose=BestScore(reward=RewardModel(path='{folder / 'rm'}'),prompts=4)"]
    init_sft = ["--config=sft", f"--init={folder / 'sft'}", f"--run_dir={folder / 'chosen'}"]
    assert sft.main([*init_sft, *set_flags([*flags_sft, "task.choose.answer_tokens=8"])]) == 0
    assert records(folder, "chosen")[1][0]["validation_score"] != 0


@pytest.mark.parametrize("sets, line", [
    (["task.prompts=none.jsonl"], "none.jsonl"),
    (["task.prompt_tokens=30"], "38 is more than the context of the model, 32"),
    (["task.prompt_tokens=2"], "no prompt is left; "),
    (["task.minibatches=3"], "task.minibatches=3 does not divide task.batch_rows=16"),
    (["task.advantage=GroupMean(answers=3)"], "task.advantage.answers=3 does not divide"),
    (["task.too_long=truncate"], "set it to drop, or task.text=plain"),
    (["task.text=plain", "task.ending=CutAt(text='ab')"], "'ab' is 2 tokens"),
    (["task.reward=PythonFunction(name='vowels')"], "give FILE.py:FUNCTION"),
    (["task.reward=PythonFunction(name='none.py:f')"], "none.py: there is no such file"),
    (["no"], "has no function no"),
    (["nan"], "returned nan for the answer"),
    (["raises"], "raised KeyError: 'no'"),
    (["few"], "returned 1 values for "),
    (["words"], "returned 'a' for the answer"),
    (["huge"], "returned 1e+39 for the answer"),
    (["whole"], "must return finite numbers, of at most 3.4e38"),
    (["none"], "returned None: it must return one number for each answer"),
    (["ends"], "raised SystemExit: 0; checkpoints that were saved before are good"),
    (["task.reward=RewardModel(path='none')"], "none"),
    (["task.episodes=10"], "task.episodes=10 are fewer than task.batch_rows=16"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(folder, sets, line):
    if "=" not in sets[0]:
        sets = [f"task.reward={reward(folder, sets[0])}"]
    with pytest.raises(ValueError) as error:
        rlhf.main(arguments(folder, "bad", *sets))
    assert line in str(error.value) and "\n" not in str(error.value)
    assert not list((folder / "bad").glob("checkpoints/*"))


def test_an_explosion_of_the_kl_ends_the_run_with_its_last_checkpoint(folder):
    flags = ["task.peak_lr=0.5", "task.max_kl=3", "loop.every_save=1"]
    with pytest.raises(ValueError, match=r"KL to the reference is .* lower task.peak_lr or raise"):
        rlhf.main(arguments(folder, "kl", *flags))
    assert list((folder / "kl" / "checkpoints").iterdir())


def test_a_run_goes_on_with_the_reward_that_it_began_with(folder):
    source = (folder / "rewards_of_test.py").read_text()
    (folder / "changing.py").write_text(source)
    flags = [f"task.reward={reward(folder, 'vowels', 'changing')}", "task.episodes=32"]
    assert rlhf.main(arguments(folder, "changed", *flags)) == 0
    (folder / "changing.py").write_text(source.replace("/ 4", "/ 5"))
    with pytest.raises(ValueError, match="the reward of .* is not the one that the run began with"):
        rlhf.main(arguments(folder, "changed", *flags))
    (folder / "changing.py").write_text(source)
    with pytest.raises(ValueError, match="the reference of .* is not the one"):
        rlhf.main(arguments(folder, "changed", *flags, init="changed"))
