"""The objective of reward models: a better completion of a prompt gets a higher score (InstructGPT,
2203.02155, section 3.5; Stiennon et al. 2009.01325; Ziegler et al. 1909.08593)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config.chat import BeforeAndAfter, Demonstrations, Rankings
from gptjax.generate import decode
from gptjax.model import experts, scalar_gpt, scalar_head
from gptjax.runtime import checksums, run_dir
from gptjax.sharding import trees
from gptjax.training import pair_accuracy, reward_rows, sft, step

TEXT_TOKENS = 8192  # of a batch of texts to score
STATISTICS = ["accuracy", "margin", "score"]


def text_scores(model: Any, params: Any, rows_B: jax.Array) -> jax.Array:
    """Returns the scores float32 (B,) of rows of reward_rows.pack_texts.

    model: a scalar_gpt.ScalarGPT."""
    return scalar_gpt.scores(model, params, rows_B[:, :-1], rows_B[:, -1])


def ranking_loss(loss: str, scores_BK: jax.Array, ranks_BK: jax.Array) -> jax.Array:
    """Returns the loss (B,) of the completions of each prompt. loss: of config.chat.Rankings."""
    is_there_BK = ranks_BK >= 0
    match loss:
        case "pairs":
            is_pair_BKK, margin_BKK = _pairs(scores_BK, ranks_BK)
            return _mean(-jax.nn.log_sigmoid(margin_BKK), is_pair_BKK)
        case _:
            log_p_BK = jax.nn.log_softmax(jnp.where(is_there_BK, scores_BK, -jnp.inf), axis=1)
            return -jnp.sum(jnp.where(ranks_BK == 0, log_p_BK, 0), axis=1)


def _pairs(scores_BK: jax.Array, ranks_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(whether i is better than j, score of i minus score of j), both (B, i, j)."""
    better_BKK = (ranks_BK[:, :, None] < ranks_BK[:, None]) & (ranks_BK[:, :, None] >= 0)
    return better_BKK, scores_BK[:, :, None] - scores_BK[:, None]


def _mean(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """The mean over all dimensions but the first of the values that are chosen; 0 of none."""
    axes = tuple(range(1, values.ndim))
    total, n = jnp.sum(jnp.where(chosen, values, 0), axis=axes), jnp.sum(chosen, axis=axes)
    return total / jnp.maximum(n, 1).astype(total.dtype)


@dataclasses.dataclass(frozen=True)
class RewardStep(step.TrainStep):
    """The training step of reward models, on rows of reward_rows.pack_rankings; the loss is the
    mean over prompts."""

    @property
    def _task(self) -> Rankings:
        assert isinstance(self.config.task, Rankings)
        return self.config.task

    @property
    def _n_places(self) -> int:
        assert self._task.completions is not None  # reward_rows.RewardRows sets it
        return self._task.completions

    def scores(self, params, rows_B, dropout_key=None):
        """Returns (the scores (B, K) of the completions, one forward pass for each; the statistics
        of the routers of experts)."""
        n_ctx, K = self.config.model.n_ctx, self._n_places
        texts_B = rows_B[:, :-K].reshape(-1, n_ctx + 1)
        x_BTD, router = self.hidden_states(params, texts_B[:, :-1], None, None, dropout_key)
        scores_B = scalar_gpt.scores_at(params, x_BTD, texts_B[:, -1])
        return scores_B.reshape(-1, K), router

    def eval_scores(self, params, rows_B):
        """Returns the scores (B, K) without dropout."""
        return self.scores(params, rows_B)[0]

    def statistics_names(self) -> list[str]:
        """As TrainStep.statistics_names."""
        return [*STATISTICS, *super().statistics_names()]

    def loss_fn(self, params, tokens_BT, dropout_key=None):
        """As TrainStep.loss_fn. No difference of scores depends on the bias, whose gradient would
        be rounding errors; the gain is trained where the config normalizes before training."""
        head = params[scalar_head.NAME]
        fixed = ["bias"] if isinstance(self._task.normalize, BeforeAndAfter) else ["bias", "gain"]
        head = head | {name: jax.lax.stop_gradient(head[name]) for name in fixed}
        scores_BK, router = self.scores(params | {scalar_head.NAME: head}, tokens_BT, dropout_key)
        ranks_BK = reward_rows.ranks_of(tokens_BT, self._n_places)
        mean_loss = jnp.mean(ranking_loss(self._task.loss, scores_BK, ranks_BK))
        is_pair_BKK, margin_BKK = _pairs(scores_BK, ranks_BK)
        values = (
            _mean((margin_BKK > 0).astype(jnp.float32), is_pair_BKK),
            _mean(margin_BKK, is_pair_BKK),
            _mean(scores_BK, ranks_BK >= 0),
        )
        statistics = {n: jnp.mean(v) for n, v in zip(STATISTICS, values, strict=True)} | router
        total = mean_loss + experts.loss(self.config.model.mlp, router)
        return total, step.LossParts(mean_loss, jnp.float32(1), statistics)


def build(config: Any, platform: str, mesh: Any, end_of_text: int | None) -> RewardStep:
    """Returns the training step of a reward model, as training.step.build."""
    base = step.build(config, platform, mesh, end_of_text)
    model = scalar_gpt.ScalarGPT(
        base.model.config,
        base.model.execution_policy,
        base.model.sharding,
        scalar_gpt.reward_head_std(config.model.d_model),
    )
    return RewardStep(base.config, model, base.tx, base.end_of_text)


class RewardObjective(sft.SftObjective):
    """Learning a reward model. A training.context.Objective."""

    _rows: reward_rows.RewardRows

    def build_step(self, config, platform, mesh, dataset):
        return build(config, platform, mesh, dataset.tokenizer.end_of_text)

    def init_state(self, config, step, mesh, dataset, out):
        """The model of init_weights with a new head, normalized before training where the config
        says so."""
        init_state = super().init_state(config, step, mesh, dataset, out)
        if not isinstance(config.task.normalize, BeforeAndAfter):
            return init_state
        score = TextScores(config, step.model, mesh)
        scale = find_scale(
            config.task, init_state.params, score(init_state.params, self._rows.texts)
        )
        out.print(f"before training: {describe_scale(config.task, scale)}")
        return init_state.replace(params=with_scale(init_state.params, scale))

    def _load_params(self, init_state, model):
        head = init_state.params[scalar_head.NAME]
        gpt_params = {n: x for n, x in init_state.params.items() if n != scalar_head.NAME}
        loaded = super()._load_params(init_state.replace(params=gpt_params), model)
        return loaded.replace(params=loaded.params | {scalar_head.NAME: head})

    def make_eval_fn(self, context, put_on_mesh):
        from gptjax.sharding import xla_options

        scores = jax.jit(
            context.step.eval_scores,
            out_shardings=_replicate(context.mesh),
            compiler_options=xla_options.options(context.mesh.devices.flat[0]),
        )

        def dev_scores(params) -> np.ndarray:
            parts = [
                np.array(jax.device_get(scores(params, put_on_mesh(batch, "B1"))))[:n]
                for batch, n in sft.padded_batches(self._rows.dev, context.microbatch_rows)
            ]
            return np.concatenate(parts)

        def eval_fn(params):
            scores_BK, ranks_BK = dev_scores(params), self._dev_ranks()
            losses_B = pair_accuracy.losses(context.config.task.loss, scores_BK, ranks_BK)
            pairs = pair_accuracy.find_pairs(scores_BK, ranks_BK)
            accuracy = pair_accuracy.measure(pairs)
            return {
                "validation_loss": float(np.mean(losses_B)),
                "validation_accuracy": accuracy.share,
                "validation_accuracy_low": accuracy.low,
                "validation_accuracy_high": accuracy.high,
                "validation_margin": float(np.mean(pairs.margin)),
            }

        self._dev_scores = dev_scores
        return eval_fn

    def _dev_ranks(self) -> np.ndarray:
        return reward_rows.ranks_of(self._rows.dev, self._rows.n_places)

    def generate_samples(self, context, state, step, is_last):
        """At the end the result is chosen, measured and normalized."""
        if is_last:
            with jax.transfer_guard_host_to_device("allow"):
                self._finish(context)
        return []

    def _finish(self, context) -> None:
        """Restores the epoch that is the result, measures it on dev, draws calibration.png, and
        writes its step, gain and bias into run_dir.CHOSEN, in one file: without it there is no
        reward model, and the same command makes it again."""
        from gptjax.report import calibration_plot
        from gptjax.training import state

        task, is_first = context.config.task, context.processes.process_id == 0
        context.checkpoints.wait()
        choose = sft.best_step if task.choose == "loss" else _last_step
        chosen = context.processes.broadcast_from_zero(lambda: choose(context))
        if chosen is None:
            context.warn("no epoch has a finite loss on dev: this run has no reward model")
            return
        abstract_params = state.abstract_state(
            context.config, context.step.model, context.step.tx, context.mesh
        ).params
        _, tree, _ = context.checkpoints.restore(
            {"params": abstract_params}, prefix="params/", steps=[chosen]
        )
        params = tree["params"]
        pairs = pair_accuracy.find_pairs(self._dev_scores(params), self._dev_ranks())
        texts = self._rows.texts
        scores = TextScores(context.config, context.step.model, context.mesh)(params, texts)
        scale = find_scale(task, params, scores)
        head = trees.digests(params[scalar_head.NAME])  # all processes compute it
        accuracy, calibration = pair_accuracy.measure(pairs), pair_accuracy.calibrate(pairs)
        context.out.print(str(accuracy))
        if task.normalize is not None:
            context.out.print(f"after training: {describe_scale(task, scale)}")
        if not is_first:
            return
        context.try_optional(
            "calibration.png is not drawn",
            lambda: calibration_plot.draw(
                context.directory / "calibration.png", context.config.name, accuracy, calibration
            ),
        )
        result = dataclasses.asdict(accuracy) | {"calibration_error": calibration.error}
        record = {"step": chosen, **scale, "head": head, "validation_accuracy": result}
        checksums.save(context.directory / run_dir.CHOSEN, record)
        context.try_optional("chosen.json is not copied", context.bucket_sync.upload)


def _last_step(context) -> int | None:
    steps = context.checkpoints.steps()
    return steps[-1] if steps else None


def _replicate(mesh: Any) -> Any:
    """The sharding of arrays that every device holds whole."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


class TextScores:
    """A function from (parameters, rows of reward_rows.pack_texts) to scores float32 (rows,)."""

    def __init__(self, config: Any, model: Any, mesh: Any):
        from gptjax.sharding import rules, xla_options

        self._table, self._mesh = rules.PRESETS[config.mesh.sharding].activations, mesh
        self._shards, self._n_ctx = mesh.shape["data"] * mesh.shape["fsdp"], config.model.n_ctx
        self._fn = jax.jit(
            functools.partial(text_scores, model),
            out_shardings=_replicate(mesh),
            compiler_options=xla_options.options(mesh.devices.flat[0]),
        )

    def __call__(
        self, params: Any, rows: np.ndarray, progress: Callable[[int], None] = lambda n: None
    ) -> np.ndarray:
        """A text is read in batches of one shape, that of the bucket of its length, so that its
        score does not depend on the other rows. progress: called with the number of rows that are
        done."""
        from gptjax.sharding import rules

        counts = (rows[:, -1] + 1).tolist()
        lengths = np.array([decode.bucket_length(n, self._n_ctx) for n in counts])
        scores, n_done = np.zeros(len(rows), np.float32), 0
        for T in np.unique(lengths):
            mine = np.flatnonzero(lengths == T)
            size = self._shards * max(1, TEXT_TOKENS // (int(T) * self._shards))
            texts = np.concatenate([rows[mine, :T], rows[mine, -1:]], axis=1)
            parts = []
            for batch, n in sft.padded_batches(texts, size):
                put = rules.put_on_mesh(batch, "B1", self._table, self._mesh)
                parts.append(np.asarray(jax.device_get(self._fn(params, put)))[:n])
                n_done += n
                progress(n_done)
            scores[mine] = np.concatenate(parts)
        return scores


def find_scale(task: Rankings, params: Any, scores: np.ndarray) -> dict[str, float]:
    """Returns the gain and bias that normalize the scores of texts under params; theirs if the task
    says nothing. Raises ValueError for scores that cannot be normalized."""
    head = params[scalar_head.NAME]
    gain, bias = (float(jax.device_get(head[name])) for name in ("gain", "bias"))
    scores = scores.astype(np.float64)
    match task.normalize:
        case None:
            return {"gain": gain, "bias": bias}
        case Demonstrations():
            scale = {"gain": gain, "bias": bias - float(np.mean(scores))}
        case BeforeAndAfter():
            std = float(np.std(scores))
            new_gain = gain / std if std else np.inf
            scale = {"gain": new_gain, "bias": (bias - float(np.mean(scores))) / std if std else 0}
    if not np.isfinite(list(scale.values())).all():
        raise ValueError(
            f"the scores of {len(scores):,} texts cannot be normalized: their mean is "
            f"{np.mean(scores):g} and their standard deviation {np.std(scores):g}; give "
            "task.normalize other texts"
        )
    return scale


def with_scale(params: Any, scale: dict[str, float]) -> Any:
    """Returns params with another gain and bias of the head."""
    head = params[scalar_head.NAME]
    new = {name: jax.device_put(np.float32(x), head[name].sharding) for name, x in scale.items()}
    return params | {scalar_head.NAME: head | new}


def describe_scale(task: Rankings, scale: dict[str, float]) -> str:
    """Returns a line that says what the gain and bias do."""
    match task.normalize:
        case None:
            effect = "scores as they are learned"
        case Demonstrations():
            effect = "demonstrations score 0 on average"
        case BeforeAndAfter():
            effect = "texts score 0 on average, with a standard deviation of 1"
    return f"gain {scale['gain']:.4g}, bias {scale['bias']:.4g}: {effect}"
