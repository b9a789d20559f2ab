"""A trained model from anywhere, opened for inference: its config, tokenizer, mesh and
parameters.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from gptjax.config.schema import Config
from gptjax.data.tokenizers import build
from gptjax.sharding import device_mesh, rules, trees, xla_options
from gptjax.training import state, step
from gptjax.weights import load


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """kind: what it was read from, in words; description: which of it, the step of a run's
    checkpoint."""

    kind: str
    config: Config
    tokenizer: build.Tokenizer
    mesh: jax.sharding.Mesh
    step: step.TrainStep
    params: Any
    description: str = ""

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of parameters and tokenizer, wherever they were read from."""
        digests = trees.digests(self.params) | {"tokenizer": self.tokenizer.digest}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def open_model(
    path: Path | str,
    assignments: Sequence[str],
    progress: Callable[[str], None],
    log: Callable[[str], None] = print,
    checkpoints: str | None = None,
) -> LoadedModel:
    """What `load.load` finds there, with its parameters placed on a mesh of all devices. progress:
    called with a progress line; log and checkpoints: as there. ValueError, in one line, if it
    cannot be.
    """
    xla_options.configure_runtime()
    weights = load.load(path, assignments, None, log, checkpoints)
    config = weights.config
    tokenizer = build.build(config.data.tokenizer)
    weights.check(config, tokenizer)
    mesh = device_mesh.make_mesh(config.mesh)
    rules.check(config, mesh)
    train_step = step.build(config, jax.devices()[0].platform, mesh, tokenizer.end_of_text)
    abstract_params = state.abstract_state(config, train_step.model, train_step.tx, mesh).params
    params = weights.load_params(
        abstract_params, lambda done, name: progress(f"{done:4.0%} read: {name}")
    )
    return LoadedModel(
        weights.kind, config, tokenizer, mesh, train_step, params, weights.description()
    )
