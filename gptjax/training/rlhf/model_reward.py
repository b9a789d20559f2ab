"""The reward of a reward model."""

import functools
from typing import Any

import jax

from gptjax.config import rlhf
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.model import scalar_gpt
from gptjax.sharding import xla_options
from gptjax.training.rlhf.rollout import Rollout
from gptjax.weights import reward_model


class ModelReward:
    """The reward of a reward model. source: a weights.reward_model.RewardModel."""

    def __init__(self, source: Any):
        self._source, self.digest = source, source.digest
        self.model, self.params = source.model, source.params
        options = xla_options.options(source.mesh.devices.flat[0])
        self._scores = jax.jit(
            functools.partial(scalar_gpt.scores, source.model), compiler_options=options
        )

    def description(self) -> str:
        """As Reward.description."""
        return self._source.description()

    def __call__(self, rollout: Rollout, lengths_B: jax.Array) -> jax.Array:
        """As Reward.__call__."""
        return self._scores(self.params, rollout.tokens_BT, rollout.first_B + lengths_B - 1)


def load_model(path: str, task: rlhf.Rlhf, tokenizer: Tokenizer, mesh: Any) -> ModelReward:
    """Returns the reward of the reward model of a run. Raises ValueError, in one line, if there is
    none, or if it is not one of texts as the task writes them."""
    source = reward_model.load(path, mesh)
    if source.tokenizer.digest != tokenizer.digest:
        raise ValueError(
            f"the reward model in {path} reads tokens of another tokenizer "
            f"({source.config.data.tokenizer}): train it with --init=the model that is to learn"
        )
    if source.task.text != task.text:
        raise ValueError(
            f"the reward model in {path} scores texts with task.text={source.task.text}: set "
            f"task.text={source.task.text}, or train another"
        )
    if source.config.model.n_ctx < task.row_tokens:
        raise ValueError(
            f"task.prompt_tokens + task.answer_tokens = {task.row_tokens:,} is more than the "
            f"context of the reward model in {path}, {source.config.model.n_ctx:,}: lower them"
        )
    return ModelReward(source)
