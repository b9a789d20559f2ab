"""A trained model from anywhere, opened to be asked: its config, tokenizer, mesh and parameters."""

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
class Opened:
    """kind: what it was read from, in words; description: which of it, the step of a run's checkpoint."""

    kind: str
    config: Config
    text: build.Tokenizer
    mesh: jax.sharding.Mesh
    step: step.Step
    params: Any
    description: str = ""

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of parameters and tokenizer, wherever they were read from."""
        told = trees.digests(self.params) | {"tokenizer": self.text.digest}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def opened(
    path: Path | str,
    assignments: Sequence[str],
    show: Callable[[str], None],
    say: Callable[[str], None] = print,
    checkpoints: str | None = None,
) -> Opened:
    """What `weights.found` finds there, with its parameters placed on a mesh of all devices. show: is told how far it is; say and
    checkpoints: as there. ValueError, in one line, if it cannot be."""
    xla_options.begin()
    there = load.found(path, assignments, None, say, checkpoints)
    config = there.config
    text = build.tokenizer(config.data.tokenizer)
    there.check(config, text)
    mesh = device_mesh.mesh(config.mesh)
    rules.check(config, mesh)
    built = step.build(config, jax.devices()[0].platform, mesh, text.end_of_text)
    wanted = state.abstract(config, built.model, built.tx, mesh).params
    params = there.params(wanted, lambda done, name: show(f"{done:4.0%} read: {name}"))
    return Opened(there.kind, config, text, mesh, built, params, there.description())
