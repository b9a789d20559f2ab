"""A recipe of learning from a reward becomes the published run."""

import pytest

from gptjax.config import rlhf_recipe
from gptjax.configs import registry
from gptjax.training import schedule


def test_a_linear_decay_reaches_zero_after_the_last_iteration():
    pretrained, recipe = registry.config("gpt2_124m"), "lm_human_preferences_sentiment"
    recipe = registry.rlhf_recipe(recipe)
    train = rlhf_recipe.resolve_config(recipe, pretrained, pretrained.data, 50_260).train
    n = 1_000_000 // 512
    rates = [schedule.lr_at(train.schedule, k * train.batch_tokens) / 1e-5 for k in (1, n)]
    assert rates == pytest.approx([n / (n + 1), 1 / (n + 1)], rel=1e-3)
    assert train.total_tokens == n * train.batch_tokens
