"""The GPT: embeddings, a stack of layers grouped into periods of the attention pattern, and tied
output logits.
"""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.model import embedding, layers, linear
from gptjax.model.attention import dispatch, scores
from gptjax.model.module import Module
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
    kv_cache_dtype: Any = None  # of a KV cache; None: dtype
    prefill_chunk: int | None = None  # tokens of a prompt that are read at a time; None: all


def execution_policy(compute: schema.Compute, platform: str) -> ExecutionPolicy:
    """Resolves each "auto" in `compute` for `platform` ("cpu", "gpu" or "tpu").

    On most CPUs XLA is slow in bfloat16 (sharding/xla_options.py), and on all in loop bodies, so
    "auto" is float32 and unrolled layers there. Layers with rematerialization are scanned even on
    CPU, since the CPU compiler of jax 0.10.2 undoes the rematerialization of unrolled ones.

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
    kv_cache_dtype = {"auto": None, "bfloat16": jnp.bfloat16, "int8": jnp.int8}
    return ExecutionPolicy(
        dtype,
        saved_names,
        kernel,
        unroll,
        kv_cache_dtype[compute.kv_cache_dtype],
        compute.prefill_chunk,
    )


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


class Period(Module):
    """One period of the attention pattern, for GPT-3 a banded and a dense layer: the body that is
    scanned over depth; or the first n_layers layers of one.
    """

    config: schema.Model
    execution_policy: ExecutionPolicy
    sharding: rules.Sharding
    n_layers: int

    @nn.compact
    def __call__(self, x_BTD, segments_BT, train, positions_BT=None):
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
        for i in range(self.n_layers):
            x_BTD = block(
                self.config, i, self.execution_policy.kernel, self.sharding, name=f"block_{i}"
            )(x_BTD, segments_BT, train, positions_BT)
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


class GPT(Module):
    """The GPT trunk: tokens (B, T) -> final hidden states (B, T, D). `logits` computes the output
    distribution from them.

    Parameters: token_VD (V padded to a multiple of 128), output_VD if the output is not tied to it,
    position_TD if positions are learned, periods (each leaf stacked over periods, whether scanned
    or unrolled, so that a checkpoint serves both), remainder (the layers after the last whole
    period, if there are any) and, unless norms are post, the final norm.
    """

    config: schema.Model
    execution_policy: ExecutionPolicy
    sharding: rules.Sharding = rules.UNSHARDED

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        train: bool = False,
        positions_BT: jax.Array | None = None,
    ) -> jax.Array:
        """segments_BT: document ids that attention does not cross; None for no such limit. train:
        apply dropout, drawn from the rng "dropout". positions_BT: the position of each token in its
        text; None: 0 to T - 1.
        """
        c = self.config
        T = tokens_BT.shape[1]
        if T > c.n_ctx:
            raise ValueError(
                f"{T} tokens are more than the model's context of {c.n_ctx}: give at most {c.n_ctx}"
            )
        tables = {
            "token_VD": self.param(
                "token_VD", nn.initializers.normal(c.init.token), (c.n_vocab_padded, c.d_model)
            )
        }
        if has_learned_positions(c):
            tables["position_TD"] = self.param(
                "position_TD", nn.initializers.normal(c.init.position), (c.n_ctx, c.d_model)
            )
        if not c.tied_output:  # read by `output_table`
            self.param(
                "output_VD", nn.initializers.normal(c.init.weight), (c.n_vocab_padded, c.d_model)
            )
        x_BTD = embed(
            c, tables, tokens_BT, positions_BT, self.execution_policy.dtype, self.sharding
        )
        # The released GPT-1 code drops elements of the embedding table itself; activations are
        # dropped here, as GPT-2's OpenAI copy does.
        x_BTD = layers.dropout(self, self.sharding(x_BTD, "BPD"), c.dropout.embedding, train)
        x_BTD = self._apply_layers(x_BTD, segments_BT, train, positions_BT)
        if c.norm != "post":
            x_BTD = layers.norm(c, "norm")(x_BTD)
        return x_BTD if c.logits_scale == 1 else x_BTD * jnp.asarray(c.logits_scale, x_BTD.dtype)

    def _apply_layers(self, x_BTD, segments_BT, train, positions_BT):
        c = self.config
        has_dropout = train and c.dropout != schema.Dropout()
        n_parts = c.n_periods + (c.n_remainder > 0)
        keys = jax.random.split(self.make_rng("dropout"), n_parts) if has_dropout else None

        def apply(module, x_BTD, params, key):
            rngs = None if key is None else {"dropout": key}
            variables, inputs = {"params": params}, (x_BTD, segments_BT, train, positions_BT)
            return cast(Any, module.apply(variables, *inputs, rngs=rngs, mutable="router"))

        routers = []  # what the routers of experts have sown

        if c.n_periods:
            period = self._period(len(c.attention))
            stacked_params = self.param("periods", lambda key: _init_periods(period, key))
            n_stacked = jax.tree.leaves(stacked_params)[0].shape[0]
            assert n_stacked == c.n_periods, f"parameters of {n_stacked} periods, not {c.n_periods}"
            if self.execution_policy.unroll:
                for i, params in enumerate(unstack_layers(stacked_params)):
                    key = None if keys is None else keys[i]
                    x_BTD, router = apply(period, x_BTD, params, key)
                    routers.append(router)
            else:
                period_keys = None if keys is None else keys[: c.n_periods]
                x_BTD, router = jax.lax.scan(
                    lambda x, pk: apply(period, x, *pk), x_BTD, (stacked_params, period_keys)
                )
                routers.append(router)
        if c.n_remainder:
            remainder = self._period(c.n_remainder)
            params = self.param("remainder", lambda key: _init_period(remainder, key))
            x_BTD, router = apply(remainder, x_BTD, params, None if keys is None else keys[-1])
            routers.append(router)
        if not self.is_initializing():
            self.sow("router", "layers", routers)
        return x_BTD

    def _period(self, n_layers: int) -> Period:
        return Period(self.config, self.execution_policy, self.sharding, n_layers, parent=None)


def has_learned_positions(config: schema.Model) -> bool:
    """Whether a model adds a learned vector for each position to its embeddings."""
    return config.positions == (schema.Learned(),)


def embed(
    c: schema.Model,
    params: Any,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None,
    dtype: Any,
    sharding: rules.Sharding = rules.UNSHARDED,
) -> jax.Array:
    """Returns the embeddings (B, T, D): token_VD, scaled, plus position_TD if positions are
    learned. positions_BT None: 0 to T - 1."""
    x_BTD = embedding.embed(params["token_VD"], tokens_BT, dtype, sharding)
    if c.embedding_scale != 1:
        x_BTD = x_BTD * jnp.asarray(c.embedding_scale, dtype)
    if not has_learned_positions(c):
        return x_BTD
    if positions_BT is None:
        return x_BTD + params["position_TD"][None, : tokens_BT.shape[1]].astype(dtype)
    return x_BTD + jnp.take(params["position_TD"], positions_BT, axis=0, mode="clip").astype(dtype)


def output_table(params: Any) -> jax.Array:
    """The table (V, D) of the output logits: that of the tokens, or one of its own."""
    return params["output_VD"] if "output_VD" in params else params["token_VD"]


def layer_params(config: schema.Model, params: Any, layer: int) -> Any:
    """The parameters of layer number `layer` of the whole model. params: with a list of periods, as
    inference.prepare has them."""
    period, i = divmod(layer, len(config.attention))
    part = params["periods"][period] if period < config.n_periods else params["remainder"]
    return part[f"block_{i}"]


def _init_periods(period, key):
    """Initial parameters of all periods, stacked; each period is initialized from its own key."""
    keys = jax.random.split(key, period.config.n_periods)
    return jax.vmap(lambda key: _init_period(period, key))(keys)


def _init_period(period, key):
    period = period.clone(sharding=rules.UNSHARDED)  # one token is too few to place on a mesh
    x_BTD = jnp.zeros((1, 1, period.config.d_model))
    return period.init(key, x_BTD, None, False)["params"]


@shaped
def logits(
    x_BTD: jax.Array,
    token_VD: jax.Array,
    n_vocab: int,
    first: int | jax.Array = 0,
    softcap: float | None = None,
) -> jax.Array:
    """Returns float32 logits (B, T, V), without bias (GPT-1 eq. 2). token_VD: `output_table`.

    Columns of the vocabulary's padding are minus infinity. first: the token id of row 0 of
    token_VD, where that is a slice of the table.
    """
    y_BTV = linear.contract(x_BTD, token_VD.astype(x_BTD.dtype), [2], [1], jnp.float32)
    y_BTV = scores.cap(y_BTV, softcap)
    return jnp.where((first + jnp.arange(token_VD.shape[0]))[None, None] < n_vocab, y_BTV, -jnp.inf)


def segment_ids(tokens_BT: jax.Array, end_of_text: int) -> jax.Array:
    """Document ids int32 (B, T): the number of documents that ended earlier in the row. An
    end-of-text token belongs to the document that it ends.
    """
    ends_BT = (tokens_BT == end_of_text).astype(jnp.int32)
    return jnp.cumsum(ends_BT, axis=1) - ends_BT


def segment_positions(segments_BT: jax.Array) -> jax.Array:
    """Positions int32 (B, T) that begin at 0 in each document. segments_BT: `segment_ids`."""
    indices_1T = jnp.arange(segments_BT.shape[1])[None]
    is_first_BT = jnp.diff(segments_BT, axis=1, prepend=-1) != 0
    return indices_1T - jax.lax.cummax(jnp.where(is_first_BT, indices_1T, 0), axis=1)
