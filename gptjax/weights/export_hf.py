"""Exports a run as a folder that Hugging Face transformers loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from gptjax.config import schema
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic
from gptjax.sharding import trees
from gptjax.weights import hf_config, hf_families, name_maps, safetensors, tokenizer_files

QKV_BIAS = "attention/qkv/bias_QNH"


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
    leaves = dict(trees.named_leaves(params))
    found = hf_families.to_hf(config.model)
    if found is not None:
        family, settings = found
        model_type, layout, prefix = family.model_type, name_maps.family_layout(config.model), ""
    else:
        architecture, settings = hf_config.to_hf(config.model)
        model_type, layout = architecture.model_type, architecture.layout
        prefix = safetensors.PREFIX
        check_biases(architecture, leaves)
    slots = list(name_maps.tensor_slots(layout, config.model))
    sizes = name_maps.letter_sizes(config.model)

    def lazy_tensor(number: int, slot: name_maps.TensorSlot):
        def make():
            advance(number / len(slots), slot.name)
            return name_maps.to_stored(layout, config.model, slot, leaves[slot.leaf])

        return prefix + slot.name, slot.shape(sizes), make

    tensors = [lazy_tensor(*numbered) for numbered in enumerate(slots)]
    if model_type == "phi3":
        tensors = name_maps.join_tensors(tensors)
    safetensors.save(folder, tensors, file_bytes)
    end = tokenizer.end_of_text
    start = None if end is None else tokenizer.start_of_text  # else a newline, which is text
    ends = {"bos_token_id": start, "eos_token_id": end}
    settings |= ends | tokenizer_files.save(
        folder, config.data.tokenizer, tokenizer, config.model.n_ctx, warn
    )
    (folder / "config.json").write_bytes(atomic.json_bytes(settings))
    return model_type


def check_biases(architecture: hf_config.Architecture, leaves: dict[str, Any]) -> None:
    """Raises ValueError if biases of queries, keys and values are not zero, and the architecture
    has none."""
    if QKV_BIAS not in architecture.layout.block and any(
        bool(jnp.any(leaf != 0)) for name, leaf in leaves.items() if name.endswith(QKV_BIAS)
    ):
        raise ValueError(
            "the biases of queries, keys and values are not zero, and Hugging Face's "
            f"{architecture.model_type} has none: only models "
            "without Banded layers can be exported with them"
        )
