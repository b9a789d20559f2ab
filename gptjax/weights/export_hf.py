"""Exports a run as a folder that Hugging Face transformers loads."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from gptjax.config import schema
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic
from gptjax.sharding import trees
from gptjax.weights import (
    hf_config,
    hf_families,
    name_maps,
    safetensors,
    split_tensors,
    tokenizer_files,
)

QKV_BIAS = "attention/qkv/bias_QNH"


@dataclasses.dataclass(frozen=True)
class Format:
    """How transformers stores a model. prefix: of the names of its tensors. settings: its
    config.json, without tokens and tokenizer."""

    model_type: str
    layout: name_maps.Layout
    prefix: str
    settings: dict[str, Any]


def choose_format(model: schema.Model) -> Format:
    """Returns the format of the architecture that computes the same function as `model`. Raises
    ValueError if transformers has none."""
    found = hf_families.to_hf(model)
    if found is not None:
        family, settings = found
        return Format(family.model_type, name_maps.family_layout(model), "", settings)
    architecture, settings = hf_config.to_hf(model)
    return Format(architecture.model_type, architecture.layout, safetensors.PREFIX, settings)


def save(
    folder: Path,
    config: schema.Config,
    params: Any,
    tokenizer: Tokenizer,
    advance: Callable[[float, str], None] = lambda done, tensor: None,
    file_bytes: int = safetensors.MAX_FILE_BYTES,
    warn: Callable[[str], None] = print,
) -> str:
    """Writes config.json, safetensors (float32, in files of at most `file_bytes`) and the
    tokenizer; returns the architecture's model_type.

    params: with any sharding; tensors come to the host one at a time. advance: called with the
    fraction written and a tensor's name. warn: called for parts of the tokenizer that transformers
    cannot represent. Raises ValueError if transformers has no architecture for this model.
    """
    leaves, target = dict(trees.named_leaves(params)), choose_format(config.model)
    check_biases(target, leaves)
    slots = list(name_maps.tensor_slots(target.layout, config.model))
    sizes = name_maps.letter_sizes(config.model)

    def lazy_tensor(number: int, slot: name_maps.TensorSlot):
        def make():
            advance(number / len(slots), slot.name)
            return name_maps.to_stored(target.layout, config.model, slot, leaves[slot.leaf])

        return target.prefix + slot.name, slot.shape(sizes), make

    tensors = [lazy_tensor(*numbered) for numbered in enumerate(slots)]
    safetensors.save(folder, split_tensors.join(target.model_type, tensors), file_bytes)
    end = tokenizer.end_of_text
    start = None if end is None else tokenizer.start_of_text  # else a newline, which is text
    ends = {"bos_token_id": start, "eos_token_id": end}
    settings = target.settings | ends
    settings |= tokenizer_files.save(
        folder, config.data.tokenizer, tokenizer, config.model.n_ctx, warn
    )
    (folder / "config.json").write_bytes(atomic.json_bytes(settings))
    return target.model_type


def check_biases(target: Format, leaves: dict[str, Any]) -> None:
    """Raises ValueError if biases of queries, keys and values are not zero, and the format has
    none."""
    if QKV_BIAS not in target.layout.block and any(
        bool(jnp.any(leaf != 0)) for name, leaf in leaves.items() if name.endswith(QKV_BIAS)
    ):
        raise ValueError(
            "the biases of queries, keys and values are not zero, and Hugging Face's "
            f"{target.model_type} has none: only models "
            "without Banded layers can be exported with them"
        )
