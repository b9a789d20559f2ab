"""The objective of preferences between answers: direct preference optimization (Rafailov et al.
2305.18290), without a reward model and without sampling."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import parse
from gptjax.config.chat import Dpo, Ipo, PreferenceLoss, Preferences
from gptjax.data import conversations, preferences
from gptjax.data.conversations import Encoded
from gptjax.model import experts, gpt
from gptjax.runtime import checksums
from gptjax.training import loss, sft, step

REFERENCE_TOKENS = 4096  # of a batch of the reference
STATISTICS = ["accuracy", "margin", "chosen_reward", "rejected_reward"]


def preference_loss(kind: PreferenceLoss, difference_B: jax.Array) -> jax.Array:
    """Returns the loss (B,) of pairs. difference_B: log p / p_reference of the chosen answer minus
    that of the rejected one, in nats."""
    match kind:
        case Dpo(beta=beta):
            return -jax.nn.log_sigmoid(beta * difference_B)
        case Ipo(tau=tau):
            return jnp.square(difference_B - 1 / (2 * tau))


def reward_scale(kind: PreferenceLoss) -> float:
    """Returns the factor of log p / p_reference in the implicit reward of an answer (section 4 of
    the paper)."""
    return kind.beta if isinstance(kind, Dpo) else kind.tau


def pair_rows(pairs: Sequence[tuple[Encoded, Encoded]], n_ctx: int) -> np.ndarray:
    """Returns int32 (pairs, 2 (2 n_ctx + 1) + 2): the rows of sft.pack_rows of the chosen and of
    the rejected answer, and two places for their log p under the reference (`with_reference`)."""
    parts = [sft.pack_rows([pair[side] for pair in pairs], n_ctx, "single") for side in range(2)]
    return np.concatenate([*parts, np.zeros((len(pairs), 2), np.int32)], axis=1)


def with_reference(rows: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """Returns `pair_rows` with log p (pairs, 2) float32 of the reference, chosen first."""
    return np.concatenate(
        [rows[:, :-2], np.ascontiguousarray(log_probs, np.float32).view(np.int32)], axis=1
    )


@dataclasses.dataclass(frozen=True)
class DpoStep(step.TrainStep):
    """The training step of preferences, on rows of `pair_rows` with the reference's log p; the loss
    is the mean over pairs."""

    @property
    def _task(self) -> Preferences:
        assert isinstance(self.config.task, Preferences)
        return self.config.task

    def answers(self, params, rows_B, dropout_key=None):
        """Returns (states (2B, T, D), targets, learned (2B, T), log p of the answers (B, 2), the
        statistics of the routers of experts); the chosen answers of all pairs come first. log p has
        no gradient."""
        n_ctx = self.config.model.n_ctx
        width = 2 * n_ctx + 1
        both = jnp.concatenate([rows_B[:, :width], rows_B[:, width : 2 * width]])
        tokens_BT, segments_BT, learned_BT = sft.split_row(both, n_ctx)
        x_BTD, router = self.hidden_states(
            params, tokens_BT[:, :-1], segments_BT, gpt.segment_positions(segments_BT), dropout_key
        )
        targets_BT, model = tokens_BT[:, 1:], self.config.model
        nll_BT = loss.token_nll(
            x_BTD,
            gpt.output_table(params),
            targets_BT,
            model.n_vocab,
            self.model.sharding,
            model.logits_softcap,
        )
        # A product would be NaN where the logits of padding are not finite.
        log_probs = -jnp.sum(jnp.where(learned_BT > 0, nll_BT, 0), axis=1)
        return x_BTD, targets_BT, learned_BT, log_probs.reshape(2, -1).T, router

    def log_probs(self, params, rows_B):
        """Returns log p of the chosen and of the rejected answer (B, 2), summed over tokens."""
        return self.answers(params, rows_B)[3]

    def statistics_names(self) -> list[str]:
        """As TrainStep.statistics_names."""
        return [*STATISTICS, *super().statistics_names()]

    def losses(self, rows_B, log_probs_B2):
        """Returns (losses (B,), their derivatives by the difference of Dpo, statistics (B,))."""
        reference_B2 = jax.lax.bitcast_convert_type(rows_B[:, -2:], jnp.float32)
        gains_B2 = log_probs_B2 - reference_B2
        losses_B, vjp = jax.vjp(
            lambda d: preference_loss(self._task.loss, d), gains_B2[:, 0] - gains_B2[:, 1]
        )
        (slopes_B,) = vjp(jnp.ones_like(losses_B))
        rewards_B2 = reward_scale(self._task.loss) * gains_B2
        margin_B = rewards_B2[:, 0] - rewards_B2[:, 1]
        is_right_B = (margin_B > 0).astype(jnp.float32)
        values = is_right_B, margin_B, rewards_B2[:, 0], rewards_B2[:, 1]
        return losses_B, slopes_B, dict(zip(STATISTICS, values, strict=True))

    def loss_fn(self, params, tokens_BT, dropout_key=None):
        """As TrainStep.loss_fn. The gradient of a pair's loss is its derivative by the difference,
        times the gradient of that: a sum of log p with one weight for each answer, which
        `weighted_nll` computes without keeping logits."""
        x_BTD, targets_BT, learned_BT, log_probs_B2, router = self.answers(
            params, tokens_BT, dropout_key
        )
        losses_B, slopes_B, values = self.losses(tokens_BT, log_probs_B2)
        mean_loss, B = jnp.mean(losses_B), losses_B.size
        weights_B = jnp.concatenate([-slopes_B, slopes_B]) / B
        surrogate = self.weighted_nll(params, x_BTD, targets_BT, learned_BT * weights_B[:, None])
        total = surrogate + jax.lax.stop_gradient(mean_loss - surrogate)
        total += experts.loss(self.config.model.mlp, router)
        statistics = {name: jnp.mean(value) for name, value in values.items()} | router
        return total, step.LossParts(mean_loss, jnp.float32(1), statistics)

    def scores(self, params, rows_B):
        """Returns (losses (B,), accuracy (B,), margin (B,)): for evaluation, without dropout."""
        losses_B, _, values = self.losses(rows_B, self.log_probs(params, rows_B))
        return losses_B, values["accuracy"], values["margin"]


class PreferenceRows(sft.ConversationRows):
    """The preferences of a task, read, split into train and dev, encoded and put into rows.

    examples: the first prompts of both, each with its preferred answer, to be shown."""

    read = staticmethod(preferences.read)
    split_key = staticmethod(preferences.Ranking.prompt_text)

    def encode(self, part: Iterator, name: str, print_line: Callable[[str], None]) -> np.ndarray:
        """As ConversationRows.encode."""
        pairs, examples, notes, ties = [], [], conversations.Notes(), conversations.Notes()
        for where, ranked in part:
            try:
                new = preferences.encode_pairs(self.tokenizer, self.template, ranked, self.n_ctx)
                pairs += new
                examples.append((ranked.answers[ranked.pairs()[0][0]], new[0][0]))
                ties.add(preferences.TIE_NOTE, where, ranked.n_ties)
            except ValueError as error:  # of the prompt, or of the template
                notes.add(f"dropped: {parse.one_line(str(error), 200)}", where)
        notes.print(name, "prompt", print_line)
        ties.print(name, "pair", print_line)
        if not pairs:
            raise ValueError(f"{name}: no pair is left to learn from{notes.reasons()}")
        self.examples[name] = examples[:3]
        return pair_rows(pairs, self.n_ctx)

    def set_reference(self, log_probs: np.ndarray) -> None:
        """Sets log p of all pairs (pairs, 2) under the reference, those of dev last."""
        n_train = len(self.train)
        self.train = with_reference(self.train, log_probs[:n_train])
        self.dev = with_reference(self.dev, log_probs[n_train:])

    def digest(self) -> str:
        """Returns a digest of all rows, without the reference's log p, and of the tokenizer."""
        hasher = hashlib.sha256(self.tokenizer.digest.encode())
        for rows in (self.train, self.dev):
            hasher.update(np.ascontiguousarray(rows[:, :-2]).tobytes())
        return hasher.hexdigest()

    def summary(self) -> str:
        """Returns a line with the numbers of pairs."""
        return f"{len(self.train):,} pairs of answers, {len(self.dev):,} to validate on"


class DpoObjective(sft.SftObjective):
    """Learning from preferences; the reference is the model of init_weights. Its log p are computed
    once, when the run begins, and stored in the run. A training.context.Objective."""

    _rows: PreferenceRows
    _has_reference = False

    def open_dataset(self, config, directory, log):
        self._reference_path = directory / f"reference-{self._rows.digest()[:16]}.npy"
        if self._reference_path.is_file():
            self._set_reference(checksums.read_array(self._reference_path))
        return super().open_dataset(config, directory, log)

    def build_step(self, config, platform, mesh, dataset):
        base = step.build(config, platform, mesh, dataset.tokenizer.end_of_text)
        return DpoStep(base.config, base.model, base.tx, base.end_of_text)

    def init_state(self, config, step, mesh, dataset, out):
        init_state = super().init_state(config, step, mesh, dataset, out)
        rows = np.concatenate([self._rows.train, self._rows.dev])
        log_probs = reference_log_probs(config, step, mesh, init_state.params, rows, out)
        if not np.isfinite(log_probs).all():
            raise ValueError(
                f"{np.sum(~np.isfinite(log_probs)):,} answers have no finite probability under the "
                "model of --init; begin with another"
            )
        if jax.process_index() == 0:
            self._reference_path.parent.mkdir(parents=True, exist_ok=True)
            checksums.save_array(self._reference_path, log_probs)
        self._set_reference(log_probs)
        return init_state

    def _set_reference(self, log_probs: np.ndarray) -> None:
        self._rows.set_reference(log_probs)
        self._has_reference = True

    def make_eval_fn(self, context, put_on_mesh):
        from gptjax.sharding import xla_options

        if not self._has_reference:  # a run that goes on
            raise ValueError(
                f"{self._reference_path} is missing, log p of the pairs under the reference of "
                "this run: restore it, or start another run"
            )

        scores = jax.jit(
            context.step.scores, compiler_options=xla_options.options(context.mesh.devices.flat[0])
        )

        def eval_fn(params):
            parts = [
                np.array(jax.device_get(scores(params, put_on_mesh(batch, "B1"))))[:, :n]
                for batch, n in sft.padded_batches(self._rows.dev, context.microbatch_rows)
            ]
            means = np.concatenate(parts, axis=1).astype(np.float64).mean(axis=1)
            names = "validation_loss", "validation_accuracy", "validation_margin"
            return dict(zip(names, map(float, means), strict=True))

        return eval_fn


def reference_log_probs(
    config: Any, train_step: DpoStep, mesh: Any, params: Any, rows: np.ndarray, out: Any
) -> np.ndarray:
    """Returns log p of the answers of `pair_rows` (pairs, 2), float32, under `params`."""
    from gptjax.sharding import rules, xla_options

    table = rules.PRESETS[config.mesh.sharding].activations
    fn = jax.jit(train_step.log_probs, compiler_options=xla_options.options(mesh.devices.flat[0]))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    size = shards * max(1, REFERENCE_TOKENS // (2 * config.model.n_ctx * shards))
    parts = []
    with out.status("log p of the answers under the reference") as progress:
        for batch, n in sft.padded_batches(rows, size):
            log_probs = jax.device_get(fn(params, rules.put_on_mesh(batch, "B1", table, mesh)))
            parts.append(np.asarray(log_probs, np.float32)[:n])
            progress(f"log p under the reference: {sum(map(len, parts)):,} of {len(rows):,} pairs")
    return np.concatenate(parts)
