"""The GPT with a linear classifier on the state of its extract token (GPT-1 equations 3 to 5)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gptjax.config import schema
from gptjax.config.classification import ClassificationTask
from gptjax.model import experts, float8, gpt, layers
from gptjax.model.module import Module
from gptjax.sharding import rules
from gptjax.training import loss, optimizer, step
from gptjax.training.classification import transformations


class Head(Module):
    """The linear classifier. Its weights are initialized with a standard deviation of 0.02, like
    the model's (released train.py)."""

    n_outputs: int
    std: float

    @nn.compact
    def __call__(self, x_BD):
        weight_DC = self.param(
            "weight_DC", nn.initializers.normal(self.std), (x_BD.shape[-1], self.n_outputs)
        )
        bias_C = self.param("bias_C", nn.initializers.zeros, (self.n_outputs,))
        return x_BD.astype(jnp.float32) @ weight_DC + bias_C[None]


class Classifier(Module):
    """The GPT and the classifier; its parameters are those of the GPT under "gpt" and those of the
    Head under "head"."""

    config: schema.Model
    execution_policy: gpt.ExecutionPolicy
    sharding: rules.Sharding
    task: ClassificationTask

    @nn.compact
    def __call__(
        self, tokens_BCT: jax.Array, extract_BC: jax.Array | None = None, train: bool = False
    ):
        """(scores (B, classes) float32, states (B * C, T, D)). extract_BC: where in each sequence
        its extract token stands.

        The states of a similarity's two orders are added; the answers of a choice are scored one by
        one, under one dropout mask as in the released code."""
        if tokens_BCT.ndim == 2:  # as training/state.py asks for parameters
            tokens_BCT, extract_BC = (
                tokens_BCT[:, None],
                jnp.zeros((tokens_BCT.shape[0], 1), jnp.int32),
            )
        assert extract_BC is not None
        B, C, T = tokens_BCT.shape
        x_MTD = gpt.GPT(self.config, self.execution_policy, self.sharding, name="gpt")(
            tokens_BCT.reshape(B * C, T), None, train
        )
        extract_MT = jax.nn.one_hot(
            extract_BC.reshape(B * C), T, dtype=x_MTD.dtype
        )  # not a gather, which a sharded batch would not like
        state_BCD = jnp.einsum("MT,MTD->MD", extract_MT, x_MTD).reshape(B, C, -1)
        head = Head(self.task.n_outputs, self.config.init.weight, name="head")
        if self.task.kind == "choice":
            if train and self.task.dropout:
                keep_B1D = layers.dropout(
                    self, jnp.ones_like(state_BCD[:, :1]), self.task.dropout, train
                )
                state_BCD = state_BCD * keep_B1D
            return head(state_BCD.reshape(B * C, -1)).reshape(B, C), x_MTD
        state_BD = layers.dropout(self, state_BCD.sum(1), self.task.dropout, train)
        return head(state_BD), x_MTD


@dataclasses.dataclass(frozen=True)
class ClassificationStep(step.TrainStep):
    """The training step of a task: that of pre-training with another loss, on rows of
    training/classification/transformations.py."""

    def scores(self, params, rows_BT, dropout_key=None):
        """(scores (B, classes), labels (B,) in classes, below 0 where unknown, states (B * C, T,
        D), the statistics of the routers of experts) of rows of EncodedExamples."""
        labels_B, extract_BC, tokens_BCT = self.split_rows(rows_BT)
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        variables, is_train = {"params": params}, dropout_key is not None
        outputs: Any = float8.training_model(self.model, self.config.compute).apply(
            variables, tokens_BCT, extract_BC, is_train, rngs=rngs, mutable="router"
        )
        (y_BC, x_MTD), sown = outputs
        labels_B = labels_B.astype(jnp.float32) / transformations.LABEL_SCALE
        return y_BC, labels_B, x_MTD, experts.mean_statistics(sown)

    def scores_and_losses(self, params, rows_BT):
        """(scores (B, classes), the classifier's losses (B,), 0 where the label is unknown): for
        evaluation, so without dropout."""
        y_BC, labels_B, *_ = self.scores(params, rows_BT)
        return y_BC, task_loss(y_BC, labels_B)

    def split_rows(self, rows_BT):
        assert isinstance(self.config.task, ClassificationTask)
        return transformations.split_rows(
            rows_BT, self.config.task.n_sequences, self.config.model.n_ctx
        )

    def loss_fn(self, params, tokens_BT, dropout_key=None):
        """Returns (the loss of which the gradient is taken, the parts of the loss of a microbatch),
        of rows of EncodedExamples. The loss is L3 of equation 5: the classifier's cross-entropy
        plus lm_weight times the language model's, the latter a mean over the tokens of each
        sequence first (released train.py). Nats, averaged over examples."""
        assert isinstance(self.config.task, ClassificationTask)
        y_BC, labels_B, x_MTD, router = self.scores(params, tokens_BT, dropout_key)
        total = jnp.mean(task_loss(y_BC, labels_B))
        if self.config.task.lm_weight:
            total += self.config.task.lm_weight * self._language_loss(params, tokens_BT, x_MTD)
        router_loss = experts.loss(self.config.model.mlp, router)
        return total + router_loss, step.LossParts(total, jnp.float32(1), router)

    def _language_loss(self, params, tokens_BT, x_MTD):
        """The language model's cross-entropy on rows of EncodedExamples. x_MTD: its states."""
        _, extract_BC, tokens_BCT = self.split_rows(tokens_BT)
        M, T, _ = x_MTD.shape
        # Each token but the first is predicted, up to the extract token. The last column has no
        # successor and weight 0.
        last_M1 = extract_BC.reshape(M, 1)
        weights_MT = jnp.where(
            jnp.arange(T)[None] < last_M1, 1 / (M * last_M1.astype(jnp.float32)), 0
        )
        targets_MT = jnp.roll(tokens_BCT.reshape(M, T), -1, axis=1)
        model, table_VD = self.config.model, gpt.output_table(params["gpt"])
        return loss.cross_entropy(
            x_MTD,
            table_VD,
            targets_MT,
            weights_MT,
            model.n_vocab,
            self.model.sharding,
            model.logits_softcap,
        )


def task_loss(y_BC: jax.Array, label_B: jax.Array) -> jax.Array:
    """Cross-entropy (B,) with the label's class; with a score between two classes, in the share of
    its nearness to each (Tai et al. 1503.00075 equation 18, as the released utils.py has it for
    STS-B). 0 where the label is unknown."""
    target_BC = jnp.maximum(
        0, 1 - jnp.abs(label_B[:, None] - jnp.arange(y_BC.shape[1], dtype=jnp.float32)[None])
    )
    return jnp.where(label_B < 0, 0, -jnp.sum(target_BC * jax.nn.log_softmax(y_BC), axis=-1))


def build(config: schema.Config, platform: str, mesh: jax.sharding.Mesh) -> ClassificationStep:
    """The step of a config with a task, on a mesh."""
    assert isinstance(config.task, ClassificationTask)
    sharding = rules.Sharding(rules.for_config(config, mesh), mesh)
    model = Classifier(
        config.model, gpt.execution_policy(config.compute, platform), sharding, config.task
    )
    return ClassificationStep(config, model, optimizer.adamw(config.train.optimizer))  # type: ignore[arg-type]
