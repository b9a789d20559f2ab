"""What our model computes with weights of Hugging Face transformers is what transformers
computes, and the other way round."""

import dataclasses
import functools
import importlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptjax
from gptjax.config import schema
from gptjax.data.tokenizers import build
from gptjax.generate import decode, sampling
from gptjax.model import gpt, inference
from gptjax.sharding import device_mesh
from gptjax.training import state, step
from gptjax.weights import export_hf, load
from tests import tiny

NEEDED = (
    "needs torch and transformers, which make test installs for Python 3.11 (requirements-dev.txt)"
)
torch = pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)

SIZES = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
GPT = SIZES | {"n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEO = SIZES | {
    "max_position_embeddings": 24,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "window_size": 5,
}
ALTERNATING = [[["global", "local"], 1]]
MODELS = {
    "openai-gpt": ("OpenAIGPT", "OpenAIGPTLMHeadModel", GPT),
    "gpt2": ("GPT2", "GPT2LMHeadModel", GPT),
    "gpt2 whole vocabulary tiles": (
        "GPT2",
        "GPT2LMHeadModel",
        GPT | {"vocab_size": 384, "n_head": 8, "activation_function": "gelu"},
    ),
    "gpt_neo": ("GPTNeo", "GPTNeoForCausalLM", NEO | {"attention_types": ALTERNATING}),
    "gpt_neo of all sorts": (
        "GPTNeo",
        "GPTNeoForCausalLM",
        NEO | {"num_layers": 3, "attention_types": [[["local", "local", "global"], 1]]},
    ),
}


@pytest.fixture(scope="module")
def theirs():
    """transformers, silent: what it logs on import and its progress bars are its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield transformers


def made(transformers, kind: str):
    """A model of transformers with random weights, of which none is zero or one."""
    name, head, settings = MODELS[kind]
    torch.manual_seed(1)
    model = getattr(transformers, head)(getattr(transformers, f"{name}Config")(**settings))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def placed(there, n_devices: int = 1, **mesh):
    """(step, parameters) of weights on some of the simulated devices."""
    c = dataclasses.replace(there.config, mesh=schema.Mesh(**mesh))
    where = device_mesh.make_mesh(c.mesh, jax.devices()[:n_devices])
    built = step.build(c, "cpu", where, None)
    return (
        where,
        built,
        there.load_params(state.abstract_state(c, built.model, built.tx, where).params),
    )


def tokens(model, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, model.config.vocab_size, (rows, 24), dtype=np.int32)


def logits(model, tokens_BT) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens_BT.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_logits_match_transformers(theirs, tmp_path, kind):
    model = made(theirs, kind)
    model.save_pretrained(tmp_path)
    _, built, params = placed(load.load(tmp_path, ["data.tokenizer=Bytes()"]))
    tokens_BT = tokens(model)
    x_BTD = built.model.apply({"params": params}, jnp.asarray(tokens_BT))
    ours = np.asarray(gpt.logits(x_BTD, params["token_VD"], model.config.vocab_size))[
        ..., : model.config.vocab_size
    ]
    expected = logits(model, tokens_BT)
    assert expected.std() > 0.3
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["openai-gpt", "gpt2", "gpt_neo"])
def test_what_is_inside_is_theirs(theirs, tmp_path, kind, monkeypatch):
    """Logits, hidden states, attention weights, a log-likelihood: all of `gptjax.load`."""
    tiny.limit_devices(monkeypatch, 1)
    model = made(theirs, kind)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")  # the others keep no attention weights
    ours, tokens_BT = gptjax.load(tmp_path, "data.tokenizer=Bytes()"), tokens(model)[:, :20]
    ids = torch.tensor(tokens_BT.astype(np.int64))
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True, output_attentions=True)
    near = functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=0)
    near(ours.logits(tokens_BT), expected.logits.numpy())
    states = ours.hidden_states(tokens_BT)
    assert len(states) == len(expected.hidden_states) == 3
    for i, x in enumerate(expected.hidden_states):
        near(states[i], x.numpy(), err_msg=f"hidden state {i}")
    for layer, weights in enumerate(expected.attentions):
        near(ours.attention_weights(tokens_BT, layer), weights.numpy(), err_msg=f"layer {layer}")
    pair = list(b"In the beg")
    with torch.no_grad():
        p_TV = torch.log_softmax(model(torch.tensor([pair])).logits[0].double(), -1)
    answer = ours.loglikelihood("In the", " beg")
    assert answer.log_prob == pytest.approx(
        sum(p_TV[i - 1, pair[i]].item() for i in range(6, 10)), abs=1e-4
    )


def test_logits_on_a_mesh_from_several_files(theirs, tmp_path):
    model = made(theirs, "gpt2")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    where, built, params = placed(
        load.load(tmp_path), 8, fsdp=2, tensor=2, data=2, sharding="fsdp_tensor"
    )
    tokens_BT = tokens(model, rows=4)
    with jax.set_mesh(where):
        run = jax.jit(
            lambda p, t: gpt.logits(built.model.apply({"params": p}, t), p["token_VD"], 257)
        )
        ours = np.asarray(run(params, jnp.asarray(tokens_BT)))[..., :257]
    np.testing.assert_allclose(ours, logits(model, tokens_BT), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "kind", ["openai-gpt", "gpt2", pytest.param("gpt_neo", marks=pytest.mark.slow)]
)
def test_an_exported_model_generates_the_same(theirs, tmp_path, kind):
    """Greedily, from weights that transformers made, we imported and exported, and transformers
    loads."""
    made(theirs, kind).save_pretrained(tmp_path / "theirs")
    there = load.load(tmp_path / "theirs", ["data.tokenizer=Bytes()"])
    _, built, params = placed(there)
    (tmp_path / "ours").mkdir()
    assert export_hf.save(tmp_path / "ours", there.config, params, build.ByteTokenizer()) == kind
    model, report = theirs.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(model).__name__ == MODELS[kind][1] and not any(report.values()), report
    prompt = list(b"In the beg")
    (ours,) = decode.generate(
        inference.prepare(built.model, params),
        [prompt],
        14,
        sampling.SamplingParams(temperature=0),
        jax.random.key(0),
        end_of_text=256,
    )
    said = model.generate(
        torch.tensor([prompt]),
        do_sample=False,
        max_new_tokens=14,
        attention_mask=torch.ones(1, len(prompt)),
    )
    assert said[0, len(prompt) :].tolist()[: len(ours)] == ours and len(set(ours)) > 3
