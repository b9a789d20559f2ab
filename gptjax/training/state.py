"""The train state: parameters, optimizer state and counters, initialized in shards."""

from collections.abc import Callable
from typing import Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gptjax.config import schema
from gptjax.model import gpt
from gptjax.sharding import rules


class TrainState(flax.struct.PyTreeNode):
    """Everything that training carries from step to step. step and rows: numbers of steps taken and
    of rows of n_ctx tokens read, skipped steps included, so rows is also the position in the data.

    noise_g2, noise_tr: running means of |G|^2 and tr(Sigma) for the gradient noise scale. skipped,
    skipped_in_row: non-finite updates in total, and since the last finite one."""

    step: jax.Array
    rows: jax.Array
    params: Any
    opt_state: Any
    noise_g2: jax.Array
    noise_tr: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


State = TypeVar("State", bound=TrainState)


def init_state(
    config: schema.Config, model: gpt.GPT, tx: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first step; the parameters are drawn from config.seed. Pure:
    call it in jit with out_shardings, or in eval_shape."""
    params = init_params(model, config.seed)
    # Distinct arrays: the step donates them, and one buffer cannot be donated twice.
    counts = {k: jnp.zeros((), jnp.int32) for k in ("step", "rows", "skipped", "skipped_in_row")}
    noise = {k: jnp.zeros((), jnp.float32) for k in ("noise_g2", "noise_tr")}
    return TrainState(params=params, opt_state=tx.init(params), **counts, **noise)


def init_params(model: gpt.GPT, seed: int) -> Any:
    """Returns the parameters of a model, drawn from the seed."""
    # One token is enough for the shapes, and too few to place on a mesh.
    tokens_BT = jnp.zeros((1, 1), jnp.int32)
    return model.clone(sharding=rules.UNSHARDED).init(jax.random.key(seed), tokens_BT)["params"]


def abstract_state(
    config: schema.Config, model: gpt.GPT, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state as jax.ShapeDtypeStructs; nothing is
    allocated."""
    return abstract(lambda: init_state(config, model, tx), config, mesh)


def abstract(init: Callable[[], State], config: schema.Config, mesh: jax.sharding.Mesh) -> State:
    """`abstract_state` of the state that init() returns."""
    shapes = jax.eval_shape(init)
    shardings = rules.shardings(shapes, rules.for_config(config, mesh), mesh)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def init_sharded(
    config: schema.Config, model: gpt.GPT, tx: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> TrainState:
    """Returns the state before the first step, each leaf created on the devices that hold it."""

    return create(lambda: init_state(config, model, tx), config, mesh)


def create(init: Callable[[], State], config: schema.Config, mesh: jax.sharding.Mesh) -> State:
    """`init_sharded` of the state that init() returns, which jax traces once."""
    shardings = jax.tree.map(lambda x: x.sharding, abstract(init, config, mesh))
    return jax.jit(init, out_shardings=shardings)()
