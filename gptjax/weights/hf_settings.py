"""The settings of a Hugging Face config.json, none of which is ignored without being known."""

from typing import Any

from gptjax.config import parse

# Settings that do not change what a model computes, or only in training.
IGNORED = set(
    "_attn_implementation_autoset _name_or_path _sliding_window_pattern architectures "
    "attention_dropout auto_map bos_token_id cache_implementation dtype embd_pdrop eos_token_id "
    "gptjax_tokenizer initial_context_length initializer_range is_llama_config max_window_layers "
    "model_type output_router_logits pad_token_id pretraining_tp resid_pdrop router_aux_loss_coef "
    "torch_dtype transformers.js_config transformers_version unsloth_fixed use_cache".split()
)
# Settings of which one value is known.
CONSTANTS = {
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_bidirectional_attention": (False, None),
}


class Settings:
    """The settings of a config.json, which remembers those that were read."""

    def __init__(self, settings: dict[str, Any], where: str):
        self._settings, self.where = settings, where
        self._read: set[str] = set()

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The setting; `default` if it is absent or null. ValueError if it is of another type, or
        absent without a default."""
        self._read.add(name)
        if self._settings.get(name) is None and default is not None:
            return default
        return parse.member(self._settings, name, kind, self.where)

    def get_optional(self, name: str, kind: type) -> Any:
        """The setting, or None if it is absent or null."""
        self._read.add(name)
        if self._settings.get(name) is None:
            return None
        return parse.member(self._settings, name, kind, self.where)

    def check_all_read(self) -> None:
        """Raises ValueError for a setting that was not read and may change the function."""
        for name, value in self._settings.items():
            if name in self._read or name in IGNORED or value is None:
                continue
            if name in CONSTANTS:
                allowed = CONSTANTS[name]
                if value in (allowed if isinstance(allowed, tuple) else (allowed,)):
                    continue
            raise ValueError(
                f"{self.where}: {name} is {parse.quote(value)}, which gptjax does not know for "
                "this family: these weights cannot be read"
            )
