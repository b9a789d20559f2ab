"""Small corpora, and what is made of them: texts as files, shard directories and what a run
reads, for the tests of data."""

import json

import pytest

from gptjax.config import data
from gptjax.config.schema import Config, Constant, Model, Train
from gptjax.data import open_dataset, shards, tokenize
from gptjax.data.tokenizers import build

N_CTX = 16
DOCUMENTS = [
    f"document {n} says " + " ".join(str(n * k) for k in range(n % 30)) for n in range(120)
]
SHORT_DOCUMENTS = [
    f"document {n}: " + "word " * (n % 7) + "\u00e9\u6f22"[: n % 3] for n in range(200)
]
BY_DOCUMENT = data.ByDocument(fraction=0.2)


def write(path, texts, **more):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return data.Text(path=str(path), **more)


def write_shards(
    source, directory, spec=None, rule=BY_DOCUMENT, workers=1, block=1000, advance=lambda done: None
):
    spec = spec or data.Bytes()
    return tokenize.tokenize_corpus(
        source, repr(spec), build.build(spec), rule, directory, advance, workers, block
    )


def decode(directory, split):
    manifest = shards.read_manifest(directory)
    there = shards.Split(directory, manifest, [split])
    ends = manifest["tokenizer"]["end_of_text"]
    documents = [
        there.tokens(d, 0, length).tolist() for d, length in enumerate(there.lengths.tolist())
    ]
    assert all(ids[-1] == ends for ids in documents)
    return [build.ByteTokenizer().decode(ids[:-1]) for ids in documents]


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def flip(path, at):
    """Change a bit of the byte at a place of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def prepared(source, directory, spec=None, rule=None, given=None):
    spec, rule = spec or data.Bytes(), rule or data.ByDocument(fraction=0.2)
    tokenize.tokenize_corpus(
        source,
        repr(spec),
        given or build.build(spec),
        rule,
        directory,
        lambda done: None,
        block=500,
    )
    return data.Shards(path=str(directory))


def config(*sources, n_vocab=257, n_ctx=N_CTX, spec=None, held_out=None, seed=0):
    return Config(
        name="test",
        model=Model(n_layers=1, n_heads=1, d_model=8, n_vocab=n_vocab, n_ctx=n_ctx),
        data=data.Data(
            sources=sources,
            tokenizer=spec or data.Bytes(),
            validation=held_out or data.ByDocument(fraction=0.2),
        ),
        train=Train(total_tokens=10_000, batch_tokens=16 * n_ctx, schedule=Constant(peak_lr=1e-3)),
        seed=seed,
    )


def reading(tmp_path, *sources, say=lambda line: None, **options):
    return open_dataset.open_dataset(config(*sources, **options), tmp_path / "cache", say)


def refused(match, call):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
