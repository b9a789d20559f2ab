"""Weights from anywhere: a run of gptjax, Hugging Face's safetensors, OpenAI's own files. `found(path)` says what is there.

there = weights.found("gpt2/")              # ValueError, in one line, if there is nothing that can be read
there.config                                # a whole Config, whose model is that of the weights
there.check(config.data.tokenizer, text)    # ValueError if that tokenizer is not the weights' own
params = there.params(abstract.params)      # each leaf read and placed as training.state.abstract(...).params says
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from gptjax.config import overrides, parse, registry, schema
from gptjax.data.tokenizers import build
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import run_dir
from gptjax.sharding import trees
from gptjax.training import checkpoint
from gptjax.weights import hf_config, name_maps, openai, safetensors, tokenizer_files

Advance = Callable[[float, str], None]  # the fraction that is done, and the name of the leaf that was read last


class Weights(Protocol):
    """kind: what it is, in words."""

    where: Path
    kind: str
    config: schema.Config

    def check(self, config: schema.Config, text: Tokenizer) -> None:
        """ValueError unless these weights are of `config`'s model, and `text`, its tokenizer, is theirs. The model's context may be shorter
        and its vocabulary larger, as far as the weights are a folder's."""
        ...

    def description(self) -> str:
        """What it is, for people: of a run whose parameters were read, the step of its checkpoint."""
        ...

    def params(self, wanted: Any, advance: Advance = lambda done, leaf: None) -> Any:
        """The parameters, as the tree of ShapeDtypeStructs `wanted` places them: one leaf after the other, each device's part by itself.
        wanted's token table may have more rows than there are, which are zero, and its position table fewer."""
        ...


def found(
    path: Path | str,
    assignments: Sequence[str] = (),
    recipe: str | None = None,
    say: Callable[[str], None] = print,
    checkpoints: str | None = None,
) -> Weights:
    """What lies at `path`: a run's directory, a folder of weights, or a .safetensors file with its config.json beside it.

    For weights that are not a run, the config is the registry's that has their model, else the one named `recipe` (default: the
    architecture's) with their sizes; `assignments` change fields of it. say: is told what is passed over: a damaged checkpoint, rows of
    padding. checkpoints: where a run's are, if not in it. ValueError, in one line, if nothing there can be read."""
    path = parse.path(str(path))
    if checkpoints is not None or (path / "checkpoints").is_dir():
        return Run(path, assignments, checkpoints or path / "checkpoints", say)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a run, or a folder of weights")
    if safetensors.found(path):
        return _hugging_face(path, assignments, recipe, say)
    if openai.found(path):
        return _openai(path, assignments, recipe, say)
    if run_dir.there(path):
        raise ValueError(f"{path} has no checkpoint yet; let python -m gptjax.train run until it saves one")
    if any((path / name).exists() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        raise ValueError(f"{path} has PyTorch's pickle alone: load it with transformers and save_pretrained it, which writes safetensors")
    raise ValueError(
        f"no weights are in {path}: it has neither checkpoints/ of a run, nor {safetensors.SINGLE}, nor {safetensors.INDEX}, nor a "
        f"TensorFlow checkpoint, nor {openai.SHAPES}"
    )


def _same(where: Path, have: schema.Model, want: schema.Model, exactly: bool) -> None:
    """ValueError, naming the field, unless parameters of `have` are those of `want`."""
    for name in ("n_layers", "n_heads", "d_model", "n_vocab", "n_ctx", "attention", "norm", "gelu"):
        there, here = getattr(have, name), getattr(want, name)
        if there != here and (exactly or not (name == "n_vocab" and here > there or name == "n_ctx" and here < there)):
            raise ValueError(
                f"the weights in {where} have {name} {there!r}, but model.{name}={here!r}: give the config that belongs to them, or "
                f'--set "model.{name}={there!r}"'
            )


class Run:
    """The newest checkpoint of a run of gptjax that is whole."""

    kind = "a run of gptjax"

    def __init__(self, where: Path, assignments: Sequence[str], checkpoints: Path | str, say: Callable[[str], None]):
        self.where, self._run_config, self._step = where, run_dir.config(where), None
        if self._run_config.task is not None:
            raise ValueError(
                f"{where} was fine-tuned on {self._run_config.name}: it answers, in predictions/, and does not speak; give the pre-trained "
                "run"
            )
        spoken = build.spec_in(self._run_config.data.tokenizer, where)
        config = dataclasses.replace(self._run_config, data=dataclasses.replace(self._run_config.data, tokenizer=spoken))
        self.config = overrides.override(config, *assignments)
        lines = [line for line in run_dir.differences(config, self.config) if not line.startswith("data.tokenizer")]
        if lines:
            raise ValueError(f"{'; '.join(lines)}: what the parameters of {where} compute is settled, leave it as it is")
        self._saved = checkpoint.Saved(checkpoints, say)

    def description(self) -> str:
        return self.kind if self._step is None else f"step {self._step:,}"

    def _check_config(self, about: dict[str, Any]) -> None:
        """ValueError unless config.json is what was saved with the checkpoint, as far as it decides what the parameters compute."""
        saved_config = overrides.rebuild(parse.member(about, "config", dict, f"the checkpoint in {self.where}"))
        # train --tokens moves the length before it saves the next checkpoint, and no parameter computes anything else by it.
        lines = [line for line in run_dir.differences(saved_config, self._run_config) if not line.startswith(run_dir.LENGTH)]
        if lines:
            raise ValueError(
                f"{self.where / 'config.json'} is not the config that its checkpoint was saved with ({'; '.join(lines)}): put back the "
                "file that it was"
            )

    def check(self, config: schema.Config, text: Tokenizer) -> None:
        _same(self.where, self.config.model, config.model, exactly=True)
        about = self._saved.about()
        self._check_config(about)
        had = about["tokenizer"]
        if had != text.digest:
            raise ValueError(
                f"{self.where} was trained with a tokenizer of digest {had[:12]}, but {config.data.tokenizer} is {text.digest[:12]}: set "
                f"data.tokenizer to {self.config.data.tokenizer}, with the files that it had"
            )

    def params(self, wanted: Any, advance: Advance = lambda done, leaf: None) -> Any:
        restored = self._saved.restore({"params": wanted}, part="params/")
        if restored is None:
            raise ValueError(f"{self.where} has no checkpoint yet; let python -m gptjax.train run until it saves one")
        self._step, found, about = restored
        self._check_config(about)
        advance(1.0, "params")
        return found["params"]


class Folder:
    """Weights in another's layout, read tensor by tensor. ValueError if a tensor is missing, not wanted or of another shape than `config`
    asks for. Of a token table with more rows than `config` has ids the first are read, and say is told so."""

    def __init__(self, there: safetensors.Tensors, kind: str, layout: name_maps.Layout, config: schema.Config, say: Callable[[str], None]):
        self.where, self.kind, self.config = there.where, kind, config
        self._tensors, self._layout, self._say = there, layout, say
        name_maps.check(there, layout, config.model)

    def description(self) -> str:
        return self.kind

    def check(self, config: schema.Config, text: Tokenizer) -> None:
        _same(self.where, self.config.model, config.model, exactly=False)
        added = tokenizer_files.check(_folder(self.where), self.config.model.n_vocab, config.data.tokenizer, text)
        rows = self._tensors.shapes[name_maps.token_table(self._layout)][0]
        if rows > self.config.model.n_vocab:
            self._say(
                f"{self.where}: of the {rows:,} rows of its token table the first {self.config.model.n_vocab:,} are taken, not the rest"
            )
        if added:
            self._say(f"{self.where}: of its tokenizer {parse.quote(added)[1:-1]} is left out, which {config.data.tokenizer} does not have")

    def params(self, wanted: Any, advance: Advance = lambda done, leaf: None) -> Any:
        read, sizes = [], [leaf.size * 4 for leaf in jax.tree.leaves(wanted)]
        for name, leaf in trees.named_leaves(wanted):
            place = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
            cut = functools.partial(self._part, name, leaf)
            read.append(jax.block_until_ready(jax.make_array_from_callback(leaf.shape, place, cut)))
            advance(sum(sizes[: len(read)]) / sum(sizes), name)
        return jax.tree.unflatten(jax.tree.structure(wanted), read)

    def _part(self, name: str, leaf: jax.ShapeDtypeStruct, index: Any):
        cuts = tuple(slice(*cut.indices(n)[:2]) for cut, n in zip(index, leaf.shape, strict=True))
        return name_maps.part(self._tensors, self._layout, self.config.model, name, cuts).astype(leaf.dtype, copy=False)


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


def _hugging_face(path: Path, assignments: Sequence[str], recipe: str | None, say: Callable[[str], None]) -> Folder:
    file = _folder(path) / "config.json"
    if not file.exists():
        raise ValueError(f"{file} is missing: it says which architecture the weights are of; fetch it with them")
    settings = parse.json_file(file)
    a, model = hf_config.read(settings, str(file))
    config = _config(model, recipe or a.recipe, a.model_type.replace("-", "_"))
    if tokenizer_files.NAMED in settings:
        config = overrides.override(config, f"data.tokenizer={parse.member(settings, tokenizer_files.NAMED, str, str(file))}")
        spoken = build.without_path(config.data.tokenizer)  # its files are of the folder, and nowhere else
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=spoken))
    there = safetensors.Safetensors(path)
    _tied(there, name_maps.token_table(a.layout))
    return Folder(there, f"Hugging Face {a.model_type}", a.layout, _with_tokenizer(config, _folder(path), assignments), say)


def _openai(path: Path, assignments: Sequence[str], recipe: str | None, say: Callable[[str], None]) -> Folder:
    there, kind, layout, model, usual = openai.opened(path)
    config = _config(model, recipe or usual, usual.partition("_")[0])
    return Folder(there, kind, layout, _with_tokenizer(config, path, assignments), say)


def _with_tokenizer(config: schema.Config, folder: Path, assignments: Sequence[str]) -> schema.Config:
    """The config with the tokenizer in the folder, `assignments`, and as many ids as that tokenizer has where the table has more rows."""
    beside = tokenizer_files.beside(folder, config.data.tokenizer)
    changed = overrides.override(dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=beside)), *assignments)
    n = tokenizer_files.size(folder, changed.data.tokenizer)
    if n is None or not n < changed.model.n_vocab == config.model.n_vocab:
        return changed
    return dataclasses.replace(changed, model=dataclasses.replace(changed.model, n_vocab=n))


def _tied(there: safetensors.Safetensors, table: str) -> None:
    """Forget an output table that is the token table's copy; take it where it is the only one, as safetensors' save_model keeps it.
    ValueError if it is another."""
    if "lm_head.weight" not in there.shapes:
        return
    if table not in there.shapes:
        there.rename("lm_head.weight", table)
        return
    shape = there.shapes.pop("lm_head.weight")
    same = shape == there.shapes[table]
    for start in range(0, shape[0] if same else 0, 4096):
        rows = slice(start, min(start + 4096, shape[0])), slice(0, shape[1])
        same = same and (there.read("lm_head.weight", rows) == there.read(table, rows)).all()
    if not same:
        raise ValueError(f"{there.where}: lm_head.weight is not {table}, but gptjax's output is tied to the token table: it cannot be read")


def _config(model: schema.Model, recipe: str, name: str) -> schema.Config:
    """The registry's config that has this model; else `recipe` with its sizes, the batch having as many rows as there."""
    for other in registry.names():
        known = registry.config(other)
        if dataclasses.replace(known.model, init=model.init) == model:
            break
    else:
        known = registry.config(recipe)
        rows, ramp = known.model.n_ctx, known.train.ramp
        scaled = ramp and dataclasses.replace(ramp, start_tokens=ramp.start_tokens // rows * model.n_ctx)
        train = dataclasses.replace(known.train, batch_tokens=known.batch_rows * model.n_ctx, ramp=scaled)
        known = dataclasses.replace(known, name=name, model=dataclasses.replace(model, init=known.model.init), train=train)
    return known
