"""What `import gptjax` offers: configs by name, training, one training step, and models from
anywhere.

>>> import gptjax
>>> config = gptjax.config("nano", "train.steps=100")
>>> config.train.steps
100

The examples run in the tests; gptjax/__init__.py imports this file when a name is first used."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import arguments
from gptjax.config import find_files, overrides, parse
from gptjax.config.schema import Config
from gptjax.configs import registry
from gptjax.data.tokenizers import build
from gptjax.distributed import processes
from gptjax.language_model import LanguageModel
from gptjax.report import events
from gptjax.runtime import run_dir as run_dirs
from gptjax.sharding import device_mesh, rules, xla_options
from gptjax.training import loop, pretraining, resume, state, step
from gptjax.training.state import TrainState
from gptjax.weights import load as weights_load
from gptjax.weights import open_model, reward_model

StepFn = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def configs() -> dict[str, Config]:
    """Every recipe by its name: the papers' models and those for a laptop.

    >>> gptjax.configs()["gpt3_175b"].model.n_layers
    96
    """
    return {name: registry.config(name) for name in registry.config_names()}


def config(name: str, *assignments: str) -> Config:
    """The recipe of that name or alias, with fields changed as --set changes them.

    A Config is frozen: it may be changed further by gptjax.config.overrides.override(config,
    "seed=1") and dataclasses.replace. ValueError, with the nearest names, for a name or field that
    there is not.

    >>> gptjax.config("gpt3_small", "train.steps=10", "model.attention=Dense()").train.steps
    10
    """
    if not isinstance(name, str):
        raise ValueError(f"{parse.quote(name)}: give the name of a config, as 'nano'")
    return overrides.override(registry.config(name), *assignments)


def load(
    path: str | Path, *assignments: str, step: int | None = None, dtype: str | None = None
) -> LanguageModel:
    """The model that lies at `path`: a run of gptjax, a folder for Hugging Face's transformers
    (GPT-1, GPT-2, GPT-Neo as safetensors), or OpenAI's own TensorFlow files. Also
    gs://BUCKET/FOLDER of a run.

    assignments change fields of its config, as long as the parameters compute the same:
    "mesh.tensor=2", "compute.attention_kernel=reference", of weights without one
    "data.tokenizer=Bytes()".
    step: of which step a run's checkpoint is to be (default: the newest that is whole). dtype: in
    which the model computes, "float32" or "bfloat16" (default: bfloat16 on TPU and GPU, float32 on
    CPU); the parameters are float32.

    The parameters are placed on all devices that jax has, as config.mesh says. What is skipped, as
    a damaged checkpoint, is a warning. ValueError, in one line, if there is no language model,
    or one that was fine-tuned to classify.

    >>> gptjax.load("runs/smoke", step=1)
    LanguageModel(smoke, 34,720 parameters, a run of gptjax, step 1)
    """
    if step is not None:
        arguments.check_int("step", step, 0, 2**31 - 1)
    if dtype is not None:
        assignments = (*assignments, f"compute.dtype={dtype}")
    loaded = open_model.open_model(path, assignments, log=warnings.warn, checkpoint_step=step)
    return LanguageModel(**vars(loaded))


def load_reward_model(path: str | Path, *assignments: str) -> reward_model.RewardModel:
    """The reward model that a run of gptjax.reward has made, on all devices that jax has; also
    gs://BUCKET/FOLDER.

    assignments change fields of its config, as those of `load`. score_answers(conversations) are
    the scores of their last messages. What is skipped, as a damaged checkpoint, is a warning.
    ValueError, in one line, if there is no reward model, or if its run has not ended.

    >>> gptjax.load_reward_model("runs/smoke")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: runs/smoke is no reward model: python -m gptjax.reward --config=reward ...
    """
    return reward_model.load(path, assignments=assignments, log=warnings.warn)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's directory, or its gs://BUCKET/FOLDER.

    >>> run = gptjax.Run("runs/smoke")
    >>> run.config.name, [line["step"] for line in run.metrics if "loss" in line]
    ('smoke', [1, 2])
    """

    path: str | Path

    @property
    def config(self) -> Config:
        """The run's config."""
        return run_dirs.load_config(run_dirs.directory(str(self.path)))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: {"step", "tokens", "loss" (nats a token), "lr",
        "tokens_per_s", ...} of each step, {"step", "tokens", "validation_loss", ...} of each
        evaluation."""
        return events.read(run_dirs.directory(str(self.path)))

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The model of its newest checkpoint."""
        return load(self.path)


def train(
    config: Config, run_dir: str | Path | None = None, *, init: str | Path | None = None
) -> Run:
    """Train a GPT on text, or go on with a run that was interrupted: python -m gptjax.train in this
    process.

    run_dir: where the run goes, or lies (default: runs/NAME of the config), or gs://BUCKET/FOLDER.
    init: a run or weights to begin with (default: drawn from config.seed). Progress is shown on
    standard output; Ctrl-C saves and returns, and the same call goes on.

    ValueError, in one line, for what cannot be trained; RuntimeError if the run gave up because its
    updates were not finite.

    >>> config = gptjax.config("smoke", "train.steps=2")
    >>> run = gptjax.train(config, "runs/two_steps")  # doctest: +ELLIPSIS
    token...
    >>> run.metrics[-1]["step"], run.model.description
    (2, 'step 2')
    """
    _check_config(config)
    path = str(run_dir) if run_dir is not None else str(run_dirs.directory(None, config.name))
    request = resume.Request(run_dirs.directory(path), config)
    objective = pretraining.PretrainingObjective(
        None if init is None else str(init), weights_load.load
    )
    with find_files.list_once(), processes.initialize(None, config, 0) as process_group:
        status = loop.train(request, run_dirs.bucket_url(path), process_group, 0, objective)
    if status:
        raise RuntimeError(
            f"{path} stopped: too many updates in a row were not finite; see what it printed"
        )
    return Run(path)


def make_train_step(config: Config, params: Any = None) -> tuple[TrainState, StepFn]:
    """A state before step 0, and the step: state, metrics = step_fn(state, tokens), on tokens of
    one's own.

    params: begin with these, as model.params of `load` (default: drawn from config.seed); they are
    copied. tokens: whole numbers (B, n_ctx + 1), a row of inputs and their next tokens each; or (M,
    B, n_ctx + 1), M microbatches whose gradients are averaged. B is any number that the mesh
    divides; the learning rate follows config.train.schedule by the tokens that were read. metrics:
    scalars on the device, "loss" (nats a token, of the batch before the step), "lr", "grad_norm",
    "noise_scale" (of several microbatches), "rows", "skipped". The step is compiled once for each
    shape of tokens, and consumes the state: use the new one.

    ValueError, in one line, for tokens of another shape or type, ids that the model has not, and
    parameters of another model.

    >>> import numpy as np
    >>> state, step_fn = gptjax.make_train_step(gptjax.config("smoke"))
    >>> state, metrics = step_fn(state, np.zeros((8, 33), np.int32))
    >>> 5 < float(metrics["loss"]) < 6, int(state.step)
    (True, 1)
    """
    _check_config(config)
    xla_options.configure_runtime()
    mesh = device_mesh.make_mesh(config.mesh)
    rules.check(config, mesh)
    end_of_text = None
    if config.data.separates_documents:
        end_of_text = build.build(config.data.tokenizer).end_of_text
    train_step = step.build(config, jax.devices()[0].platform, mesh, end_of_text)
    if params is not None:
        shapes = state.abstract_state(config, train_step.model, train_step.tx, mesh)
        params = _copy_params(params, shapes.params)
    with jax.set_mesh(mesh):
        train_state = state.init_sharded(config, train_step.model, train_step.tx, mesh)
    if params is not None:
        train_state = train_state.replace(params=params)
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        static_argnums=2,
        compiler_options=xla_options.options(
            mesh.devices.flat[0], train_step.model.execution_policy.dtype
        ),
    )
    activations = rules.PRESETS[config.mesh.sharding].activations

    def step_fn(state: TrainState, tokens: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        tokens_MBT = _check_rows(config, mesh, tokens)
        with jax.set_mesh(mesh):
            on_mesh = rules.put_on_mesh(tokens_MBT, "MB1", activations, mesh)
            return jitted(state, on_mesh, len(tokens_MBT))

    return train_state, step_fn


def _copy_params(params: Any, expected: Any) -> Any:
    """The parameters placed as `expected` are. ValueError if they are of another model."""
    shapes, expected_shapes = (jax.tree.map(lambda x: x.shape, tree) for tree in (params, expected))
    if shapes != expected_shapes:
        raise ValueError(
            "params are of another model than the config's: give those of a model with its sizes"
        )
    return jax.tree.map(
        lambda x, like: jax.device_put(jnp.array(x, like.dtype, copy=True), like.sharding),
        params,
        expected,
    )


def _check_rows(config: Config, mesh: jax.sharding.Mesh, tokens: Any) -> np.ndarray:
    """int32 (M, B, n_ctx + 1) of what a user gave. ValueError if it cannot be a batch of this
    config."""
    array, length = arguments.as_ids(tokens, config.model.n_vocab), config.model.n_ctx + 1
    if array.ndim not in (2, 3) or array.shape[-1] != length:
        raise ValueError(
            f"tokens of shape {array.shape}: give (B, {length}) or (M, B, {length}), "
            f"n_ctx + 1 = {length} tokens a row"
        )
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if array.shape[-2] % shards:
        raise ValueError(
            f"{array.shape[-2]} rows do not divide over mesh.data x mesh.fsdp = {shards} devices: "
            "give a multiple"
        )
    return array if array.ndim == 3 else array[None]


def _check_config(config: Config) -> None:
    """ValueError unless it is a Config, of text."""
    if not isinstance(config, Config):
        raise ValueError(
            f"{parse.quote(config)}: give a Config, as gptjax.config('nano') returns it"
        )
    if config.task is not None:
        raise ValueError(
            f"{config.name} is fine-tuned on a task: python -m gptjax.finetune does that"
        )
