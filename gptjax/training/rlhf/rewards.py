"""What scores answers: a reward model, or a Python function."""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from gptjax.config import parse, rlhf
from gptjax.configs import registry
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.model import gpt, inference, scalar_gpt
from gptjax.sharding import rules, xla_options
from gptjax.training.rlhf.rollout import Rollout

# weights.reward_model.load: from path, mesh and changes of the config to a RewardModel.
LoadReward = Callable[[str, jax.sharding.Mesh, Sequence[str]], Any]

FLOAT32_MAX = float(np.finfo(np.float32).max)
SAVED = "checkpoints that were saved before are good"


class Reward(Protocol):
    """Scores the answers of a rollout.

    digest: of what computes the scores; a run that goes on must find the same. model, params: the
    model.gpt.GPT of a reward model and its parameters with a scalar head; None of a function."""

    digest: str
    model: gpt.GPT | None
    params: Any

    def __call__(self, rollout: Rollout, lengths_B: jax.Array) -> jax.Array:
        """Returns the score of each answer, float32 (B,), of its first lengths_B tokens. Raises
        ValueError, in one line, if there is none."""
        ...

    def description(self) -> str:
        """Describes the reward for display."""
        ...

    def cast_weights(self) -> None:
        """Keeps the parameters in the dtype in which they are read, and no longer in float32: the
        scores stay the same."""
        ...


@dataclasses.dataclass
class FunctionReward:
    """The reward of a Python function. name: FILE.py:FUNCTION. put_rows: places a host array (B,)
    on the mesh as the rows of a batch."""

    name: str
    function: Callable[[list[str], list[str]], Sequence[float]]
    tokenizer: Tokenizer
    stop: int | None
    digest: str
    put_rows: Callable[[np.ndarray], jax.Array]
    model: gpt.GPT | None = None
    params: Any = None

    def description(self) -> str:
        """As Reward.description."""
        return f"the function {self.name}"

    def cast_weights(self) -> None:
        """As Reward.cast_weights: there are none."""

    def __call__(self, rollout: Rollout, lengths_B: jax.Array) -> jax.Array:
        """As Reward.__call__."""
        rows, firsts, lengths = on_host((rollout.tokens_BT, rollout.first_B, lengths_B))
        prompts, answers = [], []
        for row, first, n in zip(rows.tolist(), firsts.tolist(), lengths.tolist(), strict=True):
            ids = row[first : first + n]
            if ids and ids[-1] == self.stop:
                del ids[-1]
            prompts.append(self.tokenizer.decode(row[:first]))
            answers.append(self.tokenizer.decode(ids))
        return self.put_rows(self._compute(prompts, answers))

    def _compute(self, prompts: list[str], answers: list[str]) -> np.ndarray:
        """The function's values, as float32. ValueError for what is no number."""
        try:
            result = self.function(prompts, answers)
        # SystemExit, so that a function cannot end the run as if it were finished.
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"the reward {self.name} raised {type(error).__name__}"
                f"{parse.one_line(f': {error}', 200) if str(error) else ''}; {SAVED}"
            ) from error
        try:
            values = list(result)
        except TypeError:
            raise ValueError(
                f"the reward {self.name} returned {parse.quote(result)}: it must return one "
                f"number for each answer; {SAVED}"
            ) from None
        if len(values) != len(answers):
            raise ValueError(
                f"the reward {self.name} returned {len(values)} values for {len(answers)} "
                f"answers: it must return one number for each; {SAVED}"
            )
        for value, answer in zip(values, answers, strict=True):
            try:
                is_number = math.isfinite(value) and abs(value) <= FLOAT32_MAX
            except (TypeError, OverflowError):
                is_number = False
            if not is_number:
                raise ValueError(
                    f"the reward {self.name} returned {parse.quote(value)} for the answer "
                    f"{parse.quote(answer)}: it must return finite numbers, of at most 3.4e38; "
                    f"{SAVED}"
                )
        return np.array([float(value) for value in values], np.float32)


def load_function(
    spec: rlhf.PythonFunction,
    tokenizer: Tokenizer,
    stop: int | None,
    put_rows: Callable[[np.ndarray], jax.Array],
) -> FunctionReward:
    """Returns the reward of a function; its digest is that of its file. Raises ValueError, in one
    line, if there is no such function."""
    function, source = registry.function(spec.name)
    digest = hashlib.sha256(source).hexdigest()[:16]
    return FunctionReward(spec.name, function, tokenizer, stop, digest, put_rows)


def on_host(tree: Any) -> Any:
    """Returns the values of a tree of arrays, which may be spread over processes."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


def jit_scores(model: gpt.GPT, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """Returns the jitted scores(params, tokens, last) of a reward model (scalar_gpt.scores)."""
    options = xla_options.options(mesh.devices.flat[0])
    return jax.jit(functools.partial(scalar_gpt.scores, model), compiler_options=options)


class ModelReward:
    """The reward of a reward model. source: a weights.reward_model.RewardModel of the same mesh."""

    def __init__(self, source: Any):
        self._description, self.digest = source.description(), source.digest
        self.model, self.params = source.model, source.params
        self._scores = jit_scores(source.model, source.mesh)

    def description(self) -> str:
        """As Reward.description."""
        return self._description

    def cast_weights(self) -> None:
        """As Reward.cast_weights."""
        self.params = inference.cast_weights(self.params, self.model.execution_policy.dtype)

    def __call__(self, rollout: Rollout, lengths_B: jax.Array) -> jax.Array:
        """As Reward.__call__."""
        last_B = last_index(rollout.first_B, lengths_B)
        return self._scores(self.params, rollout.tokens_BT, last_B)


@jax.jit
def last_index(first_B: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Returns the index of the last token of each text. One program, which has the 1 in it: the
    training loop forbids implicit transfers of numbers."""
    return first_B + lengths_B - 1


def of_model(source: Any, text: str, row_tokens: int, tokenizer: Tokenizer) -> ModelReward:
    """Returns the reward of a reward model, a weights.reward_model.RewardModel, of rows of
    row_tokens tokens. text: "chat" or "plain". Raises ValueError, in one line, if it does not score
    texts that are written so."""
    if source.tokenizer.digest != tokenizer.digest:
        raise ValueError(
            f"the reward model in {source.path} reads tokens of another tokenizer "
            f"({source.config.data.tokenizer}): train it with --init=the model that is to learn"
        )
    if source.task.text != text:
        raise ValueError(
            f"the reward model in {source.path} scores texts of task.text={source.task.text}, and "
            f"this run has those of task.text={text}: train another"
        )
    if source.config.model.n_ctx < row_tokens:
        raise ValueError(
            f"a prompt and its answer have up to {row_tokens:,} tokens, more than the context of "
            f"the reward model in {source.path}, {source.config.model.n_ctx:,}: lower "
            "task.prompt_tokens, task.answer_tokens or, of gptjax.sft, task.choose.answer_tokens"
        )
    return ModelReward(source)


def open_reward(
    task: rlhf.Rlhf,
    sharding: str,
    mesh: jax.sharding.Mesh,
    tokenizer: Tokenizer,
    end_token: int | None,
    load_model: LoadReward,
) -> Reward:
    """Returns the reward of a task on a mesh. sharding: mesh.sharding of the config. end_token: id
    of the token that ends an answer. Raises ValueError, in one line, if it cannot be had."""
    match task.reward:
        case rlhf.PythonFunction() as spec:
            table = rules.PRESETS[sharding].activations

            def put_rows(x_B: np.ndarray) -> jax.Array:
                return rules.put_on_mesh(x_B, "B", table, mesh)

            return load_function(spec, tokenizer, end_token, put_rows)
        case rlhf.RewardModel(path=path):
            source = load_model(path, mesh, (f"mesh.sharding={sharding}",))
            return of_model(source, task.text, task.row_tokens, tokenizer)
