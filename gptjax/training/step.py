"""The training step, a pure function (state, batch) -> (state, metrics). It has two halves,
accumulate and update, so that a host can also run microbatches one at a time."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gptjax.config import count, schema
from gptjax.model import experts, float8, gpt
from gptjax.model.attention import context_parallel, dispatch
from gptjax.sharding import rules
from gptjax.training import loss, optimizer, schedule, state
from gptjax.training.state import TrainState

NOISE_DECAY = 0.99  # of the running means behind the gradient noise scale


class LossParts(flax.struct.PyTreeNode):
    """What a microbatch adds to the loss of a step, which is the sum of `loss` over microbatches
    divided by the sum of `weight`, so that it is a mean over all tokens that count, however they
    are divided into microbatches.

    loss: in nats. weight: 1 if every token counts; else a share of the tokens, and loss then is the
    sum over those that count divided by the number of all. statistics: means that are reported
    with it, such as those of the routers of experts."""

    loss: jax.Array
    weight: jax.Array
    statistics: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


class GradientAccumulation(flax.struct.PyTreeNode):
    """Sums over microbatches: the fields of LossParts, their gradients, squared norms of these
    divided by the weight, and the number of microbatches."""

    gradients: Any
    parts: LossParts
    squared_norm: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """The training step of one config: model, optimizer and, if documents do not attend to each
    other, the id of the end-of-text token that separates them."""

    config: schema.Config
    model: gpt.GPT
    tx: optax.GradientTransformation
    end_of_text: int | None = None

    def nll(self, params, tokens_BT, weights_BT, dropout_key=None):
        """Returns the sum over tokens of weight * negative log-likelihood (nats). tokens_BT: rows
        of n_ctx + 1 ids, whose inputs are all but the last and whose targets all but the first;
        weights_BT: (B, n_ctx)."""
        return self._nll(params, tokens_BT, weights_BT, dropout_key)[0]

    def _nll(self, params, tokens_BT, weights_BT, dropout_key):
        """Returns (`nll`, the statistics of the routers of experts)."""
        segments_BT = positions_BT = None
        if self.config.data.separates_documents:
            assert self.end_of_text is not None  # build() refuses it
            segments_BT = gpt.segment_ids(tokens_BT[:, :-1], self.end_of_text)
            if self.config.data.document_attention == "restart":
                positions_BT = gpt.segment_positions(segments_BT)
        return self.segment_nll(
            params, tokens_BT, weights_BT, segments_BT, positions_BT, dropout_key
        )

    def segment_nll(
        self, params, tokens_BT, weights_BT, segments_BT, positions_BT, dropout_key
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """As `nll`, with the statistics of the routers of experts. segments_BT, positions_BT: of
        the n_ctx inputs of each row, as `hidden_states` takes them."""
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        x_BTD, router = self.hidden_states(
            params, inputs_BT, segments_BT, positions_BT, dropout_key
        )
        return self.weighted_nll(params, x_BTD, targets_BT, weights_BT), router

    def hidden_states(
        self, params, inputs_BT, segments_BT, positions_BT, dropout_key
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (the states of the last layer (B, T, D), the statistics of the routers of
        experts). segments_BT: ids of the texts of each row, which do not attend to each other, or
        None; positions_BT: the position of each input, or None (gpt.GPT)."""
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        x_BTD, router = float8.training_model(self.model, self.config.compute).apply(
            {"params": params},
            inputs_BT,
            segments_BT,
            train=dropout_key is not None,
            positions_BT=positions_BT,
            rngs=rngs,
            mutable="router",
        )
        return x_BTD, experts.mean_statistics(router)

    def weighted_nll(self, params, x_BTD, targets_BT, weights_BT) -> jax.Array:
        """Returns `nll` of states and their targets."""
        return loss.cross_entropy(
            x_BTD,
            gpt.output_table(params),
            targets_BT,
            weights_BT,
            self.config.model.n_vocab,
            self.model.sharding,
            self.config.model.logits_softcap,
        )

    def loss_fn(self, params, tokens_BT, dropout_key=None) -> tuple[jax.Array, LossParts]:
        """Returns (the loss of which the gradient is taken, the parts of the loss of a microbatch):
        the former is parts.loss, the mean cross-entropy, and what the routers add."""
        B, T = tokens_BT.shape[0], tokens_BT.shape[1] - 1
        weights_BT = jnp.full((B, T), 1 / (B * T), jnp.float32)
        mean_loss, router = self._nll(params, tokens_BT, weights_BT, dropout_key)
        total = mean_loss + experts.loss(self.config.model.mlp, router)
        return total, LossParts(mean_loss, jnp.float32(1), router)

    def abstract_state(self, mesh: jax.sharding.Mesh) -> TrainState:
        """Returns state.abstract_state of the state that this step takes."""
        return state.abstract_state(self.config, self.model, self.tx, mesh)

    def statistics_names(self) -> list[str]:
        """The names of the statistics of a microbatch's LossParts."""
        return experts.statistics_names(self.config.model.mlp)

    def init_accumulator(self, params) -> GradientAccumulation:
        """Returns the sums over zero microbatches."""
        zeros = self.model.sharding.shard_like_params(jax.tree.map(jnp.zeros_like, params))
        statistics = {name: jnp.float32(0) for name in self.statistics_names()}
        parts = LossParts(jnp.float32(0), jnp.float32(0), statistics)
        return GradientAccumulation(zeros, parts, jnp.float32(0), jnp.int32(0))

    def accumulate(
        self, params, step, accumulator: GradientAccumulation, tokens_BT
    ) -> GradientAccumulation:
        """Adds the gradients of one microbatch to the sums. Dropout masks are a function of (seed,
        step, index of the microbatch)."""
        key = jax.random.fold_in(
            jax.random.fold_in(jax.random.key(self.config.seed), step), accumulator.count
        )
        grad_fn = jax.value_and_grad(self.loss_fn, has_aux=True)
        (_, parts), gradients = grad_fn(params, tokens_BT, key)
        gradients = self.model.sharding.shard_like_params(gradients)
        squared_norm = optax.tree.norm(gradients, squared=True)
        return GradientAccumulation(
            jax.tree.map(jnp.add, accumulator.gradients, gradients),
            jax.tree.map(jnp.add, accumulator.parts, parts),
            accumulator.squared_norm + _divide(squared_norm, parts.weight),
            accumulator.count + 1,
        )

    def update(
        self, state: TrainState, accumulator: GradientAccumulation, microbatch_rows: int
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Applies the mean gradient; returns (state, metrics). If the loss or the gradient norm is
        not finite, parameters and optimizer moments are left unchanged and the step is counted as
        skipped."""
        n, c = accumulator.count.astype(jnp.float32), self.config
        weight = accumulator.parts.weight
        gradients = jax.tree.map(lambda g: g / weight, accumulator.gradients)
        mean_loss, norm = accumulator.parts.loss / weight, optax.tree.norm(gradients)
        rows = state.rows + accumulator.count * microbatch_rows
        lr = schedule.learning_rate(c.train.schedule, rows.astype(jnp.float32) * c.model.n_ctx)
        with jax.numpy_dtype_promotion(
            "standard"
        ):  # optax's bias correction mixes types, which the tests forbid elsewhere
            updates, opt_state = self.tx.update(gradients, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - lr * u, state.params, updates)
        is_finite = jnp.isfinite(mean_loss) & jnp.isfinite(norm)
        params, opt_state = jax.tree.map(
            functools.partial(jnp.where, is_finite),
            (params, opt_state),
            (state.params, state.opt_state),
        )
        g2, tr = noise_estimates(
            accumulator.squared_norm / weight,
            norm**2,
            n,
            microbatch_rows * c.model.n_ctx * (weight / n),
        )
        has_noise = is_finite & (accumulator.count > 1)
        new_state = TrainState(
            step=state.step + 1,
            rows=rows,
            params=params,
            opt_state=opt_state,
            noise_g2=jnp.where(
                has_noise, NOISE_DECAY * state.noise_g2 + (1 - NOISE_DECAY) * g2, state.noise_g2
            ),
            noise_tr=jnp.where(
                has_noise, NOISE_DECAY * state.noise_tr + (1 - NOISE_DECAY) * tr, state.noise_tr
            ),
            skipped=state.skipped + (~is_finite).astype(jnp.int32),
            skipped_in_row=jnp.where(is_finite, 0, state.skipped_in_row + 1),
        )
        metrics = {
            "loss": mean_loss,
            "lr": lr,
            "grad_norm": norm,
            "noise_scale": new_state.noise_tr / new_state.noise_g2,
        } | {name: total / n for name, total in accumulator.parts.statistics.items()}
        new_state = self.model.sharding.shard_like_params(
            new_state
        )  # as it came in, or the next step would compile again
        return new_state, metrics | {
            "rows": new_state.rows,
            "skipped": new_state.skipped,
            "skipped_in_row": new_state.skipped_in_row,
        }

    def __call__(
        self, state: TrainState, tokens_MBT, count
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes one step over the first `count` microbatches of tokens_MBT (M, B, n_ctx + 1). With
        a batch ramp `count` is a traced array, so that one program serves all batch sizes."""

        def add(i, accumulator):
            return self.accumulate(state.params, state.step, accumulator, tokens_MBT[i])

        M, B, _ = tokens_MBT.shape
        accumulator = self.init_accumulator(state.params)
        accumulator = (
            add(0, accumulator) if M == 1 else jax.lax.fori_loop(0, count, add, accumulator)
        )
        return self.update(state, accumulator, B)


def max_microbatch_rows(
    config: schema.Config,
    execution_policy: gpt.ExecutionPolicy,
    mesh: jax.sharding.Mesh,
    shards: int,
    budget: int,
) -> int:
    """Returns the number of rows of a microbatch, over all devices, whose activations take at most
    `budget` bytes on each device. Rows are split over `shards` devices; the other devices divide
    the activations of a row among themselves."""
    scores = dispatch.holds_scores(
        execution_policy.kernel,
        config.model,
        execution_policy.dtype,
        config.data.separates_documents,
    )
    dtype = "bfloat16" if execution_policy.dtype == jnp.bfloat16 else "float32"
    return count.microbatch_rows(
        config, max(0, budget) * (mesh.size // shards), shards, dtype, scores
    )


def _divide(value: jax.Array, weight: jax.Array) -> jax.Array:
    """value / weight; 0 where the weight is 0, as of a microbatch in which no token counts."""
    return jnp.where(weight > 0, value / jnp.where(weight > 0, weight, 1), 0)


def noise_estimates(small, big, n, tokens) -> tuple[jax.Array, jax.Array]:
    """Returns unbiased estimates of |G|^2 and tr(Sigma) (McCandlish et al., 1812.06162, Appendix
    A.1). tr(Sigma) / |G|^2 is the gradient noise scale B_simple, here in tokens. small: mean |G|^2
    of n microbatches of `tokens` tokens each, or of as many on average, if the mean is weighted by
    them; big: |G|^2 of their mean gradient. Not finite for n = 1."""
    b_small, b_big = tokens * 1.0, n * tokens
    g2 = (b_big * big - b_small * small) / (b_big - b_small)
    return g2, (small - big) / (1 / b_small - 1 / b_big)


def build(
    config: schema.Config, platform: str, mesh: jax.sharding.Mesh, end_of_text: int | None
) -> TrainStep:
    """Returns the training step of `config` on a mesh. platform: of the devices, which decides the
    attention kernels. ValueError if documents must not attend to each other and the tokenizer has
    no end-of-text token."""
    if config.data.separates_documents and end_of_text is None:
        raise ValueError(
            f"data.document_attention={config.data.document_attention} needs an end-of-text token, "
            f"which {config.data.tokenizer} lacks; set data.document_attention=attend"
        )
    execution_policy = gpt.execution_policy(config.compute, platform)
    exchange, _ = context_parallel.choose_exchange(
        config, mesh, jnp.dtype(execution_policy.dtype).itemsize
    )
    sharding = rules.Sharding(rules.for_config(config, mesh), mesh, exchange)
    model = gpt.GPT(config.model, execution_policy, sharding)
    return TrainStep(config, model, optimizer.adamw(config.train.optimizer), end_of_text)
