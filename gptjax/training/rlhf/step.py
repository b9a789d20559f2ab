"""The programs of an iteration of PPO, GRPO or RLOO, as pure functions: score the answers of a
rollout, make advantages of them, accumulate gradients, update."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gptjax.config import rlhf
from gptjax.model import experts, float8, gpt, scalar_head
from gptjax.training import loss, schedule, state, step
from gptjax.training.rlhf import advantages, losses
from gptjax.training.rlhf.rollout import Rollout
from gptjax.training.step import GradientAccumulation, LossParts

STATISTICS = ("policy_loss", "clip_fraction", "approx_kl", "ratio")
VALUE_STATISTICS = ("value_loss", "value_clip_fraction")


class RlhfState(state.TrainState):
    """A TrainState whose parameters are those of the policy, and what else learning by sampling
    carries. rows are answers; opt_state is {"policy": ..., "value": ...}.

    value: parameters of the value function: a scalar head, with those of its own model if it has
    one; None without a value function. kl_coef: coefficient of the KL penalty. ema: running mean of
    the policy's parameters, or None."""

    value: Any
    kl_coef: jax.Array
    ema: Any


class Answers(flax.struct.PyTreeNode):
    """The answers of rollouts and what the models say of their tokens, rows (N, ...) of a batch.

    tokens_BT as in Rollout; all others are of the predictions of the next token, float32, and
    count where mask_BT is 1. log_probs_BT, reference_BT: log p of the tokens under the policy that
    sampled them and under the reference (nats); values_BT: of the value function, before each
    token; scores_B: of the whole answers."""

    tokens_BT: jax.Array
    mask_BT: jax.Array
    log_probs_BT: jax.Array
    reference_BT: jax.Array
    values_BT: jax.Array
    scores_B: jax.Array

    @property
    def kl_B(self) -> jax.Array:
        """log p(answer) / p_reference(answer) of each answer, whose mean estimates the KL (nats of
        an answer)."""
        return jnp.sum((self.log_probs_BT - self.reference_BT) * self.mask_BT, axis=1)


class Minibatch(flax.struct.PyTreeNode):
    """Answers with what their tokens are learned by (B, T): advantages, returns of the value
    function, and weights of the tokens in the mean over the minibatch."""

    answers: Answers
    advantages_BT: jax.Array
    returns_BT: jax.Array
    weights_BT: jax.Array


@dataclasses.dataclass(frozen=True)
class RlhfStep(step.TrainStep):
    """The programs of an iteration. value_model: a model.gpt.GPT of the value function, if that has
    its own."""

    value_model: gpt.GPT | None = None

    @property
    def task(self) -> rlhf.Rlhf:
        """The task of the config."""
        assert isinstance(self.config.task, rlhf.Rlhf)
        return self.config.task

    # --- state ------------------------------------------------------------------------------------

    def init_state(self) -> RlhfState:
        """Returns the state before the first iteration, its parameters drawn from config.seed."""
        base = state.init_state(self.config, self.model, self.tx)
        value = self._init_value()
        fields: dict[str, Any] = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
        fields["opt_state"] = self.init_optimizer(base.params, value)
        return RlhfState(
            **fields,
            value=value,
            kl_coef=jnp.float32(self.task.kl_coef),
            ema=None if self.task.ema is None else jax.tree.map(jnp.copy, base.params),
        )

    def _init_value(self) -> Any:
        if not isinstance(self.task.advantage, rlhf.Gae):
            return None
        model = self.value_model or self.model
        # Of standard deviation 0, so that the key does not matter.
        head = {scalar_head.NAME: scalar_head.init(jax.random.key(0), model.config.d_model, 0.0)}
        return (
            head if self.value_model is None else state.init_params(model, self.config.seed) | head
        )

    def init_optimizer(self, params: Any, value: Any) -> dict[str, Any]:
        """Returns the optimizer's states before the first update."""
        states = {"policy": self.tx.init(params)}
        return states if value is None else states | {"value": self.tx.init(value)}

    def abstract_state(self, mesh: jax.sharding.Mesh) -> RlhfState:
        """As TrainStep.abstract_state."""
        return state.abstract(self.init_state, self.config, mesh)

    def shard_rows(self, tree: Any) -> Any:
        """Constrains a tree of arrays (B, ...) of rank 1 or 2, so that each device has rows of its
        own."""
        return jax.tree.map(lambda x: self.model.sharding(x, "B1"[: x.ndim]), tree)

    # --- what the models say of a rollout ---------------------------------------------------------

    def states_and_log_probs(self, params, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
        """Returns (the states of the last layer (B, T, D), log p of the tokens of the answers
        (B, T), 0 elsewhere)."""
        x_BTD, _ = self.hidden_states(params, rollout.tokens_BT, None, None, None)
        log_probs_BT = self._log_probs(params, self._scale(x_BTD), next_tokens(rollout.tokens_BT))
        return x_BTD, jnp.where(rollout.mask_BT > 0, log_probs_BT, 0)

    def details(
        self, params, value, x_BTD, rollout: Rollout, log_probs_BT
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (the value before each token of the answers (B, T), 0 elsewhere; for each row
        (B,) the policy's entropy and |log p of the sampler - log p of `states_and_log_probs`|, sums
        over the tokens of its answer)."""
        model, mask_BT = self.config.model, rollout.mask_BT
        entropy_BT = loss.token_entropy(
            self._scale(x_BTD),
            gpt.output_table(params),
            model.n_vocab,
            self.model.sharding,
            model.logits_softcap,
        )
        values_BT = jnp.zeros_like(mask_BT)
        if value is not None:
            values_BT = self._values(value, x_BTD, rollout.tokens_BT)
        S = self.task.answer_tokens
        at_BS = jnp.arange(S)[None] + rollout.first_B[:, None] - 1
        gap_BS = jnp.abs(jnp.take_along_axis(log_probs_BT, at_BS, axis=1) - rollout.log_probs_BS)
        is_answer_BS = jnp.arange(S)[None] < rollout.n_B[:, None]
        return jnp.where(mask_BT > 0, values_BT, 0), {
            "entropy": jnp.sum(jnp.where(mask_BT > 0, entropy_BT, 0), axis=1),
            "gap_sum": jnp.sum(jnp.where(is_answer_BS, gap_BS, 0), axis=1),
        }

    def _scale(self, x_BTD) -> jax.Array:
        """States whose logits are those of the states divided by the temperature."""
        return x_BTD / jnp.asarray(self.task.temperature, x_BTD.dtype)

    def _log_probs(self, params, x_BTD, targets_BT) -> jax.Array:
        model = self.config.model
        return -loss.token_nll(
            x_BTD,
            gpt.output_table(params),
            targets_BT,
            model.n_vocab,
            self.model.sharding,
            model.logits_softcap,
        )

    def _values(self, value, x_BTD, inputs_BT) -> jax.Array:
        """The value before each token (B, T). x_BTD: states of the policy."""
        if self.value_model is not None:
            model = float8.training_model(self.value_model, self.config.compute)
            x_BTD, _ = model.apply({"params": value}, inputs_BT, mutable="router")
        return scalar_head.apply(value[scalar_head.NAME], x_BTD)

    # --- advantages -------------------------------------------------------------------------------

    def batch_advantages(self, answers: Answers, kl_coef) -> jax.Array:
        """Returns what the advantages of a batch's answers (N,) are, where an answer has one: of
        GRPO and RLOO; with a value function, zeros."""
        match self.task.advantage:
            case rlhf.GroupMean() as spec:
                return advantages.group_means(spec, answers.scores_B)
            case rlhf.LeaveOneOut() as spec:
                return advantages.leave_one_out(spec, answers.scores_B - kl_coef * answers.kl_B)
        return jnp.zeros_like(answers.scores_B)

    def minibatch(
        self, answers: Answers, advantages_B, rows_B, kl_coef
    ) -> tuple[Minibatch, dict[str, jax.Array]]:
        """Returns (the rows `rows_B` of a batch's answers and what they are learned by, statistics
        of their rewards). advantages_B: of the batch (`batch_advantages`).

        With a value function rewards are whitened, and advantages computed, in the minibatch as in
        openai/lm-human-preferences (train_policy.py)."""
        part = jax.tree.map(lambda x: x[rows_B], answers)
        weights_BT = losses.token_weights(self.task, part.mask_BT)
        match self.task.advantage:
            case rlhf.Gae() as spec:
                rewards_BT = token_rewards(part, kl_coef)
                if spec.whiten_rewards:
                    rewards_BT = advantages.whiten(
                        rewards_BT, part.mask_BT, spec.variance, shift_mean=False
                    )
                advantages_BT = advantages.gae(
                    rewards_BT, part.values_BT, part.mask_BT, spec.discount, spec.lam
                )
                returns_BT = advantages_BT + part.values_BT
                unexplained = advantages.masked_variance(advantages_BT, part.mask_BT)
                variance = advantages.masked_variance(returns_BT, part.mask_BT)
                statistics = {
                    "explained_variance": 1 - unexplained / jnp.maximum(variance, 1e-8),
                    "value": advantages.masked_mean(part.values_BT, part.mask_BT),
                }
                if spec.whiten_advantages:
                    advantages_BT = advantages.whiten(advantages_BT, part.mask_BT, spec.variance)
            case _:
                advantages_BT = advantages_B[rows_B][:, None] * part.mask_BT
                returns_BT, statistics = jnp.zeros_like(advantages_BT), {}
        return Minibatch(part, advantages_BT, returns_BT, weights_BT), statistics

    # --- gradients --------------------------------------------------------------------------------

    def statistics_names(self) -> list[str]:
        """As TrainStep.statistics_names."""
        value = VALUE_STATISTICS if isinstance(self.task.advantage, rlhf.Gae) else ()
        return [*STATISTICS, *value]

    def answers_loss(self, nets, part: Minibatch, kl_coef) -> tuple[jax.Array, LossParts]:
        """Returns (the loss of some rows of a minibatch, its parts), sums that over all rows of the
        minibatch are its means. nets: {"policy": ..., "value": ...}.

        The loss of the policy is a function of log p of each token; its gradient is that of a
        weighted sum of log p, with its slopes as weights, so that no logits are kept."""
        answers, task = part.answers, self.task
        inputs_BT, targets_BT = answers.tokens_BT, next_tokens(answers.tokens_BT)
        x_BTD, router = self.hidden_states(nets["policy"], inputs_BT, None, None, None)
        scaled_BTD = self._scale(x_BTD)
        log_probs_BT = self._log_probs(nets["policy"], scaled_BTD, targets_BT)

        def policy_loss(log_probs_BT):
            losses_B, statistics = losses.policy_losses(
                task,
                log_probs_BT,
                answers.log_probs_BT,
                answers.reference_BT,
                part.advantages_BT,
                part.weights_BT,
                kl_coef,
            )
            return jnp.sum(losses_B), {k: jnp.sum(x) for k, x in statistics.items()}

        (value_of_policy, statistics), slopes_BT = jax.value_and_grad(policy_loss, has_aux=True)(
            log_probs_BT
        )
        surrogate = self.weighted_nll(nets["policy"], scaled_BTD, targets_BT, -slopes_BT)
        total = surrogate + jax.lax.stop_gradient(value_of_policy - surrogate)
        statistics["policy_loss"] = value_of_policy
        match task.advantage:
            case rlhf.Gae() as spec:
                values_BT = self._values(nets["value"], x_BTD, inputs_BT)
                losses_B, clipped_B = losses.value_losses(
                    spec, values_BT, answers.values_BT, part.returns_BT, part.weights_BT
                )
                statistics["value_loss"] = jnp.sum(losses_B)
                statistics["value_clip_fraction"] = jnp.sum(clipped_B)
                total += spec.value_weight * jnp.sum(losses_B)
        share = jnp.sum(part.weights_BT)  # of the minibatch
        router_loss = share * experts.loss(self.config.model.mlp, router)
        return total + router_loss, LossParts(total, share, statistics)

    def nets(self, s: RlhfState) -> dict[str, Any]:
        """Returns the parameters that learn, by name."""
        return {"policy": s.params} | ({} if s.value is None else {"value": s.value})

    def init_gradients(self, nets) -> GradientAccumulation:
        """Returns the sums over no rows."""
        zeros = self.model.sharding.shard_like_params(jax.tree.map(jnp.zeros_like, nets))
        statistics = {name: jnp.float32(0) for name in [*self.statistics_names(), "lm_loss"]}
        parts = LossParts(jnp.float32(0), jnp.float32(0), statistics)
        return GradientAccumulation(zeros, parts, jnp.float32(0), jnp.int32(0))

    def accumulate_answers(
        self, nets, sums: GradientAccumulation, minibatch: Minibatch, first, n_rows: int, kl_coef
    ) -> GradientAccumulation:
        """Adds the gradients of n_rows rows of a minibatch, from row `first` on."""
        part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, n_rows), minibatch)
        part = self.shard_rows(part)
        return self._add(sums, nets, lambda nets: self.answers_loss(nets, part, kl_coef))

    def accumulate_text(
        self, nets, sums: GradientAccumulation, tokens_BT, n_rows: int
    ) -> GradientAccumulation:
        """Adds the gradients of ptx.weight * the mean negative log-likelihood of text, of which
        tokens_BT are some of n_rows rows."""
        ptx = self.task.ptx
        assert ptx is not None
        weights_BT = jnp.full(
            (tokens_BT.shape[0], tokens_BT.shape[1] - 1),
            1 / (n_rows * (tokens_BT.shape[1] - 1)),
            jnp.float32,
        )

        def text_loss(nets):
            mean = self.nll(nets["policy"], tokens_BT, weights_BT)
            total = ptx.weight * mean
            return total, LossParts(total, jnp.float32(0), {"lm_loss": mean})

        return self._add(sums, nets, text_loss)

    def _add(self, sums: GradientAccumulation, nets, loss_fn) -> GradientAccumulation:
        (_, parts), gradients = jax.value_and_grad(loss_fn, has_aux=True)(nets)
        gradients = self.model.sharding.shard_like_params(gradients)
        zeros = {name: jnp.float32(0) for name in sums.parts.statistics}
        parts = parts.replace(statistics=zeros | parts.statistics)
        return sums.replace(
            gradients=jax.tree.map(jnp.add, sums.gradients, gradients),
            parts=jax.tree.map(jnp.add, sums.parts, parts),
        )

    # --- updates ----------------------------------------------------------------------------------

    def update_nets(
        self, s: RlhfState, sums: GradientAccumulation
    ) -> tuple[RlhfState, dict[str, jax.Array]]:
        """Applies the gradients of a minibatch; returns (state, metrics). If the loss or a gradient
        norm is not finite, nothing changes but the count of skipped updates."""
        c, task = self.config, self.task
        rows = (s.rows + task.batch_rows).astype(jnp.float32)
        lr = schedule.learning_rate(c.train.schedule, rows * c.model.n_ctx)
        nets, rates = self.nets(s), {"policy": lr}
        match task.advantage:
            case rlhf.Gae(value=rlhf.SeparateValue(peak_lr=peak)) if peak is not None:
                rates["value"] = lr * (peak / c.train.schedule.peak_lr)
            case rlhf.Gae():
                rates["value"] = lr
        norms = {name: optax.tree.norm(sums.gradients[name]) for name in nets}
        is_finite = jnp.isfinite(sums.parts.loss)
        for norm in norms.values():
            is_finite &= jnp.isfinite(norm)
        new_nets, new_states = {}, {}
        for name, params in nets.items():
            with jax.numpy_dtype_promotion("standard"):  # as in TrainStep.update
                updates, new_states[name] = self.tx.update(
                    sums.gradients[name], s.opt_state[name], params
                )
            rate = rates[name]
            new_nets[name] = jax.tree.map(lambda p, u, rate=rate: p - rate * u, params, updates)
        choose = functools.partial(jnp.where, is_finite)
        new_nets, new_states = jax.tree.map(choose, (new_nets, new_states), (nets, s.opt_state))
        ema = s.ema
        if (decay := task.ema) is not None:
            ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, s.ema, new_nets["policy"])
        new_state = s.replace(
            params=new_nets["policy"],
            value=new_nets.get("value"),
            opt_state=new_states,
            ema=ema,
            skipped=s.skipped + (~is_finite).astype(jnp.int32),
            skipped_in_row=jnp.where(is_finite, 0, s.skipped_in_row + 1),
        )
        metrics = {"loss": sums.parts.loss, "lr": lr, "grad_norm": norms["policy"]}
        if "value" in norms:
            metrics["value_grad_norm"] = norms["value"]
        if task.ptx is not None:
            metrics["lm_loss"] = sums.parts.statistics["lm_loss"]
        metrics |= {name: sums.parts.statistics[name] for name in self.statistics_names()}
        return self.model.sharding.shard_like_params(new_state), metrics

    def finish(self, s: RlhfState, kl) -> tuple[RlhfState, dict[str, jax.Array]]:
        """Returns (the state after an iteration whose answers have this mean KL (nats), its
        counts)."""
        n_rows = self.task.batch_rows
        s = s.replace(
            step=s.step + 1,
            rows=s.rows + n_rows,
            kl_coef=advantages.next_kl_coef(self.task.kl, s.kl_coef, kl, n_rows),
        )
        return s, {"rows": s.rows, "skipped": s.skipped, "skipped_in_row": s.skipped_in_row}


def next_tokens(tokens_BT: jax.Array) -> jax.Array:
    """Returns the token after each; 0 after the last, which no mask counts."""
    return jnp.pad(tokens_BT[:, 1:], ((0, 0), (0, 1)))


def token_rewards(answers: Answers, kl_coef) -> jax.Array:
    """Returns the reward of each token (B, T): -kl_coef * (log p - log p_reference), and at the
    last token of the answer its score as well."""
    mask_BT = answers.mask_BT
    is_last_BT = mask_BT * (1 - jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1))))
    penalty_BT = -kl_coef * (answers.log_probs_BT - answers.reference_BT) * mask_BT
    return penalty_BT + is_last_BT * answers.scores_B[:, None]


def build(base: step.TrainStep, value_model: gpt.GPT | None) -> RlhfStep:
    """Returns the step of a config whose task is Rlhf. base: of the same config (step.build)."""
    return RlhfStep(base.config, base.model, base.tx, base.end_of_text, value_model)
