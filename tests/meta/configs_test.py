"""Every registered config and every point of a sweep builds, from the schedule of its batches to
the shapes of the model; the 175B one included."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from gptjax import plan
from gptjax.config import count
from gptjax.config.batch_schedule import BatchSchedule
from gptjax.config.overrides import flatten, unflatten
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.model import gpt
from tests import shape_tree
from tests.outcomes import expand

every_config = pytest.mark.parametrize(
    "config",
    [registry.config(name) for name in registry.config_names()],
    ids=registry.config_names(),
)


@every_config
def test_it_survives_its_json(config: Config):
    assert unflatten(json.loads(json.dumps(flatten(config)))) == config


@every_config
def test_it_is_planned(config: Config):
    found = json.loads(json.dumps(plan.plan_config(config)))
    assert found["params"] > 0 and found["steps"] > 0 and all(v != "" for v in found.values())


@every_config
@pytest.mark.parametrize("shards", [1, 4])
def test_its_batches_cover_its_tokens(config: Config, shards):
    shards = min(shards, config.batch_rows)  # micro's two rows are for a core, or a device or two
    batches = BatchSchedule(config, shards)
    last = batches.n_steps - 1
    assert batches.tokens(last) < config.train.total_tokens <= batches.tokens(last + 1)
    assert batches.rows(last) == batches.max_rows == config.batch_rows
    limit = count.microbatch_rows(config, 16 * 2**30, shards)
    for step in range(0, last, max(1, last // 50)):
        rows = batches.microbatch(step, limit)
        assert rows <= max(limit, shards) and rows % shards == 0 and batches.rows(step) % rows == 0


@every_config
def test_its_model_has_the_parameters_that_are_counted_and_a_forward_pass(config: Config):
    net = gpt.GPT(config.model, gpt.execution_policy(config.compute, "tpu"))
    T = min(config.model.n_ctx, 8192)  # the masks of longer ones take seconds
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    hidden, params = jax.eval_shape(
        lambda: net.init_with_output(keys, jnp.zeros((1, T), jnp.int32), None, True)
    )
    assert hidden.shape == (1, T, config.model.d_model) and hidden.dtype == jnp.bfloat16
    leaves = shape_tree.leaves(params)
    assert leaves == shape_tree.expected_leaves(config.model)
    assert sum(map(math.prod, leaves.values())) == count.padded_parameters(config.model)


@pytest.mark.parametrize("name", registry.sweep_names())
def test_every_point_of_a_sweep_builds(name):
    points = expand(registry.sweep(name))
    assert [point.error for point in points if point.config is None] == []
    if name.endswith(("_64m", "_125m", "_flops")):
        return  # the models of the sweep without it, larger or trained for longer
    for model in {point.config.model for point in points if point.config is not None}:
        net = gpt.GPT(model, gpt.execution_policy(registry.config("smoke").compute, "tpu"))
        shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        assert shape_tree.leaves(shapes) == shape_tree.expected_leaves(model)


def test_patterns_are_compared_at_equal_flops_and_at_equal_steps():
    for name, unlike in (("sparse_patterns_flops", "flops"), ("sparse_patterns", "tokens")):
        configs = [point.config for point in expand(registry.sweep(name))]
        tokens = {config.train.total_tokens for config in configs}
        assert (len(tokens) > 1) == (unlike == "flops") and len(
            {config.model.attention for config in configs}
        ) == 4
        if unlike == "flops":
            costs = [
                count.train_flops_per_token(config.model) * config.train.total_tokens
                for config in configs
            ]
            assert max(costs) / min(costs) < 1.002  # a batch is a thousandth of a run
            assert all(
                config.train.schedule.decay_tokens == config.train.total_tokens
                for config in configs
            )


def test_what_sizes_predicts_is_larger_than_what_it_is_told_from():
    points = expand(registry.sweep("sizes"))
    told, predicted = (
        [count.parameters(p.config.model) for p in points if p.holdout == check]
        for check in (False, True)
    )
    assert len(set(told)) == 5 and len(predicted) == 1 and predicted[0] > 1.5 * max(told)
