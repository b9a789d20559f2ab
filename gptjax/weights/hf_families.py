"""Converts between Model and the config.json of Hugging Face's families after GPT-3: Llama,
Mistral, Qwen, Gemma, Phi-3, gpt-oss.

A setting that is not known here is refused by name: it may change what the model computes. Files of
transformers 5 (rope_parameters, layer_types) and older ones (rope_theta, rope_scaling) are read.
"""

import math
from typing import Any, assert_never

from gptjax.config import parse, positions, schema
from gptjax.weights import hf_settings
from gptjax.weights.hf_family_table import FAMILIES, Family


def from_hf(raw: dict[str, Any], where: str) -> tuple[Family, schema.Model]:
    """Returns the family and the model of a config.json, whose model_type is in FAMILIES.
    where: names it in errors. ValueError for settings that no Model can represent."""
    family = FAMILIES[raw["model_type"]]
    try:
        return family, _model(family, hf_settings.Settings(family.defaults | raw, where))
    except ValueError as error:
        line = str(error)
        raise ValueError(line if line.startswith(where) else f"{where}: {line}") from None


def _model(family: Family, settings: hf_settings.Settings) -> schema.Model:
    n_layers, n_heads = (
        settings.get(name, int) for name in ("num_hidden_layers", "num_attention_heads")
    )
    d_model, n_ctx = (
        settings.get(name, int) for name in ("hidden_size", "max_position_embeddings")
    )
    n_kv_heads = settings.get("num_key_value_heads", int, n_heads)
    d_head = settings.get_optional("head_dim", int)
    eps = settings.get("rms_norm_eps", float, 1e-6)
    patterns, kinds = _layer_patterns(settings, n_layers, family)
    scalars = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
    query_scalar, softcap, logits_softcap = (
        settings.get_optional(name, float) if family.has_softcaps else None for name in scalars
    )
    model = {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "d_model": d_model,
        "n_vocab": settings.get("vocab_size", int),
        "n_ctx": n_ctx,
        "attention": patterns,
        "norm": family.norm,
        "positions": _positions(settings, kinds, family),
        "norm_type": schema.RMSNorm(eps=eps, unit_offset=family.unit_offset),
        "heads": schema.AttentionHeads(
            n_kv_heads=None if n_kv_heads == n_heads else n_kv_heads,
            d_head=None if d_head is None or d_head * n_heads == d_model else d_head,
            query_scalar=query_scalar,
            softcap=softcap,
            qk_norm=family.qk_norm,
            sinks=family.has_sinks,
        ),
        "biases": family.biases,
        "tied_output": settings.get("tie_word_embeddings", bool, False),
        "embedding_scale": d_model**0.5 if family.scales_embedding else 1.0,
        "logits_softcap": logits_softcap,
    }
    model["mlp"], model["gelu"] = _experts(settings) if family.has_experts else _mlp(settings)
    settings.check_all_read()
    return schema.Model(**model)


def _mlp(settings: hf_settings.Settings) -> tuple[schema.MLP, str]:
    d_ff = settings.get("intermediate_size", int)
    name = settings.get_optional("hidden_act", str)
    name = settings.get("hidden_activation", str, name or "silu")
    match name:
        case "silu":
            return schema.SwiGLU(d_ff=d_ff), "tanh"
        case "gelu_pytorch_tanh":
            return schema.GeGLU(d_ff=d_ff), "tanh"
        case "gelu":
            return schema.GeGLU(d_ff=d_ff), "erf"
    raise ValueError(
        f"{settings.where}: the activation is {parse.quote(name)}; gptjax has silu, "
        "gelu_pytorch_tanh, gelu"
    )


def _experts(settings: hf_settings.Settings) -> tuple[schema.MLP, str]:
    """The experts of gpt-oss."""
    for name, kind, known in (
        ("hidden_act", str, "silu"),
        ("swiglu_alpha", float, 1.702),
        ("attention_bias", bool, True),
    ):
        if (value := settings.get(name, kind, known)) != known:
            raise ValueError(
                f"{settings.where}: {name} is {value!r}; gptjax has {known!r} for gpt_oss"
            )
    quantization = settings.get_optional("quantization_config", dict) or {}
    if quantization and quantization.get("quant_method") != "mxfp4":
        raise ValueError(
            f"{settings.where}: quantization_config has quant_method "
            f"{parse.quote(quantization.get('quant_method'))}; gptjax reads mxfp4"
        )
    expert = schema.ClampedSwiGLU(
        d_ff=settings.get("intermediate_size", int), limit=settings.get("swiglu_limit", float)
    )
    top_k = settings.get("num_experts_per_tok", int)
    if settings.get("experts_per_token", int, top_k) != top_k:
        raise ValueError(
            f"{settings.where}: experts_per_token is not num_experts_per_tok: correct one of them"
        )
    n_experts = settings.get("num_local_experts", int)
    return schema.Experts(n_experts=n_experts, top_k=top_k, expert=expert), "tanh"


def _layer_patterns(
    settings: hf_settings.Settings, n_layers: int, family: Family
) -> tuple[tuple[schema.Attention, ...], list[str]]:
    """Returns (the shortest period of the layers' patterns, the kind of each of its layers, as
    layer_types names it)."""
    if family.windows == "none":
        return (schema.Dense(),), ["full_attention"]
    window = settings.get_optional("sliding_window", int)
    is_qwen = "use_sliding_window" in family.defaults
    if is_qwen and not settings.get_optional("use_sliding_window", bool):
        window = None
    global_every, kinds = family.global_every, None
    if family.windows == "types":
        global_every = settings.get_optional("sliding_window_pattern", int) or global_every
        kinds = settings.get_optional("layer_types", list)
    if global_every is not None and global_every < 1 or n_layers < 1:
        raise ValueError("sliding_window_pattern and num_hidden_layers must be 1 or more")
    if kinds is None:
        first = settings.get("max_window_layers", int, 0) if is_qwen else 0
        kinds = [
            "full_attention"
            if window is None or i < first or global_every and (i + 1) % global_every == 0
            else "sliding_attention"
            for i in range(n_layers)
        ]
    if len(kinds) != n_layers:
        raise ValueError(
            f"{settings.where}: layer_types lists {len(kinds)} layers and num_hidden_layers is "
            f"{n_layers}: correct one of them"
        )
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown:
        raise ValueError(
            f"{settings.where}: layer_types has {parse.quote(unknown[0])}; gptjax has "
            "full_attention and sliding_attention"
        )
    if window is None and "sliding_attention" in kinds:
        raise ValueError(
            f"{settings.where}: layer_types has sliding_attention, but sliding_window is missing"
        )
    n = next(n for n in range(1, n_layers + 1) if kinds[n:] == kinds[: n_layers - n])
    period = kinds[:n]
    return tuple(
        schema.Banded(window=window)
        if kind == "sliding_attention" and window is not None
        else schema.Dense()
        for kind in period
    ), period


def _positions(
    settings: hf_settings.Settings, kinds: list[str], family: Family
) -> tuple[schema.Position, ...]:
    """The rotary positions of a period whose layers are of these kinds."""
    thetas = {"full_attention": 1e6 if family.rope_by_kind else 1e4, "sliding_attention": 1e4}
    if "rope_theta" in family.rope:
        thetas = dict.fromkeys(thetas, family.rope["rope_theta"])
    parameters: dict[str, Any] | None = settings.get_optional("rope_parameters", dict)
    original = settings.get_optional("original_max_position_embeddings", int)
    if parameters is None:  # before transformers 5
        theta = settings.get("rope_theta", float, thetas["full_attention"])
        scaling = settings.get_optional("rope_scaling", dict) or family.rope
        full = scaling | {"rope_theta": theta}
        sliding = full
        if family.rope_by_kind:
            sliding = {"rope_theta": settings.get("rope_local_base_freq", float, 10_000.0)}
        parameters = {"full_attention": full, "sliding_attention": sliding}
    elif not any(kind in parameters for kind in ("full_attention", "sliding_attention")):
        parameters = {"full_attention": parameters, "sliding_attention": parameters}
    encodings = [
        _rotary(
            {"rope_theta": thetas[kind]} | parse.member(parameters, kind, dict, settings.where),
            settings,
            original,
            family,
        )
        for kind in kinds
    ]
    return (encodings[0],) if len(set(encodings)) == 1 else tuple(encodings)


def _rotary(
    raw: dict[str, Any], settings: hf_settings.Settings, original: int | None, family: Family
) -> schema.Rotary:
    where = f"{settings.where}: rope_parameters"
    rope = hf_settings.Settings({"original_max_position_embeddings": original} | raw, where)
    theta = rope.get("rope_theta", float)
    if rope.get("partial_rotary_factor", float, 1.0) != 1:
        raise ValueError(f"{where}: partial_rotary_factor is not 1; gptjax rotates whole heads")
    kind = rope.get_optional("rope_type", str) or rope.get("type", str, "default")
    rope.get_optional("type", str)
    n_ctx: int = settings.get("max_position_embeddings", int)
    original_context: int = rope.get("original_max_position_embeddings", int, n_ctx)
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = positions.LinearScaling(factor=rope.get("factor", float))
        case "llama3":
            scaling = positions.Llama31Scaling(
                factor=rope.get("factor", float),
                low_freq_factor=rope.get("low_freq_factor", float),
                high_freq_factor=rope.get("high_freq_factor", float),
                original_context=original_context,
            )
        case "yarn" if not family.long_rope:
            scaling = positions.Yarn(
                factor=rope.get("factor", float),
                original_context=original_context,
                beta_fast=rope.get("beta_fast", float, 32.0),
                beta_slow=rope.get("beta_slow", float, 1.0),
                whole_indices=rope.get("truncate", bool, True),
            )
        case "longrope" | "su" | "yarn" if family.long_rope:  # Phi-3's earlier files say yarn
            if original_context < 2:
                raise ValueError(f"{where}: original_max_position_embeddings must be 2 or more")
            factor = rope.get("factor", float, n_ctx / original_context)
            growth = math.log(max(1.0, factor)) / math.log(original_context)
            scaling = positions.LongRope(
                short_factors=_numbers(rope, "short_factor"),
                long_factors=_numbers(rope, "long_factor"),
                original_context=original_context,
                scale=rope.get("attention_factor", float, (1 + growth) ** 0.5),
            )
        case _:
            raise ValueError(
                f"{where}: rope_type is {parse.quote(kind)}; gptjax has default, linear, llama3, "
                "yarn, longrope"
            )
    rope.check_all_read()
    return schema.Rotary(theta=theta, scaling=scaling)


def _numbers(settings: hf_settings.Settings, name: str) -> tuple[float, ...]:
    values = {str(i): value for i, value in enumerate(settings.get(name, list))}
    where = f"{settings.where}: {name}"
    return tuple(parse.member(values, i, float, where) for i in values)


# --- export ---------------------------------------------------------------------------------------


def to_hf(model: schema.Model) -> tuple[Family, dict[str, Any]] | None:
    """Returns the family that computes the same function as `model`, and its config.json; None if
    none of them does. The settings are read back and compared, so that nothing is lost."""
    for family in FAMILIES.values():
        settings = _settings(family, model)
        try:
            if (
                settings is not None
                and from_hf(settings, "config.json")[1] == model.without_training()
            ):
                return family, settings
        except ValueError:
            continue
    return None


def _settings(family: Family, model: schema.Model) -> dict[str, Any] | None:
    """The config.json of a model as this family has it; None if a field has no place there."""
    rotary = [position for position in model.positions if isinstance(position, schema.Rotary)]
    if not rotary or not isinstance(model.norm_type, schema.RMSNorm):
        return None
    settings: dict[str, Any] = {
        "model_type": family.model_type,
        "architectures": [family.class_name],
        "dtype": "float32",
        "pad_token_id": None,  # else transformers takes its class's, which the table may lack
        "num_hidden_layers": model.n_layers,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.d_head,
        "hidden_size": model.d_model,
        "intermediate_size": model.d_ff,
        "vocab_size": model.n_vocab,
        "max_position_embeddings": model.n_ctx,
        "rms_norm_eps": model.norm_type.eps,
        "tie_word_embeddings": model.tied_output,
    }
    activation = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    match model.mlp, model.gelu:
        case schema.SwiGLU(), "tanh":
            settings[activation] = "silu"
        case schema.Experts(expert=schema.ClampedSwiGLU(limit=limit)) as mlp, "tanh":
            settings |= {
                "attention_bias": True,
                "num_local_experts": mlp.n_experts,
                "num_experts_per_tok": mlp.top_k,
                "swiglu_limit": limit,
            }
        case schema.GeGLU(), "tanh":
            settings[activation] = "gelu_pytorch_tanh"
        case schema.GeGLU(), "erf":
            settings[activation] = "gelu"
        case _:
            return None
    if family.has_softcaps:
        scalar = model.heads.query_scalar  # transformers wants a whole number as such
        settings |= {
            "query_pre_attn_scalar": int(scalar) if scalar and scalar.is_integer() else scalar,
            "attn_logit_softcapping": model.heads.softcap,
            "final_logit_softcapping": model.logits_softcap,
        }
    windows = {p.window for p in model.attention if isinstance(p, schema.Banded)}
    if family.windows != "none":
        settings["sliding_window"] = max(windows, default=None)
    n = len(model.attention)
    kinds = [
        "full_attention" if model.attention[i % n] == schema.Dense() else "sliding_attention"
        for i in range(model.n_layers)
    ]
    if family.windows == "types":
        settings["layer_types"] = kinds
        settings |= {"use_sliding_window": True} if "use_sliding_window" in family.defaults else {}
    settings["rope_parameters"] = (
        {kind: _rope_parameters(model.position(kinds.index(kind))) for kind in dict.fromkeys(kinds)}
        if family.rope_by_kind
        else _rope_parameters(rotary[0])
    )
    match rotary[0].scaling:
        case positions.LongRope(original_context=original):
            settings["original_max_position_embeddings"] = original
    return settings


def _rope_parameters(position: schema.Position) -> dict[str, Any]:
    assert isinstance(position, schema.Rotary)
    parameters: dict[str, Any] = {"rope_theta": position.theta}
    match position.scaling:
        case None:
            return parameters | {"rope_type": "default"}
        case positions.LinearScaling(factor=factor):
            return parameters | {"rope_type": "linear", "factor": factor}
        case positions.Llama31Scaling() as s:
            return parameters | {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_context,
            }
        case positions.Yarn() as s:
            return parameters | {
                "rope_type": "yarn",
                "factor": s.factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.whole_indices,
                "original_max_position_embeddings": s.original_context,
            }
        case positions.LongRope() as s:
            return parameters | {
                "rope_type": "longrope",
                "short_factor": list(s.short_factors),
                "long_factor": list(s.long_factors),
                "original_max_position_embeddings": s.original_context,
                "attention_factor": s.scale,
            }
        case _:
            assert_never(position.scaling)
