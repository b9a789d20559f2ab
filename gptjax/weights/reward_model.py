"""The reward model that a run of gptjax.reward has made: its parameters, and the gain and bias that
the end of the run has given its scores.

    model = reward_model.load("runs/reward")  # a one-line ValueError if none is there
    model.score([[1, 2, 3], [4, 5]])  # float32 scores of texts given as ids
    model.score_answers([messages])  # of a conversation's last answer
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gptjax.config import parse
from gptjax.config.chat import Rankings
from gptjax.config.schema import Config
from gptjax.data import conversations
from gptjax.data.tokenizers import build, chat_template
from gptjax.model import gpt, scalar_head
from gptjax.report import sync
from gptjax.runtime import checksums, run_dir
from gptjax.sharding import device_mesh, rules, trees, xla_options
from gptjax.training import reward, reward_rows, state
from gptjax.weights.load import RunWeights


@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model on a mesh. model: a scalar_gpt.ScalarGPT, for scalar_gpt.scores(model, params,
    ...). step: of the checkpoint."""

    path: Path
    config: Config
    tokenizer: build.Tokenizer
    mesh: jax.sharding.Mesh
    model: gpt.GPT
    params: Any
    step: int

    @property
    def task(self) -> Rankings:
        """How its texts are written."""
        assert isinstance(self.config.task, Rankings)
        return self.config.task

    @functools.cached_property
    def template(self) -> conversations.Template | None:
        """How conversations are written; None: texts are plain."""
        return chat_template.of(self.tokenizer) if self.task.text == "chat" else None

    def encode_answer(
        self, messages: Sequence[conversations.Message], ended: bool = False
    ) -> list[int]:
        """Returns the ids of a prompt and its answer, the last message, as training.reward_rows
        has them. Raises Unusable if they cannot be scored."""
        n_ctx = self.config.model.n_ctx
        return reward_rows.encode_answer(self.tokenizer, self.template, n_ctx, messages, ended)

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the parameters, gain and bias among them, and of the
        tokenizer; the same on any mesh."""
        digests = trees.digests(self.params) | {"tokenizer": self.tokenizer.digest}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]

    def description(self) -> str:
        """A line with what it is, for display."""
        return f"{self.path}, step {self.step:,}, digest {self.digest}"

    def score(
        self, texts: Sequence[Sequence[int]], progress: Callable[[int], None] = lambda n: None
    ) -> np.ndarray:
        """Returns the scores float32 (texts,) of texts, given as ids; none depends on the other
        texts. progress: called with the number of texts that are done. Raises ValueError for a text
        that is empty or longer than the context."""
        rows = reward_rows.pack_texts(texts, self.config.model.n_ctx)
        with jax.set_mesh(self.mesh):
            return self._text_scores(self.params, rows, progress)

    def score_answers(self, chats: Sequence[Sequence[conversations.Message]]) -> np.ndarray:
        """Returns the scores float32 (chats,) of the last messages, each an answer to those
        before it; of plain texts these are one message of the user. Raises ValueError as
        `encode_answer`."""
        return self.score([self.encode_answer(messages) for messages in chats])

    @functools.cached_property
    def _text_scores(self) -> reward.TextScores:
        return reward.TextScores(self.config, self.model, self.mesh)


def load(
    path: Path | str,
    mesh: jax.sharding.Mesh | None = None,
    assignments: Sequence[str] = (),
    log: Callable[[str], None] = print,
) -> RewardModel:
    """Returns the reward model of the run at `path` (also gs://BUCKET/FOLDER), sharded over `mesh`
    by the rules of its config's mesh.sharding (default: all devices, by its config's mesh).

    assignments: change fields of its config that do not belong to the parameters, such as
    "mesh.sharding=fsdp". log: called for what is skipped, such as a damaged checkpoint. Raises
    ValueError, in one line, if there is no reward model, or if its run has not ended."""
    xla_options.configure_runtime()
    bucket = run_dir.bucket_url(str(path))
    directory = parse.path(str(path)) if bucket is None else run_dir.directory(str(path))
    sync.BucketSync(directory, bucket).download()
    checkpoints = directory / "checkpoints" if bucket is None else f"{bucket}/checkpoints"
    weights = _RewardWeights(directory, assignments, checkpoints, log)
    result = _read_result(directory)
    config = weights.config
    tokenizer = build.build(config.data.tokenizer)
    weights.check(config, tokenizer)
    mesh = device_mesh.make_mesh(config.mesh) if mesh is None else mesh
    rules.check(config, mesh)
    train_step = reward.build(config, jax.devices()[0].platform, mesh, None)
    abstract = state.abstract_state(config, train_step.model, train_step.tx, mesh).params
    params = weights.load_params(abstract)
    if trees.digests(params[scalar_head.NAME]) != result["head"]:
        raise ValueError(
            f"{directory / run_dir.CHOSEN} is of other parameters than the checkpoint of step "
            f"{result['step']}: remove it, and the command of the training writes it again"
        )
    params = reward.with_scale(params, {name: result[name] for name in ("gain", "bias")})
    return RewardModel(directory, config, tokenizer, mesh, train_step.model, params, result["step"])


class _RewardWeights(RunWeights):
    kind = "a reward model of gptjax"

    def _check_task(self) -> None:
        if not isinstance(self._run_config.task, Rankings):
            raise ValueError(
                f"{self.path} is no reward model: python -m gptjax.reward --config=reward "
                f"--init={self.path} makes one"
            )


def _read_result(directory: Path) -> dict[str, Any]:
    """What the end of the training has written. ValueError if the run has not ended."""
    file = directory / run_dir.CHOSEN
    if not file.is_file():
        raise ValueError(
            f"{directory} has no {run_dir.CHOSEN}: the training of this reward model has not "
            "ended; the same command continues it"
        )
    return checksums.read(file)
