"""The objective of learning from a reward by sampling, for the training loop."""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.config import rlhf
from gptjax.data import open_dataset, stream_dataset
from gptjax.data.prompts import PromptRows
from gptjax.data.tokenizers import build
from gptjax.model import inference
from gptjax.sharding import trees
from gptjax.training import pretraining, state, step
from gptjax.training.rlhf import dataset, program, rewards
from gptjax.training.rlhf.step import RlhfStep

N_SAMPLES = 3  # shown


class RlhfObjective:
    """Learning by sampling; the reference is the model of init_weights. A
    training.context.Objective."""

    def __init__(
        self,
        init_weights: Any,
        load_reward: rewards.LoadReward,
        prompts: PromptRows,
        end_token: int | None,
    ):
        """init_weights: a weights.load.Weights. load_reward: weights.reward_model.load. end_token:
        id of the token that ends an answer."""
        self._init_weights, self._load_reward = init_weights, load_reward
        self._prompts, self._end_token = prompts, end_token

    def open_dataset(self, config, directory, log):
        text, ptx = None, config.task.ptx
        if ptx is not None:
            # As many tokens as the run reads, so that the epochs that are shown are true.
            n_tokens = config.train.total_tokens * ptx.rows_per_answer
            train = dataclasses.replace(config.train, total_tokens=n_tokens)
            of_text = dataclasses.replace(config, train=train)
            text = open_dataset.open_dataset(of_text, directory, log)
            if isinstance(text, stream_dataset.StreamDataset):
                raise ValueError(
                    "task.ptx reads data.sources row by row, which a stream cannot give: prepare "
                    "the text"
                )
        return dataset.RlhfDataset(self._prompts, config.seed, text, config.model.n_ctx + 1)

    def build_step(self, config, platform, mesh, dataset):
        """Reads the reference and the reward as well, and records their digests in `dataset`."""
        n_parts = mesh.shape["tensor"] * mesh.shape["context"]
        if config.task.row_tokens % n_parts:
            raise ValueError(
                f"task.prompt_tokens + task.answer_tokens = {config.task.row_tokens:,} does not "
                f"divide over the {n_parts} devices of mesh.tensor x mesh.context: choose others"
            )
        weights = self._init_weights
        weights.check(weights.config, build.build(weights.config.data.tokenizer))
        base = step.build(config, platform, mesh, dataset.tokenizer.end_of_text)
        abstract = base.abstract_state(mesh).params
        with jax.set_mesh(mesh):
            self._reference = pretraining.read_params(
                abstract, weights, config.model, lambda *_: None
            )
        self._reward = rewards.open_reward(
            config.task,
            config.mesh.sharding,
            mesh,
            self._prompts.tokenizer,
            self._end_token,
            self._load_reward,
        )
        dataset.model_digests |= {
            "reference": _digest(self._reference),
            "reward": self._reward.digest,
        }
        value_model = None
        match config.task.advantage:
            case rlhf.Gae(value=rlhf.SeparateValue()):
                value_model = self._reward.model or base.model
        return RlhfStep(base.config, base.model, base.tx, base.end_of_text, value_model)

    def init_state(self, config, step, mesh, dataset, out):
        out.print(f"the reward: {self._reward.description()}")
        base = state.create(step.init_state, config, mesh)
        copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        params, value = copy(self._reference), base.value
        match config.task.advantage:
            case rlhf.Gae(value=rlhf.SeparateValue()) if self._reward.params is not None:
                value = copy(self._reward.params)  # head included, as in InstructGPT
            case rlhf.Gae(value=rlhf.SeparateValue()):
                value = base.value | params
                value = copy(value)
        ema = None if base.ema is None else copy(params)
        return base.replace(params=params, value=value, ema=ema)

    def make_program(self, context, put_on_mesh):
        # The policy and the value function begin as copies in float32; from now on these are read.
        dtype = context.step.model.execution_policy.dtype
        self._reference = inference.cast_weights(self._reference, dtype)
        self._reward.cast_weights()
        self._program = program.RlhfProgram(
            context, put_on_mesh, self._reference, self._reward, self._end_token
        )
        return self._program

    def generate_samples(self, context, state, step, is_last):
        with jax.transfer_guard_host_to_device("allow"):
            result = state if state.ema is None else state.replace(params=state.ema)
            answers, statistics, n = self._program.dev_answers(result)
            rows, masks = rewards.on_host((answers.tokens_BT, answers.mask_BT))
        texts = []
        for row, mask, score in zip(rows[:n], masks, statistics["score"], strict=False):
            stop = int(np.flatnonzero(mask)[-1]) + 2
            texts.append(f"{self._prompts.tokenizer.decode(row[:stop].tolist())}\n[{score:.3f}]")
        return texts[:N_SAMPLES]


def _digest(params: Any) -> str:
    """Sixteen hexadecimal digits of parameters, the same on any mesh."""
    text = json.dumps(trees.digests(params), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
