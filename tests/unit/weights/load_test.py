"""Weights leave as safetensors and come back: the same bits; damage is named."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from gptjax.config import data, schema
from gptjax.data.tokenizers import build
from gptjax.sharding import device_mesh, trees
from gptjax.training import state, step
from gptjax.weights import export_hf, hf_config, load, name_maps
from tests import tiny

TEXT = build.ByteTokenizer()
BIAS = "attention/qkv/bias_QNH"
MODELS = {
    "openai-gpt": {"norm": "post", "attention": (schema.Dense(),)},
    "gpt2": {"attention": (schema.Dense(),)},
    "gpt_neo": {
        "attention": (
            schema.Dense(),
            schema.Banded(window=3),
            schema.Banded(window=3),
            schema.Dense(),
        )
    },
}


@functools.cache
def random(model: schema.Model, seed: int = 0):
    """Parameters of a model, none of them zero or one but for the vocabulary's padding and, with
    bands, the biases of q, k and v."""
    rng, banded = (
        np.random.default_rng(seed),
        any(isinstance(p, schema.Banded) for p in model.attention),
    )

    def draw(path, leaf):
        name = trees.leaf_name(path)
        x = rng.normal(size=leaf.shape).astype(np.float32)
        if name == "token_VD":
            x[model.n_vocab :] = 0
        return jax.numpy.asarray(x * (not (banded and name.endswith(BIAS))))

    return jax.tree_util.tree_map_with_path(
        draw, wanted(dataclasses.replace(tiny.config(), model=model))
    )


def config(kind: str) -> schema.Config:
    model = dataclasses.replace(
        tiny.config(n_vocab=TEXT.n_vocab, **{"n_layers": 4} | MODELS[kind]).model,
        init=schema.Init(),
    )
    return dataclasses.replace(tiny.config(), model=model)


@pytest.fixture(params=MODELS)
def exported(request, tmp_path):
    """(folder, config, params) of each architecture."""
    c = config(request.param)
    params = random(c.model)
    assert export_hf.save(tmp_path, c, params, TEXT) == request.param
    return tmp_path, c, params


@functools.cache
def wanted(c: schema.Config, n_devices: int = 1):
    mesh = device_mesh.make_mesh(
        schema.Mesh(**({"tensor": 2, "sharding": "fsdp_tensor"} if n_devices > 1 else {})),
        jax.devices()[:n_devices],
    )
    c = (
        dataclasses.replace(c, mesh=schema.Mesh(tensor=2, sharding="fsdp_tensor"))
        if n_devices > 1
        else c
    )
    built = step.build(c, "cpu", mesh, None)
    return state.abstract_state(c, built.model, built.tx, mesh).params


def same(params, others):
    for (name, x), (other, y) in zip(
        trees.named_leaves(params), trees.named_leaves(others), strict=True
    ):
        assert name == other and x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def test_export_then_import_is_the_identity(exported):
    folder, c, params = exported
    there = load.load(folder)
    assert dataclasses.replace(there.config.model, init=c.model.init) == c.model
    assert there.config.data.tokenizer == data.Bytes()
    same(there.load_params(wanted(c)), params)


@pytest.mark.parametrize("kind", MODELS)
def test_rates_of_dropout_come_along(kind):
    drop = schema.Dropout(embedding=0.1, attention=0.2, residual=0.3)
    there, settings = hf_config.to_hf(dataclasses.replace(config(kind).model, dropout=drop))
    assert [settings[there.dropout[name]] for name in ("embedding", "attention", "residual")] == [
        0.1,
        0.2,
        0.3,
    ]
    assert hf_config.from_hf(settings, "config.json")[1].dropout == drop


def test_onto_a_mesh_each_device_reads_its_part(exported):
    folder, c, params = exported
    there, asked = load.load(folder), wanted(c, 8)
    read = there.load_params(asked)
    same(read, params)
    for (_, x), (_, y) in zip(trees.named_leaves(read), trees.named_leaves(asked), strict=True):
        assert x.sharding == y.sharding
    assert len({str(shard.index) for shard in read["token_VD"].addressable_shards}) == 8


def test_a_device_reads_no_more_than_it_needs(exported):
    folder, c, _ = exported
    there = load.load(folder)
    sizes, inner = [], there._tensors.read
    there._tensors.read = lambda name, cut: sizes.append(inner(name, cut).size) or inner(name, cut)
    leaf = "periods/block_0/mlp/up/weight_DF"
    shape = (c.model.n_periods, c.model.d_model // 4, c.model.d_ff // 2)
    name_maps.read_part(
        there._tensors, there._layout, c.model, leaf, tuple(slice(0, n) for n in shape)
    )
    assert sizes == [shape[1] * shape[2]] * shape[0]


def test_queries_of_any_width_come_back_to_a_rounding(tmp_path):
    """GPT-Neo does not divide by sqrt(d_head), 2.83 here: exact only for powers of 4."""
    model = dataclasses.replace(config("gpt_neo").model, d_model=32)
    params = random(model)
    export_hf.save(tmp_path, dataclasses.replace(tiny.config(), model=model), params, TEXT)
    c = dataclasses.replace(tiny.config(), model=model)
    for (name, x), (_, y) in zip(
        trees.named_leaves(load.load(tmp_path).load_params(wanted(c))),
        trees.named_leaves(params),
        strict=True,
    ):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), rtol=3e-7 if "qkv" in name else 0, err_msg=name
        )


def test_several_files_are_read_as_one(tmp_path):
    c = config("gpt2")
    params = random(c.model)
    export_hf.save(tmp_path, c, params, TEXT, file_bytes=10_000)
    assert (
        len(list(tmp_path.glob("model-*.safetensors"))) > 3
        and not (tmp_path / "model.safetensors").exists()
    )
    same(load.load(tmp_path).load_params(wanted(c)), params)


def test_half_precision_without_prefix_with_masks_and_the_tied_table(tmp_path):
    c = config("gpt2")
    params = random(c.model)
    params = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), params)
    export_hf.save(tmp_path, c, params, TEXT)
    tensors = {
        n.removeprefix("transformer."): x
        for n, x in safetensors.numpy.load_file(tmp_path / "model.safetensors").items()
    }
    tensors |= {
        "h.0.attn.bias": np.ones((1, 1, 12, 12), np.uint8),
        "h.1.attn.masked_bias": np.float32([-1e4]),
    }
    tensors["lm_head.weight"] = tensors["wte.weight"]
    tensors = {
        n: x.astype(jax.numpy.bfloat16) if x.dtype == np.float32 else x for n, x in tensors.items()
    }
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    same(load.load(tmp_path / "model.safetensors").load_params(wanted(c)), params)


# --- damage ---------------------------------------------------------------------------------------


def without(tensors):
    del tensors["transformer.h.2.mlp.c_fc.weight"]


def reshaped(tensors):
    tensors["transformer.h.2.mlp.c_fc.weight"] = tensors["transformer.h.2.mlp.c_fc.weight"].T.copy()


def more(tensors):
    tensors["score.weight"] = np.zeros((2, 16), np.float32)


def integers(tensors):
    tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"].astype(np.int32)


def untied(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1


@pytest.mark.parametrize(
    "damage,said",
    [
        (
            without,
            r"the tensor h.2.mlp.c_fc.weight is missing, expected \[16, 64\]; its config says 4 "
            r"layers",
        ),
        (reshaped, r"the tensor h.2.mlp.c_fc.weight is \[64, 16\], expected \[16, 64\]"),
        (more, r"the tensor score.weight, \[2, 16\], is not part of this architecture"),
        (integers, "transformer.wpe.weight is of type I32; allowed are F64, F32, F16, BF16"),
        (untied, "lm_head.weight is not wte.weight, but gptjax's output is tied"),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path, damage, said):
    c = config("gpt2")
    export_hf.save(tmp_path, c, random(c.model), TEXT)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    damage(tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=said):
        load.load(tmp_path)


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"model_type": "bloom"}, "model_type is 'bloom'; gptjax reads openai-gpt, gpt2, .*llama"),
        (
            {"layer_norm_epsilon": 1e-6},
            "layer_norm_epsilon is 1e-06, but gptjax's models have 1e-05",
        ),
        ({"activation_function": "relu"}, "activation_function is 'relu'; gptjax has gelu_new"),
        ({"n_inner": 48}, "n_inner is 48, but gptjax's MLPs are 4 x 16 = 64 wide"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (
            {"n_layer": 3},
            "the tensor h.3.attn.c_attn.bias, .*not part of this architecture .12 are wrong in "
            "all.; its config says 3 layers",
        ),
        ({"n_embd": 17}, "does not divide model.d_model=17"),
    ],
)
def test_a_config_of_another_function_is_refused(tmp_path, settings, said):
    c = config("gpt2")
    export_hf.save(tmp_path, c, random(c.model), TEXT)
    there = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(there | settings))
    with pytest.raises(ValueError, match=said):
        load.load(tmp_path)


def test_files_that_are_not_there_or_damaged(tmp_path):
    c = config("gpt2")
    with pytest.raises(ValueError, match="does not exist"):
        load.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no weights are in"):
        load.load(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="PyTorch's pickle alone"):
        load.load(tmp_path)
    export_hf.save(tmp_path, c, random(c.model), TEXT, file_bytes=10_000)
    second = sorted(tmp_path.glob("model-0*"))[1]
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=f"{second.name} is damaged"):
        load.load(tmp_path)
    second.unlink()
    with pytest.raises(ValueError, match=f"{second.name} is missing"):
        load.load(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="config.json is missing"):
        load.load(tmp_path)


@pytest.mark.parametrize(
    "changes,said",
    [
        (
            {"attention": (schema.Strided(stride=4),)},
            "Strided, which no architecture of Hugging Face has",
        ),
        ({"attention": (schema.Fixed(block=4, summary=1), schema.Dense())}, "Fixed, which no"),
        ({"attention": (schema.Banded(window=3), schema.Banded(window=4))}, "bands of 3 and 4"),
        (
            {"attention": (schema.Banded(window=3),), "norm": "post"},
            "openai-gpt is Dense throughout",
        ),
        (
            {"norm": "post", "attention": (schema.Dense(),), "gelu": "erf"},
            "model.gelu=erf: Hugging Face's openai-gpt has the form tanh",
        ),
    ],
)
def test_what_hugging_face_does_not_have_is_refused(tmp_path, changes, said):
    c = tiny.config(**{"n_layers": 4} | changes)
    with pytest.raises(ValueError, match=said):
        export_hf.save(tmp_path, c, None, TEXT)
    assert not list(tmp_path.iterdir())


def test_biases_that_gpt_neo_lacks_are_refused(tmp_path):
    c = config("gpt_neo")
    params = jax.tree.map(lambda x: x, random(c.model))
    params["periods"]["block_1"]["attention"]["qkv"]["bias_QNH"] += 1.0
    with pytest.raises(ValueError, match="biases of queries, keys and values are not zero"):
        export_hf.save(tmp_path, c, params, TEXT)


@pytest.mark.parametrize(
    "gelu,name", [("tanh", "gelu_new"), ("erf", "gelu"), ("sigmoid", "quick_gelu")]
)
def test_each_form_of_gelu_has_its_name(tmp_path, gelu, name):
    c = config("gpt2")
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, gelu=gelu))
    export_hf.save(tmp_path, c, random(c.model), TEXT)
    assert json.loads((tmp_path / "config.json").read_text())["activation_function"] == name
    assert load.load(tmp_path).config.model.gelu == gelu
