"""The compiled functions of a run that learns by sampling. A step of the training loop is an
iteration: rollouts, their scores, and the updates of the policy and the value function."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import rlhf
from gptjax.model import inference
from gptjax.training.context import TrainContext
from gptjax.training.rlhf import dataset, functions, rollout
from gptjax.training.rlhf.rewards import SAVED, Reward, on_host
from gptjax.training.rlhf.step import Answers, Minibatch, RlhfState, RlhfStep

# Bounds of the mean of |log p of the sampler - log p of the training forward| over tokens (nats):
# they compute the same in another order of rounding, or the forward alone rounds to 8 bits.
SAMPLER_GAP = {"float32": 1e-5, "bfloat16": 0.1, "float8": 0.1}


class RlhfProgram:
    """A training.context.Program of one run.

    reference: parameters of the frozen reference, as model.inference.cast_weights returns them.
    reward: a rewards.Reward. end_token: id of the token that ends an answer, or None."""

    def __init__(
        self,
        context: TrainContext,
        put_on_mesh: Callable,
        reference: Any,
        reward: Reward,
        end_token: int | None,
    ):
        """put_on_mesh(array, letters, n_rows): places a host array on the mesh
        (sharding.rules.put_on_mesh)."""
        self._context, self._put_on_mesh = context, put_on_mesh
        self._reference, self._reward = reference, reward
        step: RlhfStep = context.step
        self._step, self._task = step, step.task
        self._text_width = context.config.model.n_ctx + 1
        self._fns = functions.Functions(step, context.mesh, end_token, context.max_microbatch_rows)

    def run_state(self, state: Any, index: int) -> Any:
        return state

    # --- an iteration -----------------------------------------------------------------------------

    def step(self, state: RlhfState, batches: Sequence[dict], guard: Any, progress: Any):
        """As training.context.Program.step."""
        with jax.transfer_guard_host_to_device("allow"):
            number = int(jax.device_get(state.step))
            report = Report(self._context.processes, progress, self._task, number)
            lengths_B, prompts_BT, text = self._rows(batches[0])
            parts = []
            for first in range(0, self._task.batch_rows, self._fns.chunk_rows):
                if guard.may_stop_mid_step:
                    return None
                rows = self._fns.take((prompts_BT, lengths_B), first, self._fns.chunk_rows)
                parts.append(self.answers(state, rows[0], rows[1], number, first))
                report("the rollouts", self._fns.chunk_rows)
            answers, statistics = self._fns.join(*parts)
            metrics = self._summarize(answers, statistics, state, number)
            kl_coef = jnp.copy(state.kl_coef)  # updates donate the state
            advantages_B = self._fns.advantages(answers, kl_coef)
            totals: dict[str, Any] = {}
            for update, (rows, text_rows) in enumerate(self._minibatch_rows(number, text)):
                minibatch, new = self._fns.minibatch(answers, advantages_B, rows, kl_coef)
                sums = self._gradients(state, minibatch, text_rows, kl_coef, report)
                state, updated = self._fns.update(state, sums)
                if update == 0:
                    self._check_ratio(updated["ratio"])
                totals = add_metrics(totals, new | updated)
            n = self._task.minibatches * self._task.inner_epochs
            metrics |= {name: total / n for name, total in totals.items()}
            state, counts = self._fns.finish(state, metrics["kl"])
            return state, metrics | counts | {"kl_coef": kl_coef}

    def _rows(self, batch: dict) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """The prompts and the text of a batch, on the mesh."""
        n = int(batch["rows"])
        parts = [
            self._put_on_mesh(rows, "B1", n) for rows in batch["tokens"][: int(batch["count"])]
        ]
        return dataset.split_rows(jnp.concatenate(parts), self._task, self._text_width)

    def answers(
        self, state: Any, prompts_BT: Any, lengths_B: Any, number: int, first: int
    ) -> tuple[Answers, dict[str, jax.Array]]:
        """Samples answers to prompts, rows `first` and following of the batch of step `number`, and
        scores them. Returns (the answers, statistics of each row (B,))."""
        keys_B = self._fns.keys(self._context.config.seed, number, first, len(lengths_B))
        sampled = self._fns.sample(state.params, prompts_BT, lengths_B, keys_B)
        if not bool(jax.device_get(sampled.is_finite)):
            raise inference.NonFiniteLogits
        # One program for both, so that equal parameters give equal bits.
        x_BTD, log_probs_BT = self._fns.log_probs(self._fns.cast(state.params), sampled)
        reference_BT = self._fns.log_probs(self._reference, sampled)[1]
        values_BT, statistics = self._fns.details(
            state.params, state.value, x_BTD, sampled, log_probs_BT
        )
        del x_BTD  # as large as the activations of a layer
        scored_B, ends_B = self._fns.lengths(sampled)
        scores_B = self._reward(sampled, scored_B)
        statistics |= {"score": scores_B, "ends": ends_B.astype(jnp.float32)}
        if self._task.no_ending_score is not None:
            scores_B = jnp.where(ends_B, scores_B, self._task.no_ending_score)
        answers = Answers(
            sampled.tokens_BT, sampled.mask_BT, log_probs_BT, reference_BT, values_BT, scores_B
        )
        return answers, statistics | {"length": sampled.n_B.astype(jnp.float32)}

    def _summarize(
        self, answers: Answers, statistics: dict, state: RlhfState, number: int
    ) -> dict[str, Any]:
        """The metrics of an iteration's rollouts. ValueError if the policy has left the reference
        too far behind, or if the models contradict each other."""
        kl_B = answers.kl_B
        metrics = {
            "score": jnp.mean(statistics["score"]),
            "score_std": jnp.std(statistics["score"]),
            "kl": jnp.mean(kl_B),
            "reward": jnp.mean(answers.scores_B - state.kl_coef * kl_B),
            "entropy": jnp.mean(statistics["entropy"]),
            "length": jnp.mean(statistics["length"]),
            "no_ending": 1 - jnp.mean(statistics["ends"]),
            "sampler_gap": jnp.sum(statistics["gap_sum"]) / jnp.sum(statistics["length"]),
        }
        kl, largest, gap = (
            float(x)
            for x in jax.device_get((metrics["kl"], jnp.max(jnp.abs(kl_B)), metrics["sampler_gap"]))
        )
        if number == 0 and largest != 0:
            raise AssertionError(f"the policy is the reference, but log p differs by {largest}")
        dtype = self._context.config.compute.matmul_dtype
        if dtype == "auto":
            dtype = self._step.model.execution_policy.dtype.__name__
        bound = SAMPLER_GAP[dtype]
        if gap > bound and "sampler_gap" not in self._context.warnings:
            self._context.warnings.add("sampler_gap")
            self._context.warn(
                f"log p of the sampler and of the training forward differ by {gap:.1e} nats of a "
                f"token at step {number + 1:,}, more than {bound:.0e}: see sampler_gap in "
                "metrics.jsonl"
            )
        limit = self._task.max_kl
        if not math.isfinite(kl) or limit is not None and kl > limit:
            raise ValueError(
                f"the KL to the reference is {kl:,.1f} nats of an answer at step {number + 1:,}, "
                f"above task.max_kl={limit}: lower task.peak_lr or raise task.kl_coef; "
                f"{SAVED}"
            )
        return metrics

    def _minibatch_rows(
        self, number: int, text: jax.Array | None
    ) -> Iterator[tuple[np.ndarray, jax.Array | None]]:
        """Yields (row numbers of a minibatch, its rows of text): in each inner epoch another random
        order, but text in its own."""
        task = self._task
        n = task.batch_rows // task.minibatches
        for epoch in range(task.inner_epochs):
            rng = np.random.default_rng([self._context.config.seed, number, epoch])
            order = rng.permutation(task.batch_rows).astype(np.int32)
            for i in range(task.minibatches):
                size = 0 if text is None else len(text) // task.minibatches
                yield (
                    order[i * n : (i + 1) * n],
                    None if text is None else text[i * size : (i + 1) * size],
                )

    def _gradients(
        self, state: RlhfState, minibatch: Minibatch, text: Any, kl_coef: Any, report: "Report"
    ) -> Any:
        """The sums over a minibatch."""
        nets = self._step.nets(state)
        sums = self._fns.zeros(nets)
        n = self._fns.chunk_rows
        for first in range(0, len(minibatch.weights_BT), n):
            sums = self._fns.add_answers(nets, sums, minibatch, first, n, kl_coef)
            report("the updates", n)
        if text is not None:
            for first in range(0, len(text), self._fns.text_chunk_rows):
                part = self._fns.take(text, first, self._fns.text_chunk_rows)
                sums = self._fns.add_text(nets, sums, part, len(text))
        return sums

    def _check_ratio(self, ratio: Any) -> None:
        """Before the first update of an iteration the policy is the one that sampled."""
        value = float(jax.device_get(ratio))
        if math.isfinite(value) and abs(value - 1) > 1e-3:
            raise AssertionError(f"the ratio of equal policies is {value}, not 1")

    # --- evaluation -------------------------------------------------------------------------------

    def evaluate(self, state: RlhfState) -> list[dict[str, float]]:
        """As training.context.Program.evaluate: of the policy that is the result."""
        with jax.transfer_guard_host_to_device("allow"):
            result = state if state.ema is None else state.replace(params=state.ema)
            _, statistics, n = self.dev_answers(result)
            means = {
                "validation_score": float(np.mean(statistics["score"][:n])),
                "validation_kl": float(np.mean(statistics["kl"][:n])),
                "validation_length": float(np.mean(statistics["length"][:n])),
            }
            text = self._context.dataset.validation_text(self._context.config.loop.eval_rows)
            if text is not None:
                from gptjax.training import metrics

                rows = self._fns.text_chunk_rows
                nll = metrics.mean_nll(self._fns.nll, result.params, text, rows, self._put_on_mesh)
                means["validation_loss"] = float(nll)
            return [means]

    def dev_answers(self, state: RlhfState) -> tuple[Answers, dict[str, np.ndarray], int]:
        """Returns (answers to the first prompts that are held out, their statistics on the host,
        how many of them there are before the rows of padding)."""
        dev = self._context.dataset.dev[: self._task.eval_answers]
        parts = []
        for first in range(0, len(dev), self._fns.chunk_rows):
            rows = dev[first : first + self._fns.chunk_rows]
            # Padding repeats a prompt, since no prompt is empty.
            rows = np.concatenate([rows, np.repeat(rows[:1], self._fns.chunk_rows - len(rows), 0)])
            lengths_B = self._put_on_mesh(np.ascontiguousarray(rows[:, 0]), "B", None)
            prompts_BT = self._put_on_mesh(np.ascontiguousarray(rows[:, 1:]), "B1", None)
            parts.append(self.answers(state, prompts_BT, lengths_B, rollout.EVAL_STEP, first))
        answers, statistics = self._fns.join(*parts)
        return answers, on_host(statistics | {"kl": answers.kl_B}), len(dev)


class Report:
    """Shows how much of an iteration is done."""

    def __init__(self, processes: Any, progress: Any, task: rlhf.Rlhf, number: int):
        self._processes, self._progress, self._number = processes, progress, number
        self._done, self._all = 0, task.batch_rows * (1 + task.inner_epochs)

    def __call__(self, what: str, n_rows: int) -> None:
        """n_rows more rows of a phase are done."""
        self._done += n_rows
        self._processes.heartbeat(f"{what} of step {self._number + 1:,}")
        self._progress.update_fraction(self._number + 1, self._done / self._all)


def add_metrics(totals: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the sums of metrics; `totals` may be empty."""
    return {name: totals[name] + value for name, value in new.items()} if totals else new
