"""OpenAI's two layouts, written here as its files are, and read back."""

import dataclasses
import json
import struct

import google_crc32c
import numpy as np
import pytest

from gptjax.data.tokenizers import build
from gptjax.weights import load, name_maps, openai, tf_checkpoint
from tests.unit.weights import load_test as tools

TEXT = build.ByteTokenizer()
HEADS = ["data.tokenizer=Bytes()", "model.n_heads=4"]


def stored(kind: str, layout: name_maps.Layout):
    """(config, parameters, {name: array}) as the layout stores random weights."""
    c = tools.config(kind)
    params = tools.random(c.model)
    leaves = dict(tools.trees.named_leaves(params))
    return (
        c,
        params,
        {
            p.name: name_maps.to_stored(layout, c.model, p, leaves[p.leaf])
            for p in name_maps.tensor_slots(layout, c.model)
        },
    )


# --- GPT-1 ----------------------------------------------------------------------------------------


@pytest.fixture
def gpt1(tmp_path):
    """(folder, config, params): ten vectors whose cuts fall within tensors."""
    c, params, tensors = stored("openai-gpt", name_maps.OPENAI_GPT1)
    flat = np.concatenate([x.ravel() for x in tensors.values()])
    for n, part in enumerate(np.array_split(flat, 10)):
        np.save(tmp_path / f"params_{n}.npy", part)
    (tmp_path / "params_shapes.json").write_text(json.dumps([x.shape for x in tensors.values()]))
    return tmp_path, c, params


def test_gpt1s_tensors_stand_in_the_order_of_its_code():
    """params_shapes.json of openai/finetune-transformer-lm, at its sizes."""
    c = dataclasses.replace(
        tools.config("openai-gpt").model,
        n_layers=1,
        n_heads=12,
        d_model=768,
        n_vocab=40_478,
        n_ctx=512,
    )
    shapes = [
        p.shape(name_maps.letter_sizes(c)) for p in name_maps.tensor_slots(name_maps.OPENAI_GPT1, c)
    ]
    layer = [
        (1, 768, 2304),
        (2304,),
        (1, 768, 768),
        (768,),
        (768,),
        (768,),
        (1, 768, 3072),
        (3072,),
        (1, 3072, 768),
        (768,),
        (768,),
        (768,),
    ]
    assert shapes == [(512, 768), (40_478, 768), *layer]


def test_gpt1_is_read(gpt1):
    folder, c, params = gpt1
    there = load.load(folder, HEADS)
    assert (
        there.kind == "OpenAI's GPT-1"
        and there.config.model.norm == "post"
        and there.config.model.n_layers == c.model.n_layers
    )
    tools.same(there.load_params(tools.wanted(c)), params)
    tools.same(there.load_params(tools.wanted(c, 8)), params)


def test_gpt1s_heads_are_64_wide(tmp_path):
    one = dataclasses.replace(
        tools.config("openai-gpt").model, n_layers=1, n_heads=12, d_model=768, n_vocab=300, n_ctx=8
    )
    shapes = [
        p.shape(name_maps.letter_sizes(one))
        for p in name_maps.tensor_slots(name_maps.OPENAI_GPT1, one)
    ]
    np.save(
        tmp_path / "params_0.npy",
        np.zeros(sum(int(np.prod(shape)) for shape in shapes), np.float32),
    )
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    model = openai.open_tensors(tmp_path)[3]
    assert (model.n_layers, model.n_heads, model.d_head, model.n_vocab, model.n_ctx) == (
        1,
        12,
        64,
        300,
        8,
    )


def test_gpt1s_damage_is_named(gpt1):
    folder, *_ = gpt1
    (folder / "params_3.npy").rename(folder / "elsewhere.npy")
    with pytest.raises(ValueError, match="params_3.npy is missing"):
        load.load(folder, HEADS)
    np.save(folder / "params_3.npy", np.load(folder / "elsewhere.npy")[:-1])
    with pytest.raises(
        ValueError, match="10 files params_.*npy have .* numbers, and params_shapes.json lists"
    ):
        load.load(folder, HEADS)
    (folder / "params_3.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="params_3.npy is damaged"):
        load.load(folder, HEADS)
    shapes = json.loads((folder / "params_shapes.json").read_text())
    (folder / "params_shapes.json").write_text(json.dumps(shapes[:-1]))
    with pytest.raises(ValueError, match="lists 49 tensors, not two and 12 a layer"):
        load.load(folder, HEADS)


# --- TensorFlow checkpoints: a writer as core/util/tensor_bundle and core/lib/io/table_builder have


def varint(n: int) -> bytes:
    out = b""
    while n >= 128:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def message(**fields) -> bytes:
    """f1=7 is an integer, f2=b"..." bytes, f6=(x,) a fixed32; a list repeats the field."""
    out = b""
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            tag = int(name[1:]) << 3
            if isinstance(one, tuple):
                out += varint(tag | 5) + struct.pack("<I", *one)
            elif isinstance(one, bytes):
                out += varint(tag | 2) + varint(len(one)) + one
            else:
                out += varint(tag) + varint(one)
    return out


def crc(content: bytes) -> int:
    value = google_crc32c.value(content)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def block(entries: list[tuple[bytes, bytes]], every: int = 16) -> bytes:
    out, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += (
            varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        )
        before = key
    return (
        out
        + b"".join(struct.pack("<I", n) for n in restarts or [0])
        + struct.pack("<I", len(restarts or [0]))
    )


def table(entries: list[tuple[bytes, bytes]], per_block: int = 7) -> bytes:
    out, index = b"", []

    def add(content: bytes) -> bytes:
        nonlocal out
        place = varint(len(out)) + varint(len(content))
        out += content + b"\0" + struct.pack("<I", crc(content + b"\0"))
        return place

    for start in range(0, len(entries), per_block):
        part = entries[start : start + per_block]
        index.append((part[-1][0], add(block(part))))
    meta, places = add(block([])), add(block(index, every=1))
    return out + (meta + places).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def save(folder, tensors: dict[str, np.ndarray], n_files: int = 1) -> None:
    entries, files = {b"": message(f1=n_files, f3=message(f1=1))}, [b""] * n_files
    for number, (name, x) in enumerate(tensors.items()):
        file, content = number % n_files, x.tobytes()
        shape = message(f2=[message(f1=n) for n in x.shape])
        kind = {"float32": 1, "float16": 19, "int64": 9}[x.dtype.name]
        entries[name.encode()] = message(
            f1=kind, f2=shape, f3=file, f4=len(files[file]), f5=len(content), f6=(crc(content),)
        )
        files[file] += content
    for number, content in enumerate(files):
        (folder / f"model.ckpt.data-{number:05}-of-{n_files:05}").write_bytes(content)
    (folder / "model.ckpt.index").write_bytes(table(sorted(entries.items())))


@pytest.fixture
def gpt2(tmp_path):
    c, params, tensors = stored("gpt2", name_maps.OPENAI_GPT2)
    tensors = {f"model/{name}": x for name, x in tensors.items()}
    save(tmp_path, tensors | {"global_step": np.array(7), "model/wte/Adam_1": tensors["model/wte"]})
    m = c.model
    hparams = {
        "n_vocab": m.n_vocab,
        "n_ctx": m.n_ctx,
        "n_embd": m.d_model,
        "n_head": m.n_heads,
        "n_layer": m.n_layers,
    }
    (tmp_path / "hparams.json").write_text(json.dumps(hparams))
    return tmp_path, c, params, tensors


def test_gpt2_is_read(gpt2):
    folder, c, params, tensors = gpt2
    there = load.load(folder, ["data.tokenizer=Bytes()"])
    assert there.kind == "OpenAI's GPT-2"
    tools.same(there.load_params(tools.wanted(c)), params)
    tools.same(there.load_params(tools.wanted(c, 8)), params)
    (folder / "model.ckpt.data-00000-of-00001").unlink()
    save(folder, tensors, n_files=3)
    tools.same(load.load(folder, ["data.tokenizer=Bytes()"]).load_params(tools.wanted(c)), params)


def test_names_of_gpt2s_checkpoint():
    names = [
        p.name
        for p in name_maps.tensor_slots(
            name_maps.OPENAI_GPT2, dataclasses.replace(tools.config("gpt2").model, n_layers=1)
        )
    ]
    layer = ["attn/c_attn/w", "attn/c_attn/b", "attn/c_proj/w", "attn/c_proj/b", "ln_1/g", "ln_1/b"]
    layer += ["mlp/c_fc/w", "mlp/c_fc/b", "mlp/c_proj/w", "mlp/c_proj/b", "ln_2/g", "ln_2/b"]
    assert names == ["wte", "wpe", "ln_f/g", "ln_f/b", *(f"h0/{name}" for name in layer)]


def test_gpt2s_damage_is_named(gpt2):
    folder, c, *_ = gpt2
    data, index = folder / "model.ckpt.data-00000-of-00001", folder / "model.ckpt.index"
    whole = data.read_bytes()

    def read():
        return load.load(folder, ["data.tokenizer=Bytes()"]).load_params(tools.wanted(c))

    data.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(ValueError, match="the tensor .* does not match its CRC"):
        read()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="bytes, too few for the tensor"):
        read()
    data.unlink()
    with pytest.raises(ValueError, match="data-00000-of-00001 is missing"):
        read()
    data.write_bytes(whole)
    table = index.read_bytes()
    for at in (10, len(table) // 2):
        index.write_bytes(table[:at] + bytes([table[at] ^ 4]) + table[at + 1 :])
        with pytest.raises(ValueError, match="model.ckpt.index is damaged"):
            read()
    index.write_bytes(table[:-3])
    with pytest.raises(ValueError, match="index is damaged .it does not end as a table does"):
        read()
    index.write_bytes(table)
    (folder / "hparams.json").unlink()
    with pytest.raises(ValueError, match="hparams.json is missing"):
        read()


def test_a_tensor_that_is_missing_from_a_checkpoint_is_named(gpt2):
    folder, _, _, tensors = gpt2
    del tensors["model/h1/mlp/c_fc/w"]
    save(folder, tensors)
    with pytest.raises(
        ValueError, match=r"the tensor h1/mlp/c_fc/w is missing, expected \[1, 16, 64\]"
    ):
        load.load(folder, ["data.tokenizer=Bytes()"])


def test_the_mask_of_a_crc_is_tensorflows():
    """core/lib/hash/crc32c_test.cc: 32 bytes of zeros have the CRC 0x8a9136aa; masked as Mask()
    has it."""
    assert google_crc32c.value(bytes(32)) == 0x8A9136AA
    assert (
        tf_checkpoint.masked_crc(bytes(32))
        == ((0x8A9136AA >> 15 | 0x8A9136AA << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF
    )
