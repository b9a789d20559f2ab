"""The compiled functions of an iteration, for a mesh whose devices need not be present: training
calls them, and gptjax/aot/rlhf.py compiles them from shapes alone."""

import jax
import jax.numpy as jnp

from gptjax.config import rlhf
from gptjax.model import inference
from gptjax.sharding import xla_options
from gptjax.training.rlhf import rollout
from gptjax.training.rlhf.step import RlhfStep


class Functions:
    """The jitted functions of an iteration. chunk_rows: answers that are sampled, scored or learned
    at a time; text_chunk_rows: rows of text."""

    def __init__(
        self, step: RlhfStep, mesh: jax.sharding.Mesh, end_token: int | None, max_rows: int
    ):
        """end_token: id of the token that ends an answer, or None. max_rows: rows of n_ctx tokens
        whose activations fit."""
        task = step.task
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        limit = max_rows * step.config.model.n_ctx // task.row_tokens
        self.minibatch_rows = task.batch_rows // task.minibatches
        self.chunk_rows = chunk_rows(self.minibatch_rows, limit, shards)
        self.text_rows = 0 if task.ptx is None else self.minibatch_rows * task.ptx.rows_per_answer
        self.text_chunk_rows = chunk_rows(self.text_rows, max_rows, shards)
        options = xla_options.options(mesh.devices.flat[0])

        def jit(fn, **kwargs):
            return jax.jit(fn, compiler_options=options, **kwargs)

        stop = end_token if isinstance(task.ending, rlhf.StopToken) else None
        self.sample = jit(rollout.Sampler(task, step.model, stop))
        self.keys = jit(rollout.row_keys, static_argnums=(0, 3))
        self.cast = jit(lambda p: inference.cast_weights(p, step.model.execution_policy.dtype))
        self.log_probs = jit(step.states_and_log_probs)
        self.details = jit(step.details)
        self.lengths = jit(lambda r: rollout.scored_length(task.ending, r, end_token))
        self.advantages = jit(step.batch_advantages)
        self.zeros = jit(step.init_gradients)
        self.add_answers = jit(step.accumulate_answers, static_argnums=4, donate_argnums=1)
        self.add_text = jit(step.accumulate_text, static_argnums=3, donate_argnums=1)
        self.update = jit(step.update_nets, donate_argnums=0)
        self.finish = jit(step.finish, donate_argnums=0)
        self.nll = jit(step.nll)

        # Rows are pinned, so that each device has its own, as what is compiled from shapes assumes.
        def minibatch(*given):
            part, statistics = step.minibatch(*given)
            return step.shard_rows(part), statistics

        def take(tree, first, n):
            part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, n), tree)
            return step.shard_rows(part)

        def join(*parts):
            return step.shard_rows(jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts))

        self.minibatch, self.join = jit(minibatch), jit(join)
        self.take = jit(take, static_argnums=2)


def chunk_rows(n_rows: int, limit: int, shards: int) -> int:
    """Returns the largest number of rows that divides n_rows, that `shards` devices share evenly,
    and that is at most `limit`; or else the least that they share. ValueError if there is none."""
    if n_rows % shards:
        raise ValueError(
            f"a minibatch of {n_rows} rows does not divide over {shards} devices: change "
            "task.minibatches, or the mesh"
        )
    sizes = [n for n in range(shards, n_rows + 1, shards) if n_rows % n == 0]
    return max((n for n in sizes if n <= limit), default=shards)
