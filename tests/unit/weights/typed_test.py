"""What lies beside weights, with every field of every wrong type, size and depth: one line each,
at once, and never a trace."""

import dataclasses
import json
import random

import numpy as np
import pytest

from gptjax.config import data
from gptjax.data.tokenizers import build, gpt2_bpe
from gptjax.runtime import errors
from gptjax.weights import export_hf, load, tf_checkpoint, tokenizer_files
from tests.unit.weights import load_test, openai_test

WRONG = [
    None,
    True,
    False,
    "x",
    "",
    "12",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    1.5,
    -1,
    0,
    7,
    2**31,
    10**19,
    10**400,
    float("nan"),
    float("inf"),
]
WRONG += [
    [[["global"], 10**9]],
    [[["global", "local"], True]],
    [[[1], 2]],
    [["global"]],
    [[["global"] * 3, 1]],
    "a\nb\x1b[0m",
    "\ud800",
]
DEEP = "[" * 100_000


def one_line(call) -> str | None:
    """What `call` is refused with, which must be a line; None if it is not refused."""
    try:
        call()
    except Exception as error:
        status, line = errors.classify_error(error)
        assert status == 2, f"a trace: {error!r}"
        assert "\n" not in str(error) and len(line) < 700, line
        return line


def opened(folder):
    there = load.load(folder, log=lambda line: None)
    there.check(there.config, build.build(there.config.data.tokenizer))


def small(kind: str, folder, layers: int = 4, **more):
    """A folder of weights of an architecture."""
    c = load_test.config(kind)
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, n_layers=layers))
    export_hf.save(folder, c, load_test.random(c.model), load_test.TEXT, **more)
    return folder


@pytest.mark.parametrize("kind", load_test.MODELS)
def test_a_config_json_of_wrong_types(kind, tmp_path):
    file = small(kind, tmp_path, 4 if kind == "gpt_neo" else 1) / "config.json"
    good = json.loads(file.read_text())
    assert one_line(lambda: opened(tmp_path)) is None
    read = {
        "model_type",
        "vocab_size",
        "tie_word_embeddings",
        "layer_norm_epsilon",
        "gptjax_tokenizer",
        "n_inner",
        "attention_types",
    }
    read |= {
        "n_layer",
        "n_head",
        "n_embd",
        "n_positions",
        "attn_pdrop",
        "resid_pdrop",
        "embd_pdrop",
        "afn",
        "activation_function",
    }
    read |= {
        "num_layers",
        "num_heads",
        "hidden_size",
        "max_position_embeddings",
        "window_size",
        "attention_dropout",
        "intermediate_size",
    }
    for name in sorted(read & {*good, "n_inner", "intermediate_size"}):
        refused = 0
        for value in WRONG:
            file.write_text(json.dumps(good | {name: value}))
            refused += one_line(lambda: opened(tmp_path)) is not None
        file.write_text(
            json.dumps({other: value for other, value in good.items() if other != name})
        )
        one_line(lambda: opened(tmp_path))
        assert refused > len(WRONG) // 2 or name not in good, name
    said = {"attn_pdrop": "must be a number", "attention_dropout": "must be a number"}
    for name in said.keys() & good:
        file.write_text(json.dumps(good | {name: None}))
        assert said[name] in str(one_line(lambda: opened(tmp_path)))
        file.write_text(json.dumps(good | {name: 1.0}))
        assert str(one_line(lambda: opened(tmp_path))).startswith(f"{file}: Dropout.attention=1.0")


def test_a_file_that_is_no_object(tmp_path):
    folder, tensors = small("gpt2", tmp_path, file_bytes=10_000), "model.safetensors.index.json"
    (folder / "merges.txt").write_text("#version: 0.2\n")
    for name in ("vocab.json", "tokenizer.json", tensors, "config.json"):
        for content in (
            b"",
            b"[]",
            b"nul",
            b"\xff",
            b'"x"',
            b"1" * 5000,
            DEEP.encode(),
            b'{"model_type": ' + DEEP.encode(),
        ):
            (folder / name).write_bytes(content)
            assert name in str(one_line(lambda: opened(folder))), content[:20]
        if name == "vocab.json":
            (folder / "vocab.json").unlink()


def test_a_size_beyond_all_models_is_refused_at_once(tmp_path):
    good = json.loads((small("gpt2", tmp_path) / "config.json").read_text())
    for name, value in [
        ("n_layer", 10**19),
        ("n_embd", 10**18 + 3),
        ("n_head", 10**18),
        ("vocab_size", 10**30),
        ("n_positions", 10**300),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(good | {name: value}))
        assert f"'{name}' is 1" in str(one_line(lambda: opened(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(good | {"n_layer": 9_000}))
    assert "52 tensors are too few for 9,000 layers" in str(one_line(lambda: opened(tmp_path)))


def test_an_index_stays_in_its_folder(tmp_path):
    c = load_test.config("gpt2")
    (tmp_path / "in").mkdir()
    export_hf.save(tmp_path / "in", c, load_test.random(c.model), load_test.TEXT, file_bytes=10_000)
    index = json.loads((tmp_path / "in" / "model.safetensors.index.json").read_text())
    first = next(iter(index["weight_map"]))
    (tmp_path / "in" / index["weight_map"][first]).rename(tmp_path / "elsewhere.safetensors")
    for where in (
        "../elsewhere.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "",
        ".",
        "\0.safetensors",
        "x.bin",
        7,
        None,
        [],
    ):
        listed = {
            name: where if file == index["weight_map"][first] else file
            for name, file in index["weight_map"].items()
        }
        (tmp_path / "in" / "model.safetensors.index.json").write_text(
            json.dumps(index | {"weight_map": listed})
        )
        assert "it must be the name of a .safetensors file of the same folder" in str(
            one_line(lambda: opened(tmp_path / "in"))
        )


# --- tokenizers -----------------------------------------------------------------------------------


def changed(tree, path, value):
    """The JSON value with what lies at `path` replaced."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = changed(tree[path[0]], path[1:], value)
    return copy


PLACES = [
    [],
    ["model"],
    ["model", "type"],
    ["model", "vocab"],
    ["model", "vocab", "b"],
    ["model", "merges"],
    ["model", "merges", 0],
]
PLACES += [
    ["model", "merges", 0, 1],
    ["added_tokens"],
    ["added_tokens", 0],
    ["added_tokens", 0, "id"],
    ["added_tokens", 0, "content"],
]


def test_a_tokenizer_json_of_wrong_types(tmp_path):
    spec, text = data.Bytes(), build.ByteTokenizer()
    small = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}
    small["added_tokens"] = [{"id": 3, "content": "<pad>"}]
    for place in PLACES:
        for value in WRONG:
            (tmp_path / "tokenizer.json").write_text(json.dumps(changed(small, place, value)))
            assert "tokenizer.json" in str(
                one_line(lambda: tokenizer_files.check(tmp_path, 257, spec, text))
            )
            one_line(lambda: tokenizer_files.published_size(tmp_path, data.Gpt2Bpe()))


@pytest.mark.parametrize(
    "vocab, merges",
    [
        ("{}", "a b c\n"),
        ("{}", "a\n"),
        ('{"a": "b"}', ""),
        ('{"a": 1.0}', ""),
        ("[]", ""),
        ("{}", b"\xff\n"),
    ],
)
def test_vocab_json_and_merges_txt_of_wrong_types(vocab, merges, tmp_path):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_bytes(merges if isinstance(merges, bytes) else merges.encode())
    line = str(
        one_line(
            lambda: tokenizer_files.check(
                tmp_path, 50_257, data.Gpt2Bpe(), gpt2_bpe.Gpt2Tokenizer(None)
            )
        )
    )
    assert "vocab.json" in line or "merges.txt" in line


# --- OpenAI's -------------------------------------------------------------------------------------


def test_hparams_and_shapes_of_wrong_types(tmp_path):
    _, _, tensors = openai_test.stored("gpt2", openai_test.name_maps.OPENAI_GPT2)
    (tmp_path / "gpt2").mkdir()
    openai_test.save(tmp_path / "gpt2", tensors)
    good = {"n_vocab": 257, "n_ctx": 12, "n_embd": 16, "n_head": 4, "n_layer": 4}
    for name in good:
        for value in WRONG:
            (tmp_path / "gpt2" / "hparams.json").write_text(json.dumps(good | {name: value}))
            one_line(lambda: load.load(tmp_path / "gpt2", openai_test.HEADS))
    (tmp_path / "gpt1").mkdir()
    _, _, tensors = openai_test.stored("openai-gpt", openai_test.name_maps.OPENAI_GPT1)
    np.save(
        tmp_path / "gpt1" / "params_0.npy", np.concatenate([x.ravel() for x in tensors.values()])
    )
    shapes = [list(x.shape) for x in tensors.values()]
    for place in ([], [0], [1], [0, 0], [2, 1]):
        for value in WRONG:
            (tmp_path / "gpt1" / "params_shapes.json").write_text(
                json.dumps(changed(shapes, place, value))
            )
            assert one_line(lambda: load.load(tmp_path / "gpt1", openai_test.HEADS))


def test_the_header_of_an_array_with_flipped_bytes(tmp_path):
    _, _, tensors = openai_test.stored("openai-gpt", openai_test.name_maps.OPENAI_GPT1)
    np.save(tmp_path / "params_0.npy", np.concatenate([x.ravel() for x in tensors.values()]))
    (tmp_path / "params_shapes.json").write_text(json.dumps([x.shape for x in tensors.values()]))
    whole = (tmp_path / "params_0.npy").read_bytes()
    for at in range(128):
        flipped = whole[at] ^ (1, 4, 0x20, 0x80)[at % 4]
        (tmp_path / "params_0.npy").write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
        one_line(lambda: load.load(tmp_path, openai_test.HEADS))


@pytest.mark.filterwarnings("ignore")
def test_crafted_tensorflow_tables_are_refused(tmp_path):
    """Whole blocks with right CRCs, whose messages hold other fields, kinds and sizes than
    TensorFlow's."""
    draw = random.Random(0)
    index = tmp_path / "model.ckpt.index"
    message, odd = (
        openai_test.message,
        [0, 1, 2**63, 2**64 - 1, b"", b"\xff" * 40, b"\x08", [b"\x08\x03", 5], (7,)],
    )
    for _ in range(300):
        fields = {
            f"f{number}": draw.choice(odd)
            for number in draw.sample(range(1, 9), draw.randint(0, 8))
        }
        usual = {
            "f1": 1,
            "f2": message(f2=[message(f1=2), message(f1=3)]),
            "f3": 0,
            "f4": 0,
            "f5": 24,
            "f6": (7,),
        }
        header = message(**{"f1": 1, **({"f1": draw.choice(odd)} if draw.random() < 0.3 else {})})
        entries = [
            (b"", header),
            (
                draw.choice([b"model/wte", b"\xff", b"", b"model/wte/Adam"]),
                message(**(usual | fields)),
            ),
        ]
        index.write_bytes(openai_test.table(entries))
        one_line(lambda: tf_checkpoint.TensorBundle(index))
    for content in (b"\xff" * 1_000_000, b"", b"\x80" * 40 + b"\x57\xfb\x80\x24\x47\x75\xb4\xdb"):
        index.write_bytes(content)
        assert "is damaged" in str(one_line(lambda: tf_checkpoint.TensorBundle(index)))
