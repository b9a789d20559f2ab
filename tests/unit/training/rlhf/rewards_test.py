"""A reward model scores the same with weights in the dtype in which it reads them."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.sharding import trees
from gptjax.training import reward
from gptjax.training.rlhf import rewards
from tests import tiny


def test_a_reward_model_in_bfloat16_keeps_its_scores_and_half_of_its_memory():
    c = tiny.replace_parts(tiny.config(n_layers=2), compute={"dtype": "bfloat16"})
    mesh = tiny.MAKE_MESH(c.mesh, jax.devices()[:1])
    step = reward.build(c, "cpu", mesh, None)
    tokens_BT = jnp.asarray(tiny.random_tokens(c, 3)[:, :-1])
    with jax.set_mesh(mesh):
        params = step.model.init(jax.random.key(0), tokens_BT)["params"]
        source = types.SimpleNamespace(
            description=str, digest="", model=step.model, params=params, mesh=mesh
        )
        model = rewards.ModelReward(source)
        rollout = types.SimpleNamespace(tokens_BT=tokens_BT, first_B=jnp.array([2, 4, 1]))
        lengths_B = jnp.array([3, 8, 1])
        with jax.transfer_guard("disallow"):  # as in the training loop
            before = model(rollout, lengths_B)
        model.cast_weights()
        np.testing.assert_array_equal(model(rollout, lengths_B), before)
    assert len(set(before.tolist())) == 3
    sizes = [sum(x.nbytes for _, x in trees.named_leaves(p)) for p in (params, model.params)]
    assert sizes[1] < 0.6 * sizes[0]
