"""GGUF: a file as llama.cpp's converter writes it is the model that went in; what is not understood
is refused by name."""

import functools
import itertools
import json

import gguf
import jax
import numpy as np
import pytest
from gguf import quants

import gptjax
from gptjax import convert, sample
from gptjax.config import data, schema
from gptjax.data.tokenizers import build
from gptjax.sharding import device_mesh
from gptjax.training import state, step
from gptjax.weights import gguf_tensors, load

D, N, KV, F, LAYERS, V = 64, 4, 2, 96, 2, 300
SYMBOLS = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256 + 68))]


def permute(weight, n_heads):
    """The order of rows that llama.cpp stores of queries and keys (its convert_hf_to_gguf.py)."""
    shape = weight.shape
    return (
        weight.reshape(n_heads, 2, shape[0] // n_heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
    )


@functools.cache
def tensors():
    """Names of GGUF -> random weights in Hugging Face's order."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    weights = {"token_embd": draw(V, D), "output_norm": draw(D)}
    for i in range(LAYERS):
        weights |= {
            f"blk.{i}.attn_norm": draw(D),
            f"blk.{i}.attn_q": draw(D, D),
            f"blk.{i}.attn_k": draw(KV * D // N, D),
            f"blk.{i}.attn_v": draw(KV * D // N, D),
            f"blk.{i}.attn_output": draw(D, D),
            f"blk.{i}.ffn_norm": draw(D),
            f"blk.{i}.ffn_gate": draw(F, D),
            f"blk.{i}.ffn_up": draw(F, D),
            f"blk.{i}.ffn_down": draw(D, F),
        }
    return weights


def write(path, kind="F32", architecture="llama", extra=lambda writer: None):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(32)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(F)
    writer.add_head_count(N)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(D // N)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    symbols = ["<|end|>", *SYMBOLS[:256], "\u0120t", "he", "\u0120the"]
    symbols += [f"<unused{i}>" for i in range(V - len(symbols))]
    writer.add_token_list(symbols)
    writer.add_token_types(
        [3 if symbol.startswith("<") and len(symbol) > 1 else 1 for symbol in symbols]
    )
    writer.add_token_merges(["\u0120 t", "h e", "\u0120t he"])
    writer.add_eos_token_id(0)
    extra(writer)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, weight in tensors().items():
        if name.endswith(("attn_q", "attn_k")):
            weight = permute(weight, N if name.endswith("q") else KV)
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(f"{name}.weight", weight)
        else:
            packed = quants.quantize(weight, quantization)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_params(path):
    weights = load.load(path)
    mesh = device_mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    built = step.build(weights.config, "cpu", mesh, None)
    abstract = state.abstract_state(weights.config, built.model, built.tx, mesh).params
    return weights.config, weights.load_params(abstract)


def test_a_file_is_the_model_that_was_written(tmp_path):
    config, params = load_params(write(tmp_path / "a.gguf"))
    model = config.model
    assert model.positions == (schema.Rotary(theta=5000.0),) and model.n_ctx == 32
    assert model.norm_type == schema.RMSNorm(eps=1e-5) and model.tied_output
    assert (model.n_kv_heads, model.d_head, model.mlp) == (2, 16, schema.SwiGLU(d_ff=F))
    block = params["periods"]["block_0"]
    w = tensors()
    np.testing.assert_array_equal(params["token_VD"][:V], w["token_embd"])
    for i in range(LAYERS):
        query = block["attention"]["qkv"]["query"]["weight_DNH"][i]
        np.testing.assert_array_equal(query.reshape(D, D).T, w[f"blk.{i}.attn_q"])
        key = block["attention"]["qkv"]["key"]["weight_DKH"][i]
        np.testing.assert_array_equal(key.reshape(D, -1).T, w[f"blk.{i}.attn_k"])
        np.testing.assert_array_equal(block["mlp"]["down"]["weight_DF"][i], w[f"blk.{i}.ffn_down"])
        np.testing.assert_array_equal(block["norm_1"]["gain_D"][i], w[f"blk.{i}.attn_norm"])


@pytest.mark.parametrize(
    "kind, atol", [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 0.02), ("Q4_1", 0.3)]
)
def test_quantized_weights(tmp_path, kind, atol):
    """As near as the quantization is: to its own inverse exactly, whatever part is read."""
    reader = gguf_tensors.GgufTensors(write(tmp_path / "a.gguf", kind))
    name, expected = "model.layers.1.self_attn.q_proj.weight", tensors()["blk.1.attn_q"]
    found = reader.read(name, (slice(0, D), slice(0, D)))
    np.testing.assert_allclose(found, expected, atol=atol)
    part = reader.read(name, (slice(16, 48), slice(8, 24)))
    np.testing.assert_array_equal(part, found[16:48, 8:24])


def test_it_becomes_a_run_and_a_folder_of_hugging_face(tmp_path):
    """By the program: GGUF -> run -> Hugging Face -> run, the same parameters and ids."""
    path = write(tmp_path / "a.gguf")
    steps = [path, tmp_path / "run", tmp_path / "hf", tmp_path / "again"]
    for source, target in itertools.pairwise(steps):
        convert.main([f"--from={source}", f"--to={target}"])
    settings = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert settings["model_type"] == "llama" and settings["num_key_value_heads"] == KV
    _, expected = load_params(path)
    tokenizer = build.build(data.TokenizerJson(path=str(path)))
    for place in steps[1:]:
        config, params = load_params(place)
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        assert build.build(config.data.tokenizer).encode(" the 42") == tokenizer.encode(" the 42")


def test_the_vocabulary_is_a_tokenizer(tmp_path):
    path = write(tmp_path / "a.gguf")
    tokenizer = build.build(data.TokenizerJson(path=str(path)))
    text = " the 42 <|end|>\n\u00e9"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and 0 not in ids  # spelled, not meant
    assert ids[0] == 1 + 256 + 2 and tokenizer.end_of_text == 0
    assert tokenizer.decode([0]) == "<|end|>"
    digits = tokenizer.encode("42")
    assert len(digits) == 2
    again = build.build(data.TokenizerJson(path=str(path)))
    assert again.digest == tokenizer.digest


def rewrite(path, **fields):
    """The file with other fields of its tokenizer; of None without it."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    kept = {name: field for name, field in reader.fields.items() if "." in name}
    kept.pop("general.architecture")
    for name, field in kept.items():
        value = fields.pop(name.rpartition(".")[2], field.contents())
        if value is not None and not name.startswith("GGUF."):
            kinds = (*field.types, None)
            writer.add_key_value(name, value, field.types[0], kinds[1])
    for name in reader.tensors:
        writer.add_tensor(name.name, np.array(name.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("rule, parts", [
    ("gpt-2", ["I", "'m", "\u0120", "\u0120a", "12345", "\u0120x", "'S", "\u010a\u010a"]),
    ("smollm", ["I", "'m", "\u0120", "\u0120a", *"12345", "\u0120x", "'S", "\u010a\u010a"]),
    ("llama-bpe", ["I", "'m", "\u0120", "\u0120a", "123", "45", "\u0120x", "'S", "\u010a\u010a"]),
    ("qwen2", ["I", "'m", "\u0120", "\u0120a", *"12345", "\u0120x", "'S", "\u010a\u010a"]),
])  # fmt: skip
def test_rules_of_splitting_by_their_names(rule, parts, tmp_path):
    """And whether begin-of-text stands before a prompt, where the file does not say."""
    path = rewrite(write(tmp_path / "a.gguf"), pre=rule)
    ours = build.build(data.TokenizerJson(path=str(path)))
    text = "I'm  a12345 x'S\n\n"
    found = [part for part, _ in ours.rust.pre_tokenizer.pre_tokenize_str(text)]
    if rule == "gpt-2":  # its contractions are lower-case
        parts = [*parts[:-2], "'", "S", parts[-1]]
    if rule == "smollm":
        parts = [*parts[:-2], "'", "S", parts[-1]]
    assert found == parts and ours.decode(ours.encode(text)) == text
    assert ours.encode("e\u0301") == ours.encode("\u00e9" if rule == "qwen2" else "e\u0301")
    assert ours.settings["add_bos_token"] == (rule == "llama-bpe")


@pytest.mark.parametrize("fields, line", [
    ({"pre": "default"}, "split by 'default'; gptjax reads 'gpt2', split by 'gpt-2', 'smollm', "),
    ({"pre": None}, "split by None; gptjax reads"),
    ({"model": "llama"}, "its tokenizer is 'llama'"),
    ({"merges": ["h", "h e"]}, "its merges are damaged"),
    ({"merges": ["nowhere x"]}, "its merges are damaged"),
    ({"merges": None}, "has no tokenizer.ggml.merges"),
    ({"eos_token_id": 300}, "tokenizer.ggml.eos_token_id is 300, of 300 tokens"),
    ({"token_type": [1, 1]}, "its 300 tokens have 2 types"),
])  # fmt: skip
def test_a_tokenizer_that_is_not_understood_is_refused_by_name(fields, line, tmp_path):
    path = rewrite(write(tmp_path / "a.gguf"), **fields)
    with pytest.raises(ValueError) as error:
        build.build(data.TokenizerJson(path=str(path)))
    assert line in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_user_defined_tokens_are_found_in_text(tmp_path):
    kinds = gguf.GGUFReader(write(tmp_path / "a.gguf")).fields["tokenizer.ggml.token_type"]
    kinds = kinds.contents()
    assert kinds[262] == 3
    ours = build.build(
        data.TokenizerJson(path=str(rewrite(tmp_path / "a.gguf", token_type=[
            4 if i == 262 else kind for i, kind in enumerate(kinds)
        ])))
    )  # fmt: skip
    name = ours.rust.id_to_token(262)
    assert 262 in ours.encode(f"a{name}b") and 263 not in ours.encode(ours.rust.id_to_token(263))


def test_a_tokenizer_json_next_to_a_file_is_not_its_tokenizer(tmp_path):
    path = write(tmp_path / "a.gguf")
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = load.load(path)
    weights.check(weights.config, build.build(weights.config.data.tokenizer))


def test_a_model_that_chats(tmp_path, capsys):
    """By the template in the file: what the API answers is what `generate` writes after the ids of
    the conversation, and what the program prints; it ends at the end of a turn."""
    template = (
        "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}<unused0>{% endfor %}"
        "{% if add_generation_prompt %}<|end|>assistant:{% endif %}"
    )
    path = write(tmp_path / "a.gguf", extra=lambda w: w.add_chat_template(template))
    model = gptjax.load(path, "model.n_ctx=32")
    end = model.tokenizer.rust.token_to_id("<unused0>")
    assert model.chat_template.end_of_turn == "<unused0>"
    ids = model.apply_chat_template([{"role": "user", "content": "he<unused0>"}])
    assert ids.count(end) == 1 and ids.count(0) == 2
    options = {"max_new_tokens": 12, "temperature": 0}
    answer = model.chat("he", **options)
    messages = [{"role": "user", "content": "he"}]
    ids = model.apply_chat_template(messages)
    assert answer == model.chat(messages, **options) == model.generate(ids, **options) != ""
    assert "".join(model.chat("he", stream=True, **options)) == answer
    assert model.chat("he", stop=answer[2], **options) == answer[: answer.index(answer[2])]
    model.chat_template.__dict__["end_of_turn"] = answer[1]  # as if the model ended its turn there
    assert model.chat("he", **options) == answer[: answer.index(answer[1])]
    sample.main([f"--model={path}", "--chat", "--prompt=he", "--temperature=0",
                 "--max_new_tokens=12"])  # fmt: skip
    assert capsys.readouterr().out.partition("\n")[2] == answer + "\n"
    with pytest.raises(ValueError, match="--chat answers a message: give --prompt"):
        sample.main([f"--model={path}", "--chat"])


@pytest.mark.parametrize("changes, line", [
    ({"architecture": "gpt2"}, "its architecture is 'gpt2'; gptjax reads llama"),
    ({"extra": lambda w: w.add_float32("llama.attention.clamp_kqv", 1.0)},
     "llama.attention.clamp_kqv is 1.0, which gptjax does not know"),
    ({"extra": lambda w: w.add_uint32("llama.attention.key_length", 32)},
     "llama.rope.dimension_count is 16 of heads of 32; gptjax rotates whole heads"),
    ({"extra": lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32))},
     "it has factors of rotary frequencies"),
    ({"extra": lambda w: w.add_tensor(
        "x.weight", np.zeros((1, 144), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_K)},
     "the tensor x.weight is quantized by Q4_K; gptjax reads F32"),
    ({"extra": lambda w: w.add_tensor("blk.0.more.weight", np.ones(8, np.float32))},
     "the tensor blk.0.more.weight, [8], is not part of this architecture"),
])  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(tmp_path, changes, line):
    path = write(tmp_path / "a.gguf", **changes)
    with pytest.raises(ValueError) as error:
        load.load(path)
    assert line in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no" * 400], ids=["empty", "cut", "other"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no GGUF file, or damaged"):
        load.load(path)
    with pytest.raises(ValueError, match="does not exist"):
        load.load(tmp_path / "b.gguf")


def test_a_cut_file(tmp_path):
    path = write(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="is no GGUF file, or damaged"):
        load.load(path)
