"""A trained model from anywhere, ready for inference: its config, tokenizer, mesh and parameters.

Every program that reads a language model does it here: sample, evaluate, lm_eval, convert, finetune
and `gptjax.load`. A fine-tuned classifier is none: gptjax.classify reads it."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from gptjax.config import parse
from gptjax.config.schema import Config
from gptjax.data.tokenizers import build, chat_template
from gptjax.model import inference
from gptjax.report import sync
from gptjax.runtime import run_dir
from gptjax.sharding import device_mesh, rules, trees, xla_options
from gptjax.training import state, step
from gptjax.weights import load

PrintFn = Callable[[str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """kind: what it was read from, in words; description: which of it, the step of a run's
    checkpoint."""

    kind: str
    config: Config
    tokenizer: build.Tokenizer
    mesh: jax.sharding.Mesh
    train_step: step.TrainStep
    params: Any
    description: str = ""

    @functools.cached_property
    def inference_model(self) -> inference.InferenceModel:
        """The model with a KV cache, its weights in the type of computation: a copy, made when
        first needed."""
        return inference.prepare(self.train_step.model, self.params)

    @functools.cached_property
    def chat_template(self) -> chat_template.ChatTemplate | chat_template.TurnTemplate:
        """How the model was trained to read a conversation. ValueError if it was not."""
        return chat_template.of(self.tokenizer)

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of parameters and tokenizer, wherever they were read from."""
        digests = trees.digests(self.params) | {"tokenizer": self.tokenizer.digest}
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def open_model(
    path: Path | str,
    assignments: Sequence[str] = (),
    progress: PrintFn = lambda line: None,
    log: PrintFn = print,
    checkpoint_step: int | None = None,
) -> LoadedModel:
    """The model at `path`: a run (also gs://BUCKET/FOLDER), Hugging Face's or OpenAI's files,
    placed on a mesh of all devices.

    assignments change fields of its config, as "mesh.tensor=2"; progress is called with how far the
    reading is, log with what is skipped, as a damaged checkpoint. checkpoint_step: of which step a
    run's checkpoint is to be (default: the newest that is whole). ValueError, in one line, if there
    is no language model, or not of that config or step."""
    xla_options.configure_runtime()
    bucket = run_dir.bucket_url(str(path))
    directory = parse.path(str(path)) if bucket is None else run_dir.directory(str(path))
    sync.BucketSync(directory, bucket).download()
    checkpoints = None if bucket is None else f"{bucket}/checkpoints"
    return read_model(
        load.load(directory, assignments, None, log, checkpoints, checkpoint_step), progress
    )


def read_model(
    weights: load.Weights, progress: PrintFn = lambda line: None, config: Config | None = None
) -> LoadedModel:
    """Opened weights -> the model. config: the weights' own with another mesh or other ways to
    compute. ValueError if the tokenizer or the mesh is none for them; nothing is read then."""
    config = config or weights.config
    tokenizer = build.build(config.data.tokenizer)
    weights.check(config, tokenizer)
    mesh = device_mesh.make_mesh(config.mesh)
    rules.check(config, mesh)
    train_step = step.build(config, jax.devices()[0].platform, mesh, tokenizer.end_of_text)
    params = weights.load_params(
        state.abstract_state(config, train_step.model, train_step.tx, mesh).params,
        lambda done, name: progress(f"{done:4.0%} read: {name}"),
    )
    return LoadedModel(
        weights.kind, config, tokenizer, mesh, train_step, params, weights.description()
    )
