"""A run's weights as a folder that Hugging Face transformers loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from gptjax.config import schema
from gptjax.data.tokenizers.build import Tokenizer
from gptjax.runtime import atomic
from gptjax.sharding import trees
from gptjax.weights import hf_config, name_maps, safetensors, tokenizer_files

BIAS = "attention/qkv/bias_QNH"


def save(
    folder: Path,
    config: schema.Config,
    params: Any,
    text: Tokenizer,
    advance: Callable[[float, str], None] = lambda done, tensor: None,
    file_bytes: int = safetensors.FILE_BYTES,
    warn: Callable[[str], None] = print,
) -> str:
    """Write config.json, safetensors (float32, in files of at most `file_bytes`) and the tokenizer; returns the architecture's model_type.

    params: of any placement; one tensor after the other comes to the host. advance is told the fraction written, and a tensor's name; warn
    what of the tokenizer transformers has no form for.
    ValueError if transformers has no architecture that computes what this model does."""
    a, settings = hf_config.written(config.model)
    leaves = dict(trees.named_leaves(params))
    if BIAS not in a.layout.block and any(bool(jnp.any(leaf != 0)) for name, leaf in leaves.items() if name.endswith(BIAS)):
        raise ValueError(
            f"the biases of queries, keys and values are not zero, and Hugging Face's {a.model_type} has none: only models without "
            "Banded layers can be exported with them"
        )
    places = list(name_maps.places(a.layout, config.model))
    sizes = name_maps.sizes(config.model)

    def making(number: int, place: name_maps.Place):
        def make():
            advance(number / len(places), place.name)
            return name_maps.theirs(a.layout, config.model, place, leaves[place.leaf])

        return safetensors.PREFIX + place.name, place.shape(sizes), make

    safetensors.save(folder, [making(*numbered) for numbered in enumerate(places)], file_bytes)
    ends = {"bos_token_id": text.end_of_text, "eos_token_id": text.end_of_text}
    settings |= ends | tokenizer_files.save(folder, config.data.tokenizer, text, config.model.n_ctx, warn)
    (folder / "config.json").write_bytes(atomic.json_bytes(settings))
    return a.model_type
