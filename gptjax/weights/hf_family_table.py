"""Hugging Face's families after GPT-3 that gptjax reads and writes, as one table: what each has,
and the values that transformers takes where a config.json lacks a setting."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
    """A model_type of transformers. recipe: the config that supplies the training fields.
    defaults: transformers' own, of settings that a file may lack."""

    model_type: str
    class_name: str
    recipe: str
    norm: str = "pre"
    unit_offset: bool = False
    qk_norm: bool = False
    biases: str = "none"
    scales_embedding: bool = False
    windows: str = "none"  # "all": of all layers alike; "types": of those that layer_types says
    has_softcaps: bool = False  # and query_pre_attn_scalar
    has_sinks: bool = False
    has_experts: bool = False
    long_rope: bool = False
    rope_by_kind: bool = False  # rope_parameters of each kind of layer
    global_every: int | None = None  # of files without layer_types: each so many-th layer is global
    rope: dict[str, Any] = dataclasses.field(default_factory=dict)  # of files without
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


_GEMMA: dict[str, Any] = {
    "norm": "both",
    "unit_offset": True,
    "scales_embedding": True,
    "windows": "types",
    "has_softcaps": True,
}
_GEMMA_DEFAULTS = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA2_DEFAULTS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# With use_sliding_window, the layers from number max_window_layers on have the window.
_QWEN: dict[str, Any] = {
    "windows": "types",
    "defaults": {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
}
FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", "llama3_8b"),
        Family(
            "mistral",
            "MistralForCausalLM",
            "llama3_8b",
            windows="all",
            defaults={"sliding_window": 4096},
        ),
        Family("qwen2", "Qwen2ForCausalLM", "llama3_8b", biases="qkv", **_QWEN),
        Family("qwen3", "Qwen3ForCausalLM", "llama3_8b", qk_norm=True, **_QWEN),
        Family(
            "gemma2",
            "Gemma2ForCausalLM",
            "gemma2_2b",
            global_every=2,
            defaults=_GEMMA_DEFAULTS | _GEMMA2_DEFAULTS,
            **_GEMMA,
        ),
        Family(
            "gemma3_text",
            "Gemma3ForCausalLM",
            "gemma3_1b",
            qk_norm=True,
            global_every=6,
            rope_by_kind=True,
            defaults=_GEMMA_DEFAULTS,
            **_GEMMA,
        ),
        Family(
            "phi3",
            "Phi3ForCausalLM",
            "phi3_mini",
            windows="all",
            long_rope=True,
            defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        ),
        Family(
            "gpt_oss",
            "GptOssForCausalLM",
            "gpt_oss_20b",
            biases="all",
            windows="types",
            global_every=2,
            has_sinks=True,
            has_experts=True,
            rope={
                "rope_type": "yarn",
                "rope_theta": 150_000.0,
                "factor": 32.0,
                "truncate": False,
                "original_max_position_embeddings": 4096,
            },
            defaults={
                "attention_bias": True,
                "head_dim": 64,
                "num_experts_per_tok": 4,
                "rms_norm_eps": 1e-5,
                "sliding_window": 128,
                "swiglu_alpha": 1.702,
                "swiglu_limit": 7.0,
            },
        ),
    )
}
