"""The GPT: embeddings, a stack of layers grouped into periods of the attention pattern, and tied
output logits.
"""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model import embedding, layers
from gptjax.model.attention import dispatch
from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped


@dataclasses.dataclass(frozen=True)
class ExecutionPolicy:
    """How the layers run, resolved for a platform: affects speed and memory, not the results."""

    dtype: Any
    # REMAT_NAMES of config/compute.py that are saved for the backward pass; None: all of them.
    saved_names: tuple[str, ...] | None
    kernel: str  # a key of model/attention/dispatch.KERNELS
    # A Python loop over periods (faster on CPU) instead of lax.scan (whose compile time does not
    # grow with depth).
    unroll: bool


def execution_policy(compute: schema.Compute, platform: str) -> ExecutionPolicy:
    """Resolves each "auto" in `compute` for `platform` ("cpu", "gpu" or "tpu").

    On CPU, XLA is slow in bfloat16 and in loop bodies, so "auto" is float32 and unrolled layers
    there. Layers with rematerialization are scanned even on CPU, since the CPU compiler of jax
    0.10.2 undoes the rematerialization of unrolled ones.

    Raises ValueError for a kernel that does not run on the platform.
    """
    on_cpu = platform == "cpu"
    dtype = {
        "auto": jnp.float32 if on_cpu else jnp.bfloat16,
        "float32": jnp.float32,
        "bfloat16": jnp.bfloat16,
    }[compute.dtype]
    kernel = dispatch.resolve_name(compute.attention_kernel, platform)
    saved_names = None if compute.remat == "none" else compute.saved_names
    unroll = on_cpu and saved_names is None
    if compute.scan_layers is not None:
        unroll = not compute.scan_layers
    return ExecutionPolicy(dtype, saved_names, kernel, unroll)


def remat_policy(names: tuple[str, ...]):
    """Returns the jax.checkpoint policy that saves the activations with these names.

    With "attention" among them it also saves the residuals of cuDNN's backward pass, which jax.nn
    does not name.
    """
    policy = jax.checkpoint_policies.save_only_these_names(*names)
    if "attention" not in names:
        return policy
    return jax.checkpoint_policies.save_from_both_policies(
        policy, lambda prim, *_, **__: prim.name.startswith("dot_product_attention_fwd")
    )


class Period(nn.Module):
    """One period of the attention pattern, for GPT-3 a banded and a dense layer: the body that is
    scanned over depth.
    """

    config: schema.Model
    execution_policy: ExecutionPolicy
    sharding: rules.Sharding

    @nn.compact
    def __call__(self, x_BTD, segments_BT, train):
        block = layers.Block
        if self.sharding.mesh is not None:
            # Pinned layer by layer, so that each layer's gradient is reduced into its shards within
            # the loop; and inside the remat, since otherwise the pinned parameters are outputs of
            # the loop, which libtpu copies whole in each iteration.
            block = nn.map_variables(block, "params", self.sharding.shard_like_params)
        if self.execution_policy.saved_names is not None:
            policy = remat_policy(self.execution_policy.saved_names)
            # Remat of each layer, not of the period: one remat over two layers recomputes more.
            # static_argnums counts self.
            block = nn.remat(
                block, policy=policy, prevent_cse=self.execution_policy.unroll, static_argnums=(3,)
            )
        for i, pattern in enumerate(self.config.attention):
            x_BTD = block(
                self.config, pattern, self.execution_policy.kernel, self.sharding, name=f"block_{i}"
            )(x_BTD, segments_BT, train)
        return x_BTD


@jax.custom_vjp
def unstack_layers(tree):
    """Splits a stacked tree along the first dimension of its leaves into a list of trees.

    Its gradient is a single stack; JAX's own would add n zero-padded copies.
    """
    n = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda x: x[i], tree) for i in range(n)]  # noqa: B023


unstack_layers.defvjp(
    lambda tree: (unstack_layers(tree), None),
    lambda _, parts: (jax.tree.map(lambda *xs: jnp.stack(xs), *parts),),
)


class GPT(nn.Module):
    """The GPT trunk: tokens (B, T) -> final hidden states (B, T, D). `logits` computes the output
    distribution from them.

    Parameters: token_VD (V padded to a multiple of 128), position_TD, periods (each leaf stacked
    over periods, whether scanned or unrolled, so that a checkpoint serves both) and, for pre-LN
    models, the final norm.
    """

    config: schema.Model
    execution_policy: ExecutionPolicy
    sharding: rules.Sharding = rules.UNSHARDED

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """segments_BT: document ids that attention does not cross; None for no such limit. train:
        apply dropout, drawn from the rng "dropout".
        """
        c, dtype = self.config, self.execution_policy.dtype
        T = tokens_BT.shape[1]
        if T > c.n_ctx:
            raise ValueError(
                f"{T} tokens are more than the model's context of {c.n_ctx}: give at most {c.n_ctx}"
            )
        token_VD = self.param(
            "token_VD", nn.initializers.normal(c.init.token), (c.n_vocab_padded, c.d_model)
        )
        position_TD = self.param(
            "position_TD", nn.initializers.normal(c.init.position), (c.n_ctx, c.d_model)
        )
        x_BTD = embedding.embed(token_VD, tokens_BT, dtype, self.sharding) + position_TD[
            None, :T
        ].astype(dtype)
        # The released GPT-1 code drops elements of the embedding table itself; activations are
        # dropped here, as GPT-2's OpenAI copy does.
        x_BTD = layers.dropout(self, self.sharding(x_BTD, "BPD"), c.dropout.embedding, train)

        period = Period(c, self.execution_policy, self.sharding, parent=None)
        stacked_params = self.param("periods", lambda key: _init_periods(period, key, c))
        has_dropout = train and c.dropout != schema.Dropout()
        keys = jax.random.split(self.make_rng("dropout"), c.n_periods) if has_dropout else None

        def apply(x_BTD, params, key):
            rngs = None if key is None else {"dropout": key}
            return cast(
                jax.Array, period.apply({"params": params}, x_BTD, segments_BT, train, rngs=rngs)
            )

        if self.execution_policy.unroll:
            for i, params in enumerate(unstack_layers(stacked_params)):
                x_BTD = apply(x_BTD, params, None if keys is None else keys[i])
        else:
            x_BTD, _ = jax.lax.scan(
                lambda x, pk: (apply(x, *pk), None), x_BTD, (stacked_params, keys)
            )
        return layers.LayerNorm(name="norm")(x_BTD) if c.norm == "pre" else x_BTD


def _init_periods(period, key, config):
    """Initial parameters of all periods, stacked; each period is initialized from its own key."""
    period = period.clone(sharding=rules.UNSHARDED)  # one token is too few to place on a mesh
    x_BTD = jnp.zeros((1, 1, config.d_model))
    return jax.vmap(lambda k: period.init(k, x_BTD, None, False)["params"])(
        jax.random.split(key, config.n_periods)
    )


@shaped
def logits(
    x_BTD: jax.Array, token_VD: jax.Array, n_vocab: int, first: int | jax.Array = 0
) -> jax.Array:
    """Returns float32 logits (B, T, V), tied to the token table and without bias (GPT-1 eq. 2).

    Columns of the vocabulary's padding are minus infinity. first: the token id of row 0 of
    token_VD, where that is a slice of the table.
    """
    y_BTV = jnp.einsum(
        "BTD,VD->BTV", x_BTD, token_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32
    )
    return jnp.where((first + jnp.arange(token_VD.shape[0]))[None, None] < n_vocab, y_BTV, -jnp.inf)


def segment_ids(tokens_BT: jax.Array, end_of_text: int) -> jax.Array:
    """Document ids int32 (B, T): the number of documents that ended earlier in the row. An
    end-of-text token belongs to the document that it ends.
    """
    ends_BT = (tokens_BT == end_of_text).astype(jnp.int32)
    return jnp.cumsum(ends_BT, axis=1) - ends_BT
