"""What `plan --rlhf --topology` compiles is what training runs, and its verdict counts all that is
in memory at a time."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gptjax import plan
from gptjax.aot import rlhf, rlhf_cost
from gptjax.config import count, overrides, schema
from gptjax.configs import registry
from gptjax.model import inference
from gptjax.sharding import chips, rules
from gptjax.training import reward, state, step
from gptjax.training.rlhf import program, rewards
from gptjax.training.rlhf.step import RlhfStep
from tests import tiny

Q = 8  # tokens of a prompt


def config(**mesh):
    """A policy of a layer with separate value function, running mean and text."""
    task = ["task.prompt_tokens=8", "task.answer_tokens=4", "task.batch_rows=16"]
    task += ["task.minibatches=2", "task.episodes=64", "task.ptx=Ptx(rows_per_answer=2)"]
    task += ["microbatch_rows=4"]
    recipe = overrides.override(registry.rlhf_recipe("instructgpt_ppo_ptx"), *task)
    changes = {"mesh": mesh, "compute": {"dtype": "bfloat16"}}
    one_layer = {"n_layers": 1, "attention": (schema.Dense(),)}
    base = tiny.replace_parts(tiny.config(**one_layer), **changes)
    reward = tiny.config(**one_layer, d_model=8, n_heads=2)
    reward_config = tiny.replace_parts(reward, compute={"dtype": "bfloat16"})
    return rlhf.resolve_config(recipe, base), reward_config


class Reward:
    """A reward model with random parameters."""

    digest = ""

    def __init__(self, model, params, mesh):
        self.model, self.params = model, params
        self.scores = rewards.jit_scores(model, mesh)

    def __call__(self, rollout, lengths_B):
        return self.scores(self.params, rollout.tokens_BT, rollout.first_B + lengths_B - 1)


def run_iteration(c, reward_config, mesh, record):
    """An iteration of training on the devices that are here; record(name, arguments)."""
    reward_config = dataclasses.replace(reward_config, mesh=c.mesh)
    base = step.build(c, "cpu", mesh, 0)
    reward_model = reward.build(reward_config, "cpu", mesh, 0).model
    built = RlhfStep(base.config, base.model, base.tx, base.end_of_text, reward_model)
    table = rules.PRESETS[c.mesh.sharding].activations

    def put(rows, letters, n_rows=None):
        return rules.put_on_mesh(np.ascontiguousarray(rows), letters, table, mesh, n_rows)

    with jax.set_mesh(mesh):
        s = state.create(built.init_state, c, mesh)
        init = lambda: state.init_params(reward_model, 0)  # noqa: E731
        shardings = jax.tree.map(lambda x: x.sharding, state.abstract(init, reward_config, mesh))
        model = Reward(reward_model, jax.jit(init, out_shardings=shardings)(), mesh)
        # As RlhfObjective.make_program.
        reference = inference.cast_weights(s.params, base.model.execution_policy.dtype)
        model.params = inference.cast_weights(model.params, reward_model.execution_policy.dtype)
        context = SimpleNamespace(
            config=c, mesh=mesh, step=built, max_microbatch_rows=c.train.microbatch_rows,
            processes=SimpleNamespace(heartbeat=lambda line: None), warnings=set(), warn=print,
        )  # fmt: skip
        runs = program.RlhfProgram(context, put, reference, model, 0)
        for owner, name in [(model, "scores"), *((runs._fns, name) for name in vars(runs._fns))]:
            if callable(fn := getattr(owner, name)):
                setattr(owner, name, lambda *a, fn=fn, name=name: record(name, a) or fn(*a))
        draw = np.random.default_rng(0)
        width = 1 + Q + 2 * (c.model.n_ctx + 1)
        rows = draw.integers(1, 60, (4, 4, width)).astype(np.int32)
        rows[..., 0] = draw.integers(1, Q + 1, (4, 4))
        batch = {"tokens": rows, "count": 4, "rows": 4}
        progress = SimpleNamespace(update_fraction=lambda *given: None)
        with jax.numpy_dtype_promotion("standard"):
            return runs.step(s, [batch], SimpleNamespace(may_stop_mid_step=False), progress)


TRAINING_NAMES = {
    "sample": "sample",
    "log p": "log_probs",
    "values": "details",
    "reward": "scores",
    "gradients": "add_answers",
    "gradients of text": "add_text",
    "optimizer": "update",
}


def test_what_is_compiled_has_the_arguments_that_training_gives(monkeypatch):
    """Shapes, dtypes and shardings of every argument, and how often each runs."""
    c, reward_config = config(fsdp=2, tensor=2, sharding="fsdp_tensor")
    devices = tiny.MAKE_MESH(c.mesh, jax.devices()[:4])
    ran: dict[str, list] = {}

    def record(name, given):
        described = jax.tree.map(
            lambda x: (
                jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=x.sharding)
                if isinstance(x, jax.Array)
                else x
            ),
            given,
        )
        ran.setdefault(name, []).append(described)

    run_iteration(c, reward_config, devices, record)
    compiled: dict[str, tuple] = {}
    add = rlhf._Compiler.add

    def note(self, phase, name, times, fn, args, **given):
        compiled[TRAINING_NAMES[name]] = (times, args)
        return add(self, phase, name, times, fn, args, **given)

    monkeypatch.setattr(rlhf._Compiler, "add", note)
    target = SimpleNamespace(
        platform="cpu", chip=chips.CHIPS["v5p"], devices=lambda: jax.devices()[:4], n_devices=4
    )
    rlhf.compile_iteration(c, reward_config, target, lambda line: None)
    assert set(compiled) == set(TRAINING_NAMES.values())
    for name, (times, args) in compiled.items():
        assert len(ran[name]) == times, name
        for given in ran[name][:: max(1, times - 1)]:
            assert_same_arguments(name, args, given)


def assert_same_arguments(name, ours, theirs):
    def compare(path, x, y):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if not isinstance(x, jax.ShapeDtypeStruct):
            assert x == y, where
            return
        assert x.shape == np.shape(y) and x.dtype == getattr(y, "dtype", np.int32), where
        if x.ndim:  # a number has the same bytes anywhere
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim), (where, x.sharding, y.sharding)

    jax.tree_util.tree_map_with_path(compare, ours, theirs)


# --- compiled for chips that are not here ---------------------------------------------------------


@pytest.fixture(scope="module")
def planned():
    """(what the program printed as JSON, what was compiled, its exit status)."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which requirements-dev.txt installs")
    kept, printed = [], []
    with pytest.MonkeyPatch.context() as patch:
        compile_iteration = rlhf.compile_iteration

        def keep(*given):
            kept.append(compile_iteration(*given))
            return kept[0]

        patch.setattr(rlhf, "compile_iteration", keep)
        patch.setattr("builtins.print", lambda *given, **_: printed.append(given[0]))
        sets = ["task.prompt_tokens=128", "task.answer_tokens=128", "task.batch_rows=64"]
        sets += ["model.n_ctx=256", "model.n_layers=1", "microbatch_rows=8"]
        flags = ["--config=smoke", "--rlhf=instructgpt_ppo_ptx", "--topology=v5p-8", "--json"]
        status = plan.main([*flags, *(part for text in sets for part in ("--set", text))])
    return json.loads(printed[-1]), kept[0], status


def test_the_functions_of_an_iteration_are_those_of_its_phases(planned):
    """64 answers in chunks of 8, eight updates, each of 64 rows of text in chunks of 8."""
    found, compiled, status = planned
    assert status == 0 and found["fits"] and found["chips"] == 4
    assert [(fn.phase, fn.name, fn.times) for fn in compiled.functions] == [
        ("rollout", "sample", 8),
        ("score", "log p", 16),
        ("score", "values", 8),
        ("score", "reward", 8),
        ("update", "gradients", 8),
        ("update", "gradients of text", 64),
        ("update", "optimizer", 8),
    ]
    forward = 256 * count.forward_flops_per_token(compiled.config.model)
    sample, log_p, *_, text, _ = compiled.functions
    assert sample.flops == log_p.flops == 8 * forward / 4 and text.flops == 3 * 8 * forward / 4


def test_what_stays_is_counted_whatever_runs(planned):
    found, compiled, _ = planned
    n = count.padded_parameters(compiled.config.model)
    stays = found["resident"]
    # A quarter of each, and the padding of arrays as small as these.
    for name, width in {"policy": 4, "policy_optimizer": 8, "ema": 4, "reference": 2}.items():
        assert n * width / 4 <= stays[name] < 3 * n * width / 4, name
    assert stays["policy"] == stays["ema"] > stays["reference"]
    assert stays["policy_optimizer"] == pytest.approx(2 * stays["policy"], rel=0.05)
    # A head besides.
    assert stays["value"] > stays["policy"] and stays["reward"] > stays["reference"]
    assert stays["value_optimizer"] > stays["policy_optimizer"]
    assert stays["programs"] == sum(fn.code_bytes for fn in compiled.functions) > 0
    for phase, part in found["programs"].items():
        own = [fn for fn in compiled.functions if fn.phase == phase]
        new = max(fn.besides_bytes + fn.new_bytes for fn in own)
        assert part["peak_bytes"] == sum(stays.values()) + new
    # Gradients and the copy of the policy are nobody's state.
    update = {fn.name: fn for fn in compiled.functions if fn.phase == "update"}
    assert update["optimizer"].besides_bytes >= stays["policy"] + stays["value"]
    log_p = compiled.functions[1]
    assert log_p.besides_bytes > stays["reference"]
    limit = compiled.target.chip.hbm_bytes
    full = dataclasses.replace(compiled, resident=compiled.resident | {"reward": limit})
    verdict = {"policy": "smoke"} | rlhf_cost.summarize(full)
    assert not verdict["fits"] and verdict["over_bytes"] == verdict["peak_bytes"] - limit
    text = rlhf_cost.render(verdict)
    assert "DOES NOT FIT: the update is" in text and max(map(len, text.splitlines())) <= 80


def test_a_decode_step_reads_copy_and_cache_and_runs_for_every_token(planned):
    found, compiled, _ = planned
    model, sample = compiled.config.model, found["programs"]["rollout"]["functions"][0]
    # bfloat16 of two rows of 256 slots on each chip; banded layers keep their band.
    assert found["kv_cache_bytes"] >= 2 * count.kv_cache_bytes(model, 256, "bfloat16")
    assert found["sampler_bytes"] >= 2 * count.padded_parameters(model)
    decode = found["decode"]
    assert decode["steps"] == 127
    read = (found["kv_cache_bytes"] + found["sampler_bytes"]) / 2765e9
    assert decode["read_seconds"] == pytest.approx(read) and decode["step_seconds"] >= read
    assert sample["seconds"] > 127 * decode["step_seconds"]
    whole = sum(part["seconds"] for part in found["programs"].values())
    assert found["iteration_seconds"] == pytest.approx(whole)
    assert found["answer_tokens_per_second"] == pytest.approx(64 * 128 / whole)
    slow = dataclasses.replace(compiled, sampler_bytes=2765 * 10**9)
    assert rlhf_cost.summarize(slow)["decode"]["step_seconds"] >= 1


def test_the_table_has_80_columns(planned):
    found, _, _ = planned
    text = rlhf_cost.render(found)
    assert max(map(len, text.splitlines())) <= 80 and "  KV cache of 8 answers" in text
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_too_few_chips_and_other_modes_are_one_line(capsys):
    rlhf_flags = ["--config=gpt3_175b", "--rlhf=instructgpt_ppo_ptx", "--reward=gpt3_6b7"]
    with pytest.raises(ValueError, match="--search and --grid are of the training step"):
        plan.main([*rlhf_flags, "--topology=v5p-8", "--search"])
    with pytest.raises(ValueError, match="task.minibatches=7 does not divide"):
        plan.main([*rlhf_flags, "--set", "task.minibatches=7"])
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu, which requirements-dev.txt installs")
    assert plan.main([*rlhf_flags, "--topology=v5p-32"]) == 1
    assert "over the memory of each chip of v5p:2x2x4: give more chips" in capsys.readouterr().err
