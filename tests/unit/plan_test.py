"""gptjax.plan: every config, as text of at most 80 columns and as JSON; the paper's figures
stand only beside the paper's model."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptjax import plan
from gptjax.config import count, count_rlhf, rlhf
from gptjax.config.overrides import override
from gptjax.configs import registry
from gptjax.runtime import units

ROOT = Path(__file__).parents[2]
KEYS = {"params", "train_flops_per_token", "state_bytes", "tokens_per_step", "steps", "pf_days"}


def said(capsys, *argv):
    plan.main(list(argv))
    return capsys.readouterr().out


def test_json_has_the_promised_keys(capsys):
    found = json.loads(said(capsys, "--config=gpt3_small", "--json"))
    assert KEYS <= set(found)
    assert (
        found["params"] == 125_226_240
        and found["train_flops_per_token"] == 811_117_440
        and found["steps"] == 591_581
    )
    assert (
        found["tokens_per_step"] == 2**19
        and found["first_tokens_per_step"] == 2**15
        and found["pf_days"] == pytest.approx(2.816, abs=1e-3)
    )
    assert found["state_bytes"] == 12 * (125_226_240 + 47 * 768)
    assert [(k["kind"], k["layers"]) for k in found["flops_by_kind"]] == [
        ("Banded(window=256)", 6),
        ("Dense()", 6),
        ("output", None),
    ]
    assert sum(k["forward"] for k in found["flops_by_kind"]) == found["forward_flops_per_token"]


def test_the_plan_is_compared_with_the_paper(capsys):
    text = said(capsys, "--config=gpt3_175b")
    assert text.startswith(
        "gpt3_175b: 96 layers, 12,288 wide, 96 heads, context 2,048, vocabulary 50,257\n"
    )
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["parameters"][1:] == ["174,604,259,328", "paper", "174,600M"]
    assert text.splitlines()[-1].split()[-3:] == ["3,640", "paper", "3,640"]
    assert (
        "  48 x Banded(window=256) " in text
        and "1.91 TiB" in text
        and "from 32,768 over 12.0B" in text
    )


def test_every_config_fits_80_columns(capsys):
    listed = said(capsys)
    for name in registry.config_names():
        assert f"\n{name} " in listed
        text = said(capsys, f"--config={name}")
        assert max(map(len, text.splitlines())) <= 80 and not any(
            line != line.rstrip() for line in text.splitlines()
        )
    assert max(map(len, listed.splitlines())) <= 80
    assert len(json.loads(said(capsys, "--json"))) == len(registry.config_names())


def test_the_papers_figures_go_when_the_model_does():
    config = registry.config("gpt3_small")
    assert (
        plan.plan_config(config)["params_paper"] == "125M"
        and plan.plan_config(config)["pf_days_paper"] == 2.6
    )
    shorter = plan.plan_config(override(config, "train.steps=10"))
    assert (shorter["params_paper"], shorter["pf_days_paper"]) == ("125M", None)
    assert shorter["steps"] == 10 and shorter["tokens"] == 10 * 2**15
    assert shorter["pf_days"] == pytest.approx(
        plan.plan_config(config)["pf_days"] * 10 * 2**15 / 300e9
    )
    for change in ("model.n_layers=14", "name=mine"):
        other = plan.plan_config(override(config, change))
        assert (other["params_paper"], other["pf_days_paper"]) == (None, None)


def test_overrides_without_a_config_are_refused():
    with pytest.raises(ValueError, match="--config=NAME"):
        plan.main(["--set=train.steps=3"])


@pytest.mark.parametrize(
    "number,text",
    [
        (0, "0"),
        (2.604, "2.60"),
        (999.6, "1.00k"),
        (811_117_440, "811M"),
        (1.0563e12, "1.06T"),
        (12e9, "12.0B"),
        (2.5e-11, "2.5e-11"),
    ],
)
def test_numbers_have_three_digits(number, text):
    assert units.si(number) == text


def test_it_takes_under_two_seconds_and_no_jax():
    code = (
        "import sys; from gptjax import plan; plan.main(['--config=175b']); print('jax' in "
        "sys.modules, 'numpy' in sys.modules)"
    )
    start = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert time.perf_counter() - start < 2
    assert found.stdout.endswith("False False\n"), found.stderr


def test_a_wrong_name_is_one_line():
    found = subprocess.run(
        [sys.executable, "-m", "gptjax.plan", "--config=gpt3_smal"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 2 and found.stdout == ""
    assert (
        found.stderr.startswith("error: no config is called 'gpt3_smal'; did you mean gpt3_small")
        and found.stderr.count("\n") == 1
    )


# --- with --topology ------------------------------------------------------------------------------

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu: pip install -r requirements-dev.txt",
)


@needs_libtpu
def test_a_step_is_compiled_for_chips_that_are_not_here(capsys):
    """smoke's batch of 8 rows on four chips; and three meshes, of which two do not fit them."""
    assert (
        plan.main(["--config=smoke", "--topology=v5p-8", "--grid", "mesh.fsdp=3|6|4", "--json"])
        == 0
    )
    said = capsys.readouterr()
    assert "3 of 3: mesh.fsdp=4" in said.err
    three, six, found = json.loads(said.out).values()
    assert "needs 3 devices, but there are 4" in three and "needs 6 devices, but there are 4" in six
    assert found["fits"] and found["chips"] == 4 and found["mesh"] == {"fsdp": 4}
    assert (
        found["floor_seconds"]
        < found["compute_seconds"] + found["kernel_seconds"]
        <= found["step_seconds"]
    )
    assert plan.main(["--config=smoke", "--topology=v5p-8", "--grid", "mesh.fsdp=3"]) == 1, (
        "nothing that fits"
    )
    assert "mesh.fsdp=3  mesh data 1 x fsdp 3" in capsys.readouterr().out


def test_too_few_chips(capsys):
    assert plan.main(["--config=gpt3_175b", "--topology=v5p-8"]) == 1
    assert "the smallest v5p that should do: v5p-" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config=smoke", "--topology=v5p-9"], "there is no such v5p; nearest: v5p-8"),
        (
            ["--config=smoke", "--search"],
            "--search and --grid compile for chips: say which with --topology=NAME",
        ),
        (
            ["--config=smoke", "--grid=mesh.fsdp=1|2"],
            "--search and --grid compile for chips: say which with --topology=NAME",
        ),
        (["--config=smoke", "--grid=mesh.fsdp"], "--grid mesh.fsdp: give a path and its values"),
        (["--topology=v5p-8"], "say which config"),
    ],
)
def test_unknown_topologies_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan.main(arguments)


def test_more_steps_than_the_length_gives_are_refused():
    with pytest.raises(
        ValueError,
        match=(
            "train.steps=3,000 is more than the 2,000 steps that train.total_tokens=1,536,000 "
            "gives; raise train"
        ),
    ):
        plan.main(["--config=shakespeare_char", "--set", "train.steps=3000"])


def test_an_iteration_of_rlhf_is_counted_from_its_parts(capsys):
    """175B with reward model and value function of 6.7B, as InstructGPT."""
    arguments = ["--config=gpt3_175b", "--rlhf=instructgpt_ppo_ptx", "--reward=gpt3_6b7", "--json"]
    plan.main(arguments)
    p = json.loads(capsys.readouterr().out)
    policy, reward = registry.config("gpt3_175b"), registry.config("gpt3_6b7")
    n, n_reward = (count.padded_parameters(c.model) for c in (policy, reward))
    tokens = 512 * 2048
    forward, small = (count.forward_flops_per_token(c.model) for c in (policy, reward))
    assert p["policy_state_bytes"] == 12 * n and p["ema_bytes"] == 4 * n
    assert p["value_state_bytes"] == 12 * n_reward and p["reward_bytes"] == 2 * n_reward
    assert p["gradient_bytes"] == 4 * (n + n_reward)
    assert p["sampler_bytes"] == p["reference_bytes"] == 2 * n
    # Half of the layers keep 256 of up to 2,048 keys, 12,288 wide, of 2 bytes, with their values.
    assert p["kv_cache_bytes_per_row"] == 48 * (2048 + 256) * 2 * 12288 * 2
    assert p["rollout_flops"] == tokens * forward
    assert p["score_flops"] == tokens * (2 * forward + 2 * small)
    assert p["ptx_tokens"] == 8 * tokens
    assert p["update_flops"] == 3 * (9 * tokens * forward + tokens * small)
    plan.main(arguments[:-1])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "KV cache of 512 answers" in shown
    # Answers attend over 2,048 tokens in a longer context, text over all of it.
    longer = dataclasses.replace(policy, model=dataclasses.replace(policy.model, n_ctx=8192))
    found = count_rlhf.programs(longer, registry.rlhf_recipe("instructgpt_ppo_ptx").task, reward)
    assert found["rollout_flops"] == p["rollout_flops"]
    text = 8 * 512 * 8192 * count.forward_flops_per_token(longer.model)
    assert found["update_flops"] == 3 * (tokens * forward + tokens * small + text)
    # The value function of a Python function is as large as the policy.
    task = dataclasses.replace(
        registry.rlhf_recipe("instructgpt_ppo").task, reward=rlhf.PythonFunction(name="r.py:f")
    )
    found = count_rlhf.programs(policy, task, reward)
    assert found["value_state_bytes"] == 12 * n and found["reward_bytes"] == 0
    grouped = count_rlhf.programs(policy, registry.rlhf_recipe("grpo").task, reward)
    assert grouped["value_parameters"] == grouped["value_state_bytes"] == 0
    with pytest.raises(ValueError, match="gpt2_124m a context of 1,024: choose a model"):
        plan.main(["--config=gpt2_124m", "--rlhf=instructgpt_ppo"])
    with pytest.raises(ValueError, match="--reward is of --rlhf=RECIPE"):
        plan.main(["--config=gpt2_124m", "--reward=gpt3_6b7"])
