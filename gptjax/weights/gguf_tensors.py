"""Weights in GGUF, llama.cpp's file of a model, its vocabulary and its settings: those of Llama's
architecture, by the `gguf` package, which also undoes the quantization.

llama.cpp pairs neighboring elements of a head in its rotary positions, so that the rows of queries
and keys are stored in another order than Hugging Face's; they are put back as they are read.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gptjax.config import parse, schema
from gptjax.data.tokenizers import gguf_file
from gptjax.weights import hf_families

SUFFIX = gguf_file.SUFFIX
ARCHITECTURE = "llama"
# Quantizations that are read; each stores blocks along the last dimension.
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
# Settings of the file, without "llama.", -> those of a config.json.
SETTINGS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
ROTATED = "rope.dimension_count"  # elements of a head
IGNORED = (ROTATED, "attention.value_length")  # the latter is checked by the tensors' shapes
TABLES = {  # names of tensors -> Hugging Face's
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PARTS = {  # parts of a layer -> Hugging Face's
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GgufTensors:
    """The tensors of a file, by Hugging Face's names and in their order of rows. ValueError, in one
    line, for a file that cannot be read, another architecture, an unknown setting and a
    quantization that is not in TYPES."""

    def __init__(self, path: Path):
        self.path = path
        reader = gguf_file.open_reader(path)
        self.model = _model(gguf_file.settings(reader), path, reader)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            if tensor.tensor_type.name not in TYPES:
                raise ValueError(
                    f"{path}: the tensor {tensor.name} is quantized by {tensor.tensor_type.name}; "
                    f"gptjax reads {', '.join(TYPES)}"
                )
            name = _hugging_face_name(tensor.name)
            # GGUF lists dimensions from the last to the first.
            self.shapes[name] = tuple(int(n) for n in reversed(tensor.shape))
            self._tensors[name] = tensor

    def read(self, name: str, part: tuple[slice, ...]) -> np.ndarray:
        """As safetensors.Tensors.read."""
        from gguf import quants

        tensor = self._tensors[name]
        rows, *columns = part
        array = quants.dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float32)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            d = self.model.d_head
            assert rows.start % d == 0 and len(array) % d == 0  # whole heads
            pairs = array.reshape(-1, d // 2, 2, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        return array[(slice(None), *columns)]


def _hugging_face_name(name: str) -> str:
    """Hugging Face's name of a tensor; one that it lacks is returned unchanged."""
    match name.split("."):
        case ["blk", layer, part, kind] if part in PARTS:
            return f"model.layers.{layer}.{PARTS[part]}.{kind}"
    return TABLES.get(name, name)


def _model(settings: dict[str, Any], path: Path, reader: Any) -> schema.Model:
    architecture = settings.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"{path}: its architecture is {parse.quote(architecture)}; gptjax reads {ARCHITECTURE} "
            "from GGUF: take the model's safetensors"
        )
    raw: dict[str, Any] = {
        "model_type": "llama",
        "tie_word_embeddings": not any(t.name == "output.weight" for t in reader.tensors),
    }
    prefix = f"{ARCHITECTURE}."
    for key, value in settings.items():
        name = key.removeprefix(prefix)
        if name == key or name in IGNORED:
            continue
        if name not in SETTINGS:
            raise ValueError(
                f"{path}: {key} is {parse.quote(value)}, which gptjax does not know: these weights "
                "cannot be read; take the model's safetensors"
            )
        # Numbers are stored as float32: 1e-5 is meant by 9.999999747e-06.
        raw[SETTINGS[name]] = float(str(np.float32(value))) if type(value) is float else value
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ValueError(
            f"{path}: it has factors of rotary frequencies (rope_freqs), as Llama 3.1; gptjax does "
            "not read them from GGUF: take the model's safetensors"
        )
    model = hf_families.from_hf(raw, str(path))[1]
    if (rotated := settings.get(f"{prefix}{ROTATED}", model.d_head)) != model.d_head:
        raise ValueError(
            f"{path}: {prefix}{ROTATED} is {parse.quote(rotated)} of heads of {model.d_head}; "
            "gptjax rotates whole heads"
        )
    return model
