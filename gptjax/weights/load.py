"""Loads weights from anywhere: a run of gptjax, Hugging Face's safetensors, OpenAI's own files.
`load` detects what a path holds.

    weights = load.load("gpt2/")  # a one-line ValueError if nothing readable is there
    weights.config  # a whole Config, with the model of the weights
    weights.check(config, tokenizer)  # ValueError if it is not the tokenizer of the weights
    params = weights.load_params(abstract_params)  # sharded like state.abstract_state(...).params
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from gptjax.config import continuation, data, overrides, parse, schema
from gptjax.config.chat import Rankings
from gptjax.config.classification import ClassificationTask
from gptjax.config.rlhf import Rlhf
from gptjax.data.tokenizers import build
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import run_dir
from gptjax.sharding import trees
from gptjax.training import checkpoint
from gptjax.weights import (
    gguf_tensors,
    hf_config,
    hf_families,
    infer_config,
    name_maps,
    openai,
    safetensors,
    split_tensors,
    tokenizer_files,
)

ProgressFn = Callable[[float, str], None]  # takes the fraction done and the last leaf's name


class Weights(Protocol):
    """Weights at a path, opened but not loaded. kind: a description such as "a run of gptjax"."""

    path: Path
    kind: str
    config: schema.Config

    def check(self, config: schema.Config, tokenizer: Tokenizer) -> None:
        """Raises ValueError unless `config`'s model can begin with these weights and `tokenizer` is
        theirs. Its context and rotary positions may be others (config/continuation.py); for a
        folder's weights its vocabulary may be larger.
        """
        ...

    def description(self) -> str:
        """Describes the weights for display; for a run whose parameters were read, the step of its
        checkpoint.
        """
        ...

    def load_params(
        self, abstract_params: Any, advance: ProgressFn = lambda done, leaf: None
    ) -> Any:
        """Returns the parameters with the shardings of `abstract_params`, a tree of
        ShapeDtypeStructs, reading one leaf at a time and each device's part separately. Its token
        table may have more rows than the stored one, which are zero, and its position table fewer.
        """
        ...


def load(
    path: Path | str,
    assignments: Sequence[str] = (),
    recipe: str | None = None,
    log: Callable[[str], None] = print,
    checkpoints: str | None = None,
    step: int | None = None,
) -> Weights:
    """What lies at `path`: a run's directory, a folder of weights, or a .safetensors file with its
    config.json next to it.

    For weights that are not a run, the config is the registry's that has their model, else the one
    named `recipe` (default: the architecture's) with their sizes; `assignments` change fields of
    it. log: called for what is skipped: a damaged checkpoint, padding rows. checkpoints: where a
    run's are, if not in it. step: the step of a run's checkpoint (default: the newest intact one).
    ValueError, in one line, if nothing there can be read.
    """
    path = parse.path(str(path))
    if checkpoints is not None or (path / "checkpoints").is_dir():
        return RunWeights(path, assignments, checkpoints or path / "checkpoints", log, step)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a run, or a folder of weights")
    if step is not None:
        raise ValueError(
            f"{path} is no run: it has no checkpoint of step {step}; leave the step out"
        )
    if safetensors.has_weights(path):
        return _load_hugging_face(path, assignments, recipe, log)
    if path.suffix == gguf_tensors.SUFFIX:
        return _load_gguf(path, assignments, recipe, log)
    if openai.has_weights(path):
        return _load_openai(path, assignments, recipe, log)
    if run_dir.exists(path):
        raise ValueError(
            f"{path} has no checkpoint yet; let python -m gptjax.train run until it saves one"
        )
    if any(
        (path / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")
    ):
        raise ValueError(
            f"{path} has PyTorch's pickle alone: load it with transformers and save_pretrained it, "
            "which writes safetensors"
        )
    raise ValueError(
        f"no weights are in {path}: it has neither checkpoints/ of a run, nor "
        f"{safetensors.SINGLE_FILE}, nor {safetensors.INDEX_FILE}, "
        f"nor a TensorFlow checkpoint, nor {openai.SHAPES_FILE}"
    )


class RunWeights:
    """The checkpoint of `step` of a run of gptjax, else the one that the run has chosen, else the
    newest that is whole."""

    kind = "a run of gptjax"

    def __init__(
        self,
        path: Path,
        assignments: Sequence[str],
        checkpoints: Path | str,
        log: Callable[[str], None],
        step: int | None = None,
    ):
        self.path, self._run_config, self._wanted_step = path, run_dir.load_config(path), step
        if step is None:
            self._wanted_step = run_dir.chosen_step(path)
        self._step: int | None = None  # of the parameters that were read
        self._check_task()
        tokenizer = build.spec_in(self._run_config.data.tokenizer, path)
        config = dataclasses.replace(
            self._run_config, data=dataclasses.replace(self._run_config.data, tokenizer=tokenizer)
        )
        self.config = overrides.override(config, *assignments)
        lines = [
            line
            for line in run_dir.diff(config, self.config)
            if not line.startswith("data.tokenizer")
        ]
        if lines:
            raise ValueError(
                f"{'; '.join(lines)}: these fields belong to the parameters of {path} and cannot "
                "be changed"
            )
        self._checkpoint_reader = checkpoint.CheckpointReader(checkpoints, log)

    def _check_task(self) -> None:
        """Raises ValueError for a run that is no language model."""
        match self._run_config.task:
            case ClassificationTask():
                raise ValueError(
                    f"{self.path} is a classifier fine-tuned on {self._run_config.name} and cannot "
                    "generate text; its predictions are in predictions/; give the pre-trained run"
                )
            case Rankings():
                raise ValueError(
                    f"{self.path} is a reward model and cannot generate text; it scores texts: "
                    f"python -m gptjax.reward --model={self.path} --score=FILE"
                )

    def description(self) -> str:
        """As Weights.description."""
        return self.kind if self._step is None else f"step {self._step:,}"

    def _check_config(self, metadata: dict[str, Any]) -> None:
        """Raises ValueError if config.json differs from the config saved with the checkpoint in a
        field that affects the parameters' function.
        """
        saved_config = overrides.unflatten(
            parse.member(metadata, "config", dict, f"the checkpoint in {self.path}")
        )
        # train --tokens moves the length before it saves the next checkpoint, and no parameter
        # computes anything else by it.
        lines = [
            line
            for line in run_dir.diff(saved_config, self._run_config)
            if not line.startswith(run_dir.LENGTH_FIELDS)
        ]
        if lines:
            raise ValueError(
                f"{self.path / 'config.json'} is not the config that its checkpoint was saved with "
                f"({'; '.join(lines)}): restore the original file"
            )

    def check(self, config: schema.Config, tokenizer: Tokenizer) -> None:
        """As Weights.check."""
        continuation.check(self.path, self.config.model, config.model, larger_vocab=False)
        metadata = self._checkpoint_reader.metadata(self._wanted_step)
        self._check_config(metadata)
        saved_digest = metadata["tokenizer"]
        if saved_digest != tokenizer.digest:
            raise ValueError(
                f"{self.path} was trained with a tokenizer of digest {saved_digest[:12]}, but "
                f"{config.data.tokenizer} "
                f"is {tokenizer.digest[:12]}: set data.tokenizer to {self.config.data.tokenizer}, "
                "with its original files"
            )

    def load_params(
        self, abstract_params: Any, advance: ProgressFn = lambda done, leaf: None
    ) -> Any:
        """As Weights.load_params."""
        steps = None if self._wanted_step is None else [self._wanted_step]
        match self._run_config.task:
            case Rlhf(ema=float()):
                name = "ema"
            case _:
                name = "params"
        restored = self._checkpoint_reader.restore(
            {name: abstract_params}, prefix=f"{name}/", steps=steps
        )
        if restored is None:
            raise ValueError(
                f"{self.path} has no checkpoint yet; let python -m gptjax.train run until it saves "
                "one"
            )
        self._step, params, metadata = restored
        self._check_config(metadata)
        advance(1.0, "params")
        return params[name]


class FolderWeights:
    """Weights in another project's format, read tensor by tensor.

    Raises ValueError if a tensor is missing, unexpected or of another shape than `config` implies.
    Of a token table with more rows than `config` has ids, the first are read, which is reported to
    `log`.
    """

    def __init__(
        self,
        tensors: safetensors.Tensors,
        kind: str,
        layout: name_maps.Layout,
        config: schema.Config,
        log: Callable[[str], None],
    ):
        self.path, self.kind, self.config = tensors.path, kind, config
        self._tensors, self._layout, self._log = tensors, layout, log
        name_maps.check(tensors, layout, config.model)

    def description(self) -> str:
        """As Weights.description."""
        return self.kind

    def check(self, config: schema.Config, tokenizer: Tokenizer) -> None:
        """As Weights.check."""
        continuation.check(self.path, self.config.model, config.model, larger_vocab=True)
        # A GGUF file has a tokenizer of its own, whatever lies next to it.
        is_gguf = self.path.suffix == gguf_tensors.SUFFIX
        extra_symbols = tokenizer_files.check(
            self.path if is_gguf else _containing_folder(self.path),
            self.config.model.n_vocab,
            config.data.tokenizer,
            tokenizer,
        )
        rows = self._tensors.shapes[name_maps.token_table_name(self._layout)][0]
        if rows > self.config.model.n_vocab:
            self._log(
                f"{self.path}: only the first {self.config.model.n_vocab:,} of the {rows:,} rows "
                "of its token table are used"
            )
        if extra_symbols:
            self._log(
                f"{self.path}: its tokenizer's {parse.quote(extra_symbols)[1:-1]} is left out, "
                f"which {config.data.tokenizer} does not have"
            )

    def load_params(
        self, abstract_params: Any, advance: ProgressFn = lambda done, leaf: None
    ) -> Any:
        """As Weights.load_params."""
        leaves, sizes = [], [leaf.size * 4 for leaf in jax.tree.leaves(abstract_params)]
        for name, leaf in trees.named_leaves(abstract_params):
            sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
            read_slice = functools.partial(self._read_part, name, leaf)
            leaves.append(
                jax.block_until_ready(
                    jax.make_array_from_callback(leaf.shape, sharding, read_slice)
                )
            )
            advance(sum(sizes[: len(leaves)]) / sum(sizes), name)
        return jax.tree.unflatten(jax.tree.structure(abstract_params), leaves)

    def _read_part(self, name: str, leaf: jax.ShapeDtypeStruct, index: Any):
        cuts = tuple(
            slice(*index_slice.indices(n)[:2])
            for index_slice, n in zip(index, leaf.shape, strict=True)
        )
        return name_maps.read_part(
            self._tensors, self._layout, self.config.model, name, cuts
        ).astype(leaf.dtype, copy=False)


def _containing_folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _load_hugging_face(
    path: Path, assignments: Sequence[str], recipe: str | None, log: Callable[[str], None]
) -> FolderWeights:
    file = _containing_folder(path) / "config.json"
    if not file.exists():
        raise ValueError(
            f"{file} is missing: it says which architecture the weights are of; fetch it with them"
        )
    settings = parse.read_json(file)
    stored = safetensors.SafetensorsReader(path)
    kind = parse.member(settings, "model_type", str, str(file))
    if kind not in hf_config.ARCHITECTURES and kind not in hf_families.FAMILIES:
        known = ", ".join([*hf_config.ARCHITECTURES, *hf_families.FAMILIES])
        raise ValueError(f"{file}: model_type is {parse.quote(kind)}; gptjax reads {known}")
    if kind in hf_families.FAMILIES:
        architecture, model = hf_families.from_hf(settings, str(file))
        layout = name_maps.family_layout(model)
    else:
        architecture, model = hf_config.from_hf(settings, str(file))
        layout = architecture.layout
    config = infer_config.match_recipe(
        model, recipe or architecture.recipe, architecture.model_type.replace("-", "_")
    )
    if tokenizer_files.TOKENIZER_KEY in settings:
        spec = parse.member(settings, tokenizer_files.TOKENIZER_KEY, str, str(file))
        config = overrides.override(config, f"data.tokenizer={spec}")
        # Only the folder's own files are used.
        tokenizer = build.without_path(config.data.tokenizer)
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, tokenizer=tokenizer)
        )
    if model.tied_output:
        _drop_tied_output(stored, name_maps.token_table_name(layout))
    return FolderWeights(
        split_tensors.split(kind, stored, model),
        f"Hugging Face {architecture.model_type}",
        layout,
        infer_config.with_tokenizer(config, _containing_folder(path), assignments),
        log,
    )


def _load_gguf(
    path: Path, assignments: Sequence[str], recipe: str | None, log: Callable[[str], None]
) -> FolderWeights:
    tensors = gguf_tensors.GgufTensors(path)
    model = tensors.model
    config = infer_config.match_recipe(model, recipe or "llama3_8b", path.stem.lower())
    tokenizer = data.TokenizerJson(path=str(path))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=tokenizer))
    config = overrides.override(config, *assignments)
    return FolderWeights(tensors, "GGUF llama", name_maps.family_layout(model), config, log)


def _load_openai(
    path: Path, assignments: Sequence[str], recipe: str | None, log: Callable[[str], None]
) -> FolderWeights:
    tensors, kind, layout, model, default_recipe = openai.open_tensors(path)
    config = infer_config.match_recipe(
        model, recipe or default_recipe, default_recipe.partition("_")[0]
    )
    return FolderWeights(
        tensors, kind, layout, infer_config.with_tokenizer(config, path, assignments), log
    )


def _drop_tied_output(tensors: safetensors.SafetensorsReader, table: str) -> None:
    """Drops an output table that is a copy of the token table, or uses it if it is the only one, as
    saved by safetensors' save_model. Raises ValueError if they differ.
    """
    if "lm_head.weight" not in tensors.shapes:
        return
    if table not in tensors.shapes:
        tensors.rename("lm_head.weight", table)
        return
    shape = tensors.shapes.pop("lm_head.weight")
    same = shape == tensors.shapes[table]
    for start in range(0, shape[0] if same else 0, 4096):
        rows = slice(start, min(start + 4096, shape[0])), slice(0, shape[1])
        same = same and (tensors.read("lm_head.weight", rows) == tensors.read(table, rows)).all()
    if not same:
        raise ValueError(
            f"{tensors.path}: lm_head.weight is not {table}, but gptjax's output is tied to the "
            "token table: it cannot be read"
        )
