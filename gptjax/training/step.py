"""The training step: (state, batch) -> (state, metrics), pure. Made of two halves, so that a host may drive microbatches one by one."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gptjax.config import count, schema
from gptjax.model import gpt
from gptjax.model.attention import dispatch
from gptjax.sharding import rules
from gptjax.training import loss, optimizer, schedule, state

NOISE_DECAY = 0.99  # of the running means behind the gradient noise scale


class Sums(flax.struct.PyTreeNode):
    """What microbatches add up to: gradients of their mean losses, the losses, squared gradient norms, and how many there were."""

    gradients: Any
    loss: jax.Array
    squared_norm: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Step:
    """The step of one config: model, optimizer and, where documents are kept apart, the end-of-text id that separates them."""

    config: schema.Config
    model: gpt.GPT
    tx: optax.GradientTransformation
    end_of_text: int | None = None

    def nll(self, params, tokens_BT, weights_BT, dropout_key=None):
        """Sum over tokens of weight * negative log-likelihood (nats). tokens_BT: rows of n_ctx + 1, inputs and their next tokens;
        weights_BT: (B, n_ctx)."""
        inputs_BT, targets_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        segments_BT = None
        if self.config.data.across_documents == "mask":
            assert self.end_of_text is not None  # build() refuses it
            segments_BT = gpt.segments(inputs_BT, self.end_of_text)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        x_BTD = self.model.apply({"params": params}, inputs_BT, segments_BT, train=dropout_key is not None, rngs=rngs)
        return loss.cross_entropy(x_BTD, params["token_VD"], targets_BT, weights_BT, self.config.model.n_vocab, self.model.place)

    def mean(self, params, tokens_BT, dropout_key=None):
        """The loss of a microbatch, of which the step takes the gradient: nats a token."""
        B, T = tokens_BT.shape[0], tokens_BT.shape[1] - 1
        return self.nll(params, tokens_BT, jnp.full((B, T), 1 / (B * T), jnp.float32), dropout_key)

    def zero(self, params) -> Sums:
        """Sums over no microbatch."""
        zeros = self.model.place.stored(jax.tree.map(jnp.zeros_like, params))
        return Sums(zeros, jnp.float32(0), jnp.float32(0), jnp.int32(0))

    def accumulate(self, params, step, sums: Sums, tokens_BT) -> Sums:
        """Add one microbatch. Dropout masks come from (seed, step, number of the microbatch)."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.config.seed), step), sums.count)
        dropping = self.config.model.dropout != schema.Dropout() or self.config.task is not None
        mean, gradients = jax.value_and_grad(self.mean)(params, tokens_BT, key if dropping else None)
        gradients = self.model.place.stored(gradients)
        square = optax.tree.norm(gradients, squared=True)
        return Sums(jax.tree.map(jnp.add, sums.gradients, gradients), sums.loss + mean, sums.squared_norm + square, sums.count + 1)

    def update(self, now: state.TrainState, sums: Sums, microbatch_rows: int) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """Move the parameters by the mean gradient. A non-finite loss or gradient norm leaves parameters and moments as they were."""
        n, c = sums.count.astype(jnp.float32), self.config
        gradients = jax.tree.map(lambda g: g / n, sums.gradients)
        mean_loss, norm = sums.loss / n, optax.tree.norm(gradients)
        rows = now.rows + sums.count * microbatch_rows
        lr = schedule.learning_rate(c.train.schedule, rows.astype(jnp.float32) * c.model.n_ctx)
        with jax.numpy_dtype_promotion("standard"):  # optax's bias correction mixes types, which the tests forbid elsewhere
            updates, opt_state = self.tx.update(gradients, now.opt_state, now.params)
        params = jax.tree.map(lambda p, u: p - lr * u, now.params, updates)
        finite = jnp.isfinite(mean_loss) & jnp.isfinite(norm)
        params, opt_state = jax.tree.map(functools.partial(jnp.where, finite), (params, opt_state), (now.params, now.opt_state))
        g2, tr = noise_estimates(sums.squared_norm / n, norm**2, n, microbatch_rows * c.model.n_ctx)
        known = finite & (sums.count > 1)
        after = state.TrainState(
            step=now.step + 1,
            rows=rows,
            params=params,
            opt_state=opt_state,
            noise_g2=jnp.where(known, NOISE_DECAY * now.noise_g2 + (1 - NOISE_DECAY) * g2, now.noise_g2),
            noise_tr=jnp.where(known, NOISE_DECAY * now.noise_tr + (1 - NOISE_DECAY) * tr, now.noise_tr),
            skipped=now.skipped + (~finite).astype(jnp.int32),
            skipped_in_row=jnp.where(finite, 0, now.skipped_in_row + 1),
        )
        metrics = {"loss": mean_loss, "lr": lr, "grad_norm": norm, "noise_scale": after.noise_tr / after.noise_g2}
        after = self.model.place.stored(after)  # as it came in, or the next step would compile again
        return after, metrics | {"rows": after.rows, "skipped": after.skipped, "skipped_in_row": after.skipped_in_row}

    def __call__(self, now: state.TrainState, tokens_MBT, count) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step over the first `count` microbatches of tokens_MBT (M, B, n_ctx + 1). `count` is an array where a batch ramp varies it:
        one program serves the whole ramp."""

        def add(i, sums):
            return self.accumulate(now.params, now.step, sums, tokens_MBT[i])

        M, B, _ = tokens_MBT.shape
        sums = self.zero(now.params)
        sums = add(0, sums) if M == 1 else jax.lax.fori_loop(0, count, add, sums)
        return self.update(now, sums, B)


def rows_that_fit(config: schema.Config, manner: gpt.Manner, mesh: jax.sharding.Mesh, shards: int, room: int) -> int:
    """Rows of a microbatch, over all devices, for whose activations each has `room` bytes. Rows are split over `shards`; the devices that
    share one share its activations."""
    scores = dispatch.holds_scores(manner.kernel, config.model, manner.dtype, config.data.across_documents == "mask")
    dtype = "bfloat16" if manner.dtype == jnp.bfloat16 else "float32"
    return count.microbatch_rows(config, max(0, room) * (mesh.size // shards), shards, dtype, scores)


def noise_estimates(small, big, n, tokens) -> tuple[jax.Array, jax.Array]:
    """Unbiased |G|^2 and tr(Sigma): McCandlish et al. (1812.06162) Appendix A.1. Their ratio, tr over |G|^2, is the noise scale B_simple,
    here in tokens. small: mean |G|^2 over n microbatches of `tokens` tokens each; big: |G|^2 of their mean. Not finite for n = 1."""
    b_small, b_big = tokens * 1.0, n * tokens
    g2 = (b_big * big - b_small * small) / (b_big - b_small)
    return g2, (small - big) / (1 / b_small - 1 / b_big)


def build(config: schema.Config, platform: str, mesh: jax.sharding.Mesh, end_of_text: int | None) -> Step:
    """The step of `config` on a mesh. ValueError if documents are to be kept apart and no token ends them."""
    if config.data.across_documents == "mask" and end_of_text is None:
        raise ValueError(
            f"data.across_documents=mask needs an end-of-text token, which {config.data.tokenizer} lacks; set data.across_documents=attend"
        )
    place = rules.Placement(rules.PRESETS[config.mesh.sharding], mesh)
    model = gpt.GPT(config.model, gpt.manner(config.compute, platform), place)
    return Step(config, model, optimizer.adamw(config.train.optimizer), end_of_text)
