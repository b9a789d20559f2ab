"""The score of a model's answers to held-out prompts, by which a checkpoint is chosen (InstructGPT,
2203.02155, section 3.5)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gptjax.config import chat, rlhf
from gptjax.config.schema import Config
from gptjax.data import conversations, preferences
from gptjax.data.conversations import Message
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.model import gpt
from gptjax.sharding import xla_options
from gptjax.training.rlhf import rewards, rollout


class AnswerScore:
    """Samples an answer to each of the first prompts of dev, and scores it.

    description: of the reward and the prompts, for display. digest: of the reward."""

    def __init__(
        self,
        spec: chat.BestScore,
        config: Config,
        mesh: jax.sharding.Mesh,
        tokenizer: Tokenizer,
        template: conversations.Template,
        dev: Sequence[list[Message]],
        load_model: rewards.LoadReward,
    ):
        """dev: conversations, of which the last turn is answered anew if it is the assistant's.
        load_model: weights.reward_model.load. Raises ValueError, in one line, if no prompt leaves
        room for an answer, or if there is no such reward."""
        n_ctx = config.model.n_ctx
        prompts = [
            preferences.encode_prompt(tokenizer, template, messages[:-1])
            for messages in dev
            if messages[-1]["role"] == "assistant"
        ]
        self._prompts = [ids for ids in prompts if len(ids) + spec.answer_tokens <= n_ctx]
        if not self._prompts:
            raise ValueError(
                f"task.choose.answer_tokens={spec.answer_tokens} leaves no room for a prompt of "
                f"dev in the context of {n_ctx:,} tokens: lower it"
            )
        n_dropped = len(prompts) - len(self._prompts)
        self._prompts = self._prompts[: spec.prompts]
        # A row divides over the devices that share it, as the context does.
        n_parts = mesh.shape["tensor"] * mesh.shape["context"]
        row_tokens = max(map(len, self._prompts)) + spec.answer_tokens
        row_tokens += -row_tokens % n_parts
        self._task = rlhf.Rlhf(
            prompts="-",
            reward=spec.reward,
            prompt_tokens=row_tokens - spec.answer_tokens,
            answer_tokens=spec.answer_tokens,
        )
        self._end_token = preferences.end_token(tokenizer, template)
        self._seed = config.seed
        self._reward = rewards.open_reward(
            self._task, config.mesh.sharding, mesh, tokenizer, self._end_token, load_model
        )
        self.digest = self._reward.digest
        self.description = f"{self._reward.description()}, of {len(self._prompts)} held-out prompts"
        if n_dropped:
            self.description += (
                f"; {n_dropped} leave no room for task.choose.answer_tokens={spec.answer_tokens}"
            )
        self._options = xla_options.options(mesh.devices.flat[0])

    def make_fn(
        self, model: gpt.GPT, rows: int, put_on_mesh: Callable[..., jax.Array]
    ) -> Callable[[Any], float]:
        """Returns the function from parameters to the mean score, NaN if logits are not finite.
        rows: sampled at a time. put_on_mesh: as make_program of a training.context.Objective has
        it."""
        draw_keys = jax.jit(rollout.row_keys, static_argnums=(0, 3))
        sample = jax.jit(
            rollout.Sampler(self._task, model, self._end_token), compiler_options=self._options
        )

        def score_rows(params: Any, first: int) -> np.ndarray:
            part = self._prompts[first : first + rows]
            prompts_BT = np.zeros((rows, self._task.prompt_tokens), np.int32)
            lengths_B = np.zeros(rows, np.int32)
            # Padding repeats a prompt, since a reward function sees it.
            for i, ids in enumerate([*part, *[part[0]] * (rows - len(part))]):
                prompts_BT[i, : len(ids)], lengths_B[i] = ids, len(ids)
            with jax.transfer_guard_host_to_device("allow"):  # of two numbers
                keys_B = draw_keys(self._seed, rollout.EVAL_STEP, first, rows)
            sampled = sample(
                params, put_on_mesh(prompts_BT, "B1"), put_on_mesh(lengths_B, "B"), keys_B
            )
            scores = rewards.on_host(self._reward(sampled, sampled.n_B))[: len(part)]
            is_finite = bool(jax.device_get(sampled.is_finite))
            return scores if is_finite else np.full(len(part), np.nan)

        def score(params: Any) -> float:
            parts = [score_rows(params, i) for i in range(0, len(self._prompts), rows)]
            return float(np.mean(np.concatenate(parts).astype(np.float64)))

        return score
