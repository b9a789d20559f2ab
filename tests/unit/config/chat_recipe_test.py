"""A recipe of a reward model becomes the published run."""

import dataclasses

import pytest

from gptjax.config import chat_recipe
from gptjax.config.chat import BeforeAndAfter, Demonstrations
from gptjax.config.schema import Cosine, Linear
from gptjax.configs import registry


def resolve(name, n_rows, base="nano"):
    pretrained = registry.config(base)
    model = dataclasses.replace(pretrained.model, tied_output=False)
    pretrained = dataclasses.replace(pretrained, model=model)
    recipe = registry.chat_recipe(name, registry.REWARD)
    return chat_recipe.resolve_config(recipe, pretrained, pretrained.data, 4100, n_rows)


def test_instructgpt_learns_33_207_prompts_once():
    config = resolve("instructgpt_reward", 33_207)
    row = config.model.n_ctx
    tokens = 518 * 64 * row
    assert config.train.total_tokens == tokens and config.batch_rows == 64
    assert config.train.schedule == Cosine(
        peak_lr=9e-6, warmup_tokens=0, decay_tokens=tokens, final_fraction=0.1
    )
    adam = config.train.optimizer
    assert (adam.b1, adam.b2, adam.weight_decay) == (0.9, 0.95, 0)
    assert isinstance(config.task.normalize, Demonstrations) and config.task.loss == "pairs"


def test_the_2019_code_learns_4_992_labels_once():
    config = resolve("lm_human_preferences_reward", 4_992)
    tokens = 156 * 32 * config.model.n_ctx
    assert config.train.schedule == Linear(peak_lr=5e-5, warmup_tokens=0, decay_tokens=tokens)
    adam = config.train.optimizer
    assert (adam.b1, adam.b2, adam.eps, adam.weight_decay) == (0.9, 0.999, 1e-5, 0)
    assert adam.clip_norm is None and adam.bias_correction == "rate"
    assert config.task.normalize == BeforeAndAfter(path=None, n_samples=256)
    assert (config.task.loss, config.task.text) == ("best_of", "plain")


@pytest.mark.parametrize("name", registry.REWARD)
def test_a_reward_model_has_no_output_table_and_one_text_a_row(name):
    config = resolve(name, 1000)
    assert config.model.tied_output and config.data.document_attention == "attend"
