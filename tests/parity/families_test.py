"""Llama, Mistral, Qwen, Gemma, Phi-3 and gpt-oss with random weights compute what transformers
computes: in whole rows, in 64 positions of cached decoding, and as a tree; long enough that a
wrong rotation or a wrong window shows."""

import dataclasses
import functools
import importlib
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.config import data, positions, schema
from gptjax.data.tokenizers import build
from gptjax.model import gpt, inference
from gptjax.sharding import device_mesh
from gptjax.training import state, step
from gptjax.weights import export_hf, hf_families, load
from tests import tiny

NEEDED = (
    "needs torch and transformers, which make test installs for Python 3.11 (requirements-dev.txt)"
)
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)

SIZES = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 20}


def rope(kind, theta=1e4, **settings):
    return {"rope_type": kind, "rope_theta": theta} | settings


LLAMA31 = rope(
    "llama3",
    5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LONG = rope(
    "longrope",
    short_factor=[1 + 0.1 * i for i in range(4)],
    long_factor=[1 + 0.5 * i for i in range(4)],
)
CASES = {
    "llama": ("Llama", {}),
    "llama 3.1": ("Llama", {"rope_parameters": LLAMA31}),
    "llama, all heads, tied": (
        "Llama",
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "head_dim": 10},
    ),
    "llama, YaRN": (
        "Llama",
        {
            "rope_parameters": rope(
                "yarn", factor=4.0, original_max_position_embeddings=64, truncate=False
            )
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 20}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": (  # a whole period of six layers and two more
        "Gemma3",
        GEMMA
        | {
            "num_hidden_layers": 8,
            "rope_parameters": {
                "sliding_attention": rope("default"),
                "full_attention": rope("linear", 1e6, factor=8.0),
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 40}),
    "phi3 past its original context": (
        "Phi3",
        {"original_max_position_embeddings": 64, "rope_parameters": LONG},
    ),
    "gpt-oss": (
        "GptOss",
        {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 20,
            "swiglu_limit": 0.5,  # low enough to act
            "rope_parameters": rope(
                "yarn", 1.5e5, factor=4.0, original_max_position_embeddings=64, truncate=False
            ),
        },
    ),
}
TOKENS_BT = np.random.default_rng(0).integers(0, 257, (2, 128))


@functools.cache
def saved(name, folder):
    """A folder with random weights of a case, and transformers' logits of TOKENS_BT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        family, settings = CASES[name]
        config_class = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
        config = getattr(transformers, config_class)(
            **{**SIZES, **settings}, attn_implementation="eager"
        )
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                noise = torch.randn_like(p)
                p.copy_(p + 0.2 * noise if p.ndim == 1 else 0.1 * noise)
            logits = model(torch.tensor(TOKENS_BT)).logits.numpy()
        model.save_pretrained(folder)
    return logits


def load_model(folder):
    weights = load.load(folder)
    config = weights.config
    mesh = device_mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    built = step.build(config, "cpu", mesh, None)
    abstract = state.abstract_state(config, built.model, built.tx, mesh).params
    return config.model, built.model, weights.load_params(abstract)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    expected = saved(name, folder)
    model, module, params = load_model(folder)
    near = functools.partial(np.testing.assert_allclose, atol=2e-5)

    @jax.jit
    def whole_rows(params, tokens_BT):
        x_BTD = module.apply({"params": params}, tokens_BT)
        table_VD = gpt.output_table(params)
        return gpt.logits(x_BTD, table_VD, model.n_vocab, softcap=model.logits_softcap)

    tokens_BT = jnp.asarray(TOKENS_BT)
    near(whole_rows(params, tokens_BT)[..., :257], expected)

    lm = inference.prepare(module, params)

    @jax.jit
    def cached(lm, tokens_BT):
        counts = jnp.array([64, 64])
        cache, x_BTD = inference.prefill(lm, tokens_BT[:, :64], counts, 128)

        def decode(cache, token_B):
            cache, x_BTD = inference.decode_step(lm, cache, token_B[:, None], jnp.array([1, 1]))
            return cache, inference.logits(lm, x_BTD)[:, 0]

        _, y_TBV = jax.lax.scan(decode, cache, tokens_BT[:, 64:].T)
        return jnp.concatenate([inference.logits(lm, x_BTD), y_TBV.swapaxes(0, 1)], axis=1)

    near(cached(lm, tokens_BT)[..., :257], expected)

    positions_BT = jnp.arange(128)[None].repeat(2, 0)
    x_BTD = jax.jit(inference.forward_tree)(lm, tokens_BT, positions_BT, jnp.full((2, 128), 128))
    near(inference.logits(lm, x_BTD)[..., :257], expected)


class BytesWithStart(build.ByteTokenizer):
    """Texts begin with another token than they end with."""

    start_of_text = 7


EXPORTED = ["llama 3.1", "qwen2", "gemma2", "gemma3", "phi3 past its original context", "gpt-oss"]


@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_is_read_by_transformers_and_comes_back_the_same(name, tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("family"), tmp_path_factory.mktemp("out")
    expected = saved(name, folder)
    weights = load.load(folder)
    config = dataclasses.replace(
        weights.config, data=dataclasses.replace(weights.config.data, tokenizer=data.Bytes())
    )
    _, _, params = load_model(folder)
    model_type = export_hf.save(out, config, params, BytesWithStart())
    assert model_type == json.loads((folder / "config.json").read_text())["model_type"]
    written = json.loads((out / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (7, 256)

    transformers = importlib.import_module("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    with torch.no_grad():
        logits = theirs.eval()(torch.tensor(TOKENS_BT)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)

    model, _, again = load_model(out)
    assert model == config.model
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_model_that_no_family_has_is_not_exported(tmp_path):
    c = tiny.config(n_layers=4, positions=(schema.Rotary(),))
    with pytest.raises(ValueError, match=r"model.positions=\(Rotary.*cannot be exported"):
        export_hf.save(tmp_path, c, {}, build.ByteTokenizer())
    assert not list(tmp_path.iterdir())


def settings(model_type, **changes):
    return SIZES | {"model_type": model_type, "rope_theta": 1e4, "hidden_act": "silu"} | changes


def test_older_files_name_rotary_settings_otherwise():
    llama = settings("llama", rope_scaling={"type": "linear", "factor": 2.0})
    _, model = hf_families.from_hf(llama, "config.json")
    assert model.positions == (schema.Rotary(scaling=positions.LinearScaling(factor=2.0)),)

    del llama["hidden_act"]
    gemma = llama | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "rope_local_base_freq": 5e3,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    _, model = hf_families.from_hf(gemma, "config.json")
    local, full = (
        schema.Rotary(theta=5e3),
        schema.Rotary(scaling=positions.LinearScaling(factor=2.0)),
    )
    assert model.positions == (local, local, full) and model.n_remainder == 1
    assert model.attention == (schema.Banded(window=8),) * 2 + (schema.Dense(),)


@pytest.mark.parametrize("change, line", [
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which gptjax does not know"),
    ({"attention_bias": True}, "attention_bias is True, which gptjax does not know"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'; gptjax"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 1}}, "mscale is 1, which"),
    ({"rope_scaling": {"rope_type": "linear"}}, "has no 'factor'"),
    ({"hidden_act": "relu"}, "the activation is 'relu'; gptjax has silu"),
    ({"num_key_value_heads": 3}, "n_kv_heads=3 does not divide model.n_heads=4"),
    ({"intermediate_size": None}, "'intermediate_size' is None; it must be"),
    ({"layer_types": ["full_attention"]}, "layer_types lists 1 layers and num_hidden_layers is 3"),
    ({"layer_types": ["full_attention", "chunked", "x"]}, "layer_types has 'chunked'; gptjax has"),
    ({"layer_types": ["sliding_attention"] * 3}, "sliding_window is missing"),
    ({"layer_types": ["full_attention"] * 3, "x": None}, "layer_types is ['full_attention', "),
    ({"num_experts": 4}, "num_experts is 4, which gptjax does not know for this family"),
])  # fmt: skip
def test_settings_that_are_not_understood_are_refused_by_name(change, line):
    model_type = "qwen3" if "layer_types" in change and len(change) == 1 else "llama"
    with pytest.raises(ValueError) as error:
        hf_families.from_hf(settings(model_type, **change), "a/config.json")
    assert str(error.value).startswith("a/config.json") and line in str(error.value)


def model_of(model_type, **changes):
    return hf_families.from_hf(settings(model_type, **changes), "config.json")[1]


def test_layers_of_qwen_have_a_window_from_max_window_layers_on():
    window = {"sliding_window": 20, "max_window_layers": 1}
    for model_type in ("qwen2", "qwen3"):
        assert model_of(model_type, **window).attention == (schema.Dense(),)
        model = model_of(model_type, use_sliding_window=True, **window)
        assert model.attention == (schema.Dense(), *[schema.Banded(window=20)] * 2)
    with pytest.raises(ValueError, match="use_sliding_window is True, which gptjax does not know"):
        model_of("mistral", use_sliding_window=True)


def test_a_setting_that_a_file_lacks_is_that_of_transformers():
    transformers = importlib.import_module("transformers")
    for family in hf_families.FAMILIES.values():
        config = transformers.AutoConfig.for_model(family.model_type)
        defaults = {name: value for name, value in family.defaults.items() if value is not False}
        if "use_sliding_window" in family.defaults:  # their config then has no window
            config = type(config)(use_sliding_window=True)
            assert not type(config)().use_sliding_window
        assert {name: getattr(config, name) for name in defaults} == defaults
        assert config.rms_norm_eps == family.defaults.get("rms_norm_eps", 1e-6)
    gemma2, gemma3 = model_of("gemma2"), model_of("gemma3_text", rope_theta=None)
    assert gemma2.attention == (schema.Banded(window=4096), schema.Dense())
    assert (gemma2.heads.softcap, gemma2.logits_softcap, gemma2.heads.query_scalar) == (50, 30, 256)
    assert gemma3.heads.softcap is None and gemma3.logits_softcap is None
    assert [position.theta for position in gemma3.positions] == [1e4]  # of 3 layers, all with one
    assert model_of("gemma2", attn_logit_softcapping=None).heads.softcap is None
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    long = settings("phi3", max_position_embeddings=8192, rope_scaling={"type": "su"} | factors)
    (rotary,) = hf_families.from_hf(long, "config.json")[1].positions
    assert rotary.scaling.original_context == 4096


def test_the_config_of_smollm2_as_it_was_published():
    published = {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1}
    assert model_of("llama", **published) == model_of("llama")
    with pytest.raises(ValueError, match="rope_interleaved is True"):
        model_of("llama", rope_interleaved=True)


@pytest.mark.parametrize("model_type, change", [
    ("llama", {"num_hidden_layers": 0}),
    ("gemma3_text", {"sliding_window_pattern": -1}),
    ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": ["x"], "long_factor": []}}),
    ("phi3", {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 0}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": -1.0}}),
])  # fmt: skip
def test_numbers_out_of_range_are_one_line_with_the_file(model_type, change):
    with pytest.raises(ValueError) as error:
        model_of(model_type, **change)
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)
