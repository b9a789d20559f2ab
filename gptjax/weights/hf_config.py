"""Converts between Model and the config.json of Hugging Face's three architectures of
the GPT line.
"""

import dataclasses
import itertools
from typing import Any

from gptjax.config import parse, schema
from gptjax.weights import name_maps


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model_type of transformers. size_names: our field -> its setting. constants: settings that
    must have this value if given. activations: its activation -> our gelu. recipe: the config that
    supplies the training fields for its models.
    """

    model_type: str
    class_name: str
    layout: name_maps.Layout
    norm: str
    size_names: dict[str, str]
    dropout: dict[str, str]
    activation: str
    activations: dict[str, str]
    constants: dict[str, Any]
    defaults: dict[str, Any]  # for settings that older files lack
    recipe: str


_GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "erf", "quick_gelu": "sigmoid"}
_GPT_NAMES = {
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
}
_NEO_NAMES = {
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "d_model": "hidden_size",
    "n_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
}
_GPT_DROPOUT = {"embedding": "embd_pdrop", "attention": "attn_pdrop", "residual": "resid_pdrop"}
_NEO_DROPOUT = {
    "embedding": "embed_dropout",
    "attention": "attention_dropout",
    "residual": "resid_dropout",
}
_CONSTANTS = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}

ARCHITECTURES = {
    "openai-gpt": Architecture(
        model_type="openai-gpt",
        class_name="OpenAIGPTLMHeadModel",
        layout=name_maps.GPT1,
        norm="post",
        size_names=_GPT_NAMES,
        dropout=_GPT_DROPOUT,
        activation="afn",
        activations={"gelu": "tanh"},  # its modeling_openai.py calls the tanh form so
        constants=_CONSTANTS,
        defaults=dict.fromkeys(_GPT_DROPOUT.values(), 0.1) | {"afn": "gelu"},
        recipe="gpt1",
    ),
    "gpt2": Architecture(
        model_type="gpt2",
        class_name="GPT2LMHeadModel",
        layout=name_maps.GPT2,
        norm="pre",
        size_names=_GPT_NAMES,
        dropout=_GPT_DROPOUT,
        activation="activation_function",
        activations=_GELUS,
        constants=_CONSTANTS
        | {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        defaults=dict.fromkeys(_GPT_DROPOUT.values(), 0.1)
        | {"activation_function": "gelu_new", "n_inner": None},
        recipe="gpt2_124m",
    ),
    "gpt_neo": Architecture(
        model_type="gpt_neo",
        class_name="GPTNeoForCausalLM",
        layout=name_maps.NEO,
        norm="pre",
        size_names=_NEO_NAMES,
        dropout=_NEO_DROPOUT,
        activation="activation_function",
        activations=_GELUS,
        constants=_CONSTANTS,
        defaults=dict.fromkeys(_NEO_DROPOUT.values(), 0.0)
        | {"activation_function": "gelu_new", "intermediate_size": None, "window_size": 256},
        recipe="gpt3_small",
    ),
}
MAX_SIZES = {  # accepted in a config.json
    "n_layers": 1 << 16,
    "n_heads": 1 << 20,
    "d_model": 1 << 20,
    "n_vocab": 1 << 28,
    "n_ctx": 1 << 28,
}
_WIDTHS = ("n_inner", "intermediate_size")  # of the MLP; null means four times d_model


def from_hf(settings: dict[str, Any], where: str) -> tuple[Architecture, schema.Model]:
    """Returns the architecture and the model of a config.json, whose model_type is in
    ARCHITECTURES. where: names it in errors. Raises ValueError for settings that no Model can
    represent."""
    kind = settings["model_type"]
    architecture = ARCHITECTURES[kind]
    settings = architecture.defaults | settings
    n = read_sizes(settings, architecture.size_names, where)
    for name, value in architecture.constants.items():
        if name in settings and settings[name] != value:
            raise ValueError(
                f"{where}: {name} is {parse.quote(settings[name])}, but gptjax's models have "
                f"{value}: these weights cannot be read"
            )
    activation = parse.member(settings, architecture.activation, str, where)
    if activation not in architecture.activations:
        raise ValueError(
            f"{where}: {architecture.activation} is {parse.quote(activation)}; gptjax has "
            f"{', '.join(architecture.activations)}"
        )
    width = n["d_model"]
    for name in _WIDTHS:
        if name in architecture.defaults and settings[name] not in (None, 4 * width):
            raise ValueError(
                f"{where}: {name} is {parse.quote(settings[name])}, but gptjax's MLPs are 4 x "
                f"{width} = {4 * width} wide"
            )
    attention = _read_attention(settings, where) if kind == "gpt_neo" else (schema.Dense(),)
    dropout = {
        field: parse.member(settings, name, float, where)
        for field, name in architecture.dropout.items()
    }
    options: dict[str, Any] = {
        "norm": architecture.norm,
        "gelu": architecture.activations[activation],
        "attention": attention,
    }
    try:
        return architecture, schema.Model(**n, **options, dropout=schema.Dropout(**dropout))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_sizes(settings: dict[str, Any], names: dict[str, str], where: str) -> dict[str, int]:
    """Returns our field -> the size of its setting. Raises ValueError for a missing size, one that
    is not an integer, or one out of range.
    """
    sizes = {}
    for field, name in names.items():
        sizes[field] = parse.member(settings, name, int, where)
        if not 0 < sizes[field] <= MAX_SIZES[field]:
            raise ValueError(
                f"{where}: {name!r} is {parse.quote(sizes[field])}; it must be from 1 to "
                f"{MAX_SIZES[field]:,}"
            )
    return sizes


def _read_attention(settings: dict[str, Any], where: str) -> tuple[schema.Attention, ...]:
    """Returns the shortest period of GPT-Neo's layers, which attention_types lists as [[kinds,
    times], ...].
    """
    window = read_sizes(settings, {"n_ctx": "window_size"}, where)["n_ctx"]
    kinds = {"global": schema.Dense(), "local": schema.Banded(window=window)}
    layers = []
    for part in parse.member(settings, "attention_types", list, where):
        match part:
            case [[*names], int(times)] if 0 <= times <= settings["num_layers"] and all(
                name in [*kinds] for name in names
            ):
                layers += names * times
            case _:
                raise ValueError(
                    f"{where}: attention_types has {parse.quote(part)}; gptjax reads [[kinds, "
                    "times], ...], each kind global or local"
                )
    if len(layers) != settings["num_layers"]:
        raise ValueError(
            f"{where}: attention_types lists {len(layers)} layers and num_layers is "
            f"{settings['num_layers']}: correct one of them"
        )
    for n in range(1, len(layers) + 1):
        if len(layers) % n == 0 and layers == list(
            itertools.islice(itertools.cycle(layers[:n]), len(layers))
        ):
            return tuple(kinds[kind] for kind in layers[:n])
    raise AssertionError("a list is its own period")


def to_hf(model: schema.Model) -> tuple[Architecture, dict[str, Any]]:
    """Returns the architecture that computes the same function as `model`, and its config.json.
    Raises ValueError if transformers has none.
    """
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name in schema.FAMILY_FIELDS and value != field.default:
            raise ValueError(
                f"model.{field.name}={value!r}: no architecture of Hugging Face that gptjax writes "
                "has it together with the other fields of this model, so this cannot be exported"
            )
    patterns = sorted({type(p).__name__ for p in model.attention} - {"Dense", "Banded"})
    windows = sorted({p.window for p in model.attention if isinstance(p, schema.Banded)})
    if patterns:
        raise ValueError(
            f"model.attention has {patterns[0]}, which no architecture of Hugging Face has: only "
            "Dense and Banded can be exported"
        )
    if len(windows) > 1:
        raise ValueError(
            f"model.attention has bands of {' and '.join(map(str, windows))}; Hugging Face's "
            "gpt_neo has one window_size"
        )
    if model.norm == "post" and windows:
        raise ValueError(
            "model.norm=post with a Banded layer: Hugging Face's openai-gpt is Dense throughout, "
            "so this cannot be exported"
        )
    architecture = ARCHITECTURES[
        "openai-gpt" if model.norm == "post" else "gpt_neo" if windows else "gpt2"
    ]
    activation = next(
        (name for name, gelu in architecture.activations.items() if gelu == model.gelu), None
    )
    if activation is None:
        raise ValueError(
            f"model.gelu={model.gelu}: Hugging Face's {architecture.model_type} has the form "
            f"{', '.join(architecture.activations.values())} only, so this cannot be exported"
        )
    settings = {
        "model_type": architecture.model_type,
        "architectures": [architecture.class_name],
        "dtype": "float32",
    }
    settings |= {name: getattr(model, field) for field, name in architecture.size_names.items()} | {
        architecture.activation: activation
    }
    # transformers uses only n_positions; converters of other projects read this one.
    settings["n_ctx"] = model.n_ctx
    settings |= {
        name: getattr(model.dropout, field) for field, name in architecture.dropout.items()
    } | architecture.constants
    if windows:
        period = ["local" if isinstance(p, schema.Banded) else "global" for p in model.attention]
        settings |= {
            "attention_types": [
                part
                for part in ([period, model.n_periods], [period[: model.n_remainder], 1])
                if part[0] and part[1]
            ],
            "attention_layers": (period * (model.n_periods + 1))[: model.n_layers],
            "window_size": windows[0],
        }
    return architecture, settings
