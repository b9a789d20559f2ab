"""Exports a run as a folder that Hugging Face transformers loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from gptjax.config import schema
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic
from gptjax.sharding import trees
from gptjax.weights import hf_config, name_maps, safetensors, tokenizer_files

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
    architecture, settings = hf_config.to_hf(config.model)
    leaves = dict(trees.named_leaves(params))
    if QKV_BIAS not in architecture.layout.block and any(
        bool(jnp.any(leaf != 0)) for name, leaf in leaves.items() if name.endswith(QKV_BIAS)
    ):
        raise ValueError(
            "the biases of queries, keys and values are not zero, and Hugging Face's "
            f"{architecture.model_type} has none: only models "
            "without Banded layers can be exported with them"
        )
    slots = list(name_maps.tensor_slots(architecture.layout, config.model))
    sizes = name_maps.letter_sizes(config.model)

    def lazy_tensor(number: int, slot: name_maps.TensorSlot):
        def make():
            advance(number / len(slots), slot.name)
            return name_maps.to_stored(architecture.layout, config.model, slot, leaves[slot.leaf])

        return safetensors.PREFIX + slot.name, slot.shape(sizes), make

    safetensors.save(folder, [lazy_tensor(*numbered) for numbered in enumerate(slots)], file_bytes)
    ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    settings |= ends | tokenizer_files.save(
        folder, config.data.tokenizer, tokenizer, config.model.n_ctx, warn
    )
    (folder / "config.json").write_bytes(atomic.json_bytes(settings))
    return architecture.model_type
