"""Byte-level BPE: ids as those of `tokenizers`, and training by its definition."""

import collections
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys

import pytest
import regex

from gptjax.config import data
from gptjax.data import run_tokenizer, unicode
from gptjax.data.tokenizers import build, byte_level_bpe, gpt2_bpe
from tests.corpus import write
from tests.unit.weights.tokenizer_json_test import HARD

ROOT = pathlib.Path(__file__).parents[4]
GPT2_PATTERN = regex.compile(
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)
ALPHABETS = ("ab ", "aaab \n", "a\u00e91 ", "abcdefgh ", "abc'st. 12")
TEXTS = [
    "the cat sat on the mat, and a brown fox jumped over it, as it's there. " * 60,
    "def f(x):\n    return x + 12\n\n" * 60,
]


def random_texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(ALPHABETS[seed], k=k)) for k in (100, 1000, 2000)]


def train_by_definition(texts: list[str], n_merges: int) -> list[tuple[str, str]]:
    """Sennrich et al. 2016, algorithm 1: all pairs are counted anew for each merge."""
    words = collections.Counter(
        tuple(map(byte_level_bpe.byte_symbol, word.encode()))
        for text in texts
        for word in GPT2_PATTERN.findall(text)
    )
    ids = {s: i for i, s in enumerate(sorted(map(byte_level_bpe.byte_symbol, range(256))))}
    merges = []
    while len(merges) < n_merges:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        ids["".join(best)] = len(ids)
        merged = collections.Counter()
        for word, count in words.items():
            parts, i = [], 0
            while i < len(word):
                both = word[i : i + 2] == best
                parts.append("".join(best) if both else word[i])
                i += 2 if both else 1
            merged[tuple(parts)] += count
        words = merged
    return merges


@pytest.fixture(scope="module")
def trained():
    return byte_level_bpe.train(TEXTS, 300)


@pytest.mark.parametrize("seed", range(len(ALPHABETS)))
def test_merges_are_those_of_the_definition(seed):
    """Of pairs that are equally frequent, of which there are many, that with the lowest ids."""
    texts = random_texts(seed)
    expected = train_by_definition(texts, 150)
    ours = byte_level_bpe.train(texts, 257 + len(expected))
    assert ours.merges == expected and len({"".join(merge) for merge in expected}) == len(expected)
    assert byte_level_bpe.train(texts[::-1], 257 + len(expected)).merges == expected


def test_every_process_makes_the_same_file():
    program = (
        "from gptjax.data.tokenizers import byte_level_bpe as b\n"
        "from tests.unit.data.tokenizers.byte_level_bpe_test import random_texts\n"
        "import hashlib\n"
        "texts = [text for seed in range(5) for text in random_texts(seed)]\n"
        "print(hashlib.sha256(b.train(texts, 500).content).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ
            | {
                "PYTHONHASHSEED": n,
                "RAYON_NUM_THREADS": n,
                "TOKENIZERS_PARALLELISM": "true",
                "PYTHONPATH": str(ROOT),
            },
        ).stdout.strip()
        for n in ("1", "5")
    }
    assert digests == {"0a4e90a63458e785d74179fab4094be22a02e214144a8a8137b5a380957b3d23"}


@pytest.mark.parametrize("seed", range(len(ALPHABETS)))
def test_ids_are_those_of_tokenizers(seed):
    """tiktoken knows tokens and no merges: that it gives the same ids is a property of vocabularies
    that were trained."""
    ours, rng = byte_level_bpe.train(random_texts(seed), 310), random.Random(seed)
    tokens = [ours.decode([i]) for i in range(256, ours.n_vocab - 1)]
    texts = [
        *HARD,
        *tokens,
        *("".join(rng.choices(ALPHABETS[seed], k=40)) for _ in range(500)),
        *("".join(rng.choices(tokens, k=4)) for _ in range(500)),
    ]
    expected = [e.ids for e in ours.rust.encode_batch(texts, add_special_tokens=False)]
    end = ours.end_of_text
    compared = [(a, b) for a, b in zip(ours.encode_batch(texts), expected, strict=True)]
    # <|endoftext|> in a text is text for us
    assert all(a == b or end in b for a, b in compared)
    assert not any(end in a for a, _ in compared)


def test_gpt2s_ids_are_those_of_tokenizers_wherever_white_space_lies(monkeypatch):
    ours, rng = gpt2_bpe.Gpt2Tokenizer(None), random.Random(0)
    parts = [
        *" \n\t\u00a0\u2003\x1c\x85aB9!'\u00e9\u4e2d\u0301",
        "  ",
        "'s",
        " 'LL",
        "\r\n",
        "\ufeff",
    ]
    texts = ["".join(rng.choices(parts, k=rng.randint(0, 40))) for _ in range(3000)]
    expected = [e.ids for e in ours.rust.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode_batch(texts) == expected
    for size in (1, 5):
        monkeypatch.setattr(byte_level_bpe, "CHUNK_CHARS", size)
        assert ours.encode_batch(texts) == expected


@pytest.mark.parametrize("space", [" ", "\t"])
def test_a_run_of_a_million_spaces_is_encoded(space):
    """Which tiktoken itself does not: a panic, StackOverflow."""
    ours = gpt2_bpe.Gpt2Tokenizer(None)
    (one,) = ours.encode(space)
    text = f"a{space * 1_200_000}b"
    assert ours.encode(text) == [*ours.encode("a"), *[one] * 1_199_999, *ours.encode(f"{space}b")]


def test_end_of_text_is_the_last_id_and_no_text_becomes_it(trained, tmp_path):
    assert (trained.n_vocab, trained.end_of_text, trained.start_of_text) == (300, 299, 299)
    assert trained.decode([299, *trained.encode("it's")]) == "<|endoftext|>it's"
    assert trained.decode(trained.encode("a<|endoftext|>b")) == "a<|endoftext|>b"
    parsed = json.loads(trained.content)
    assert parsed["added_tokens"][0]["id"] == parsed["model"]["vocab"]["<|endoftext|>"] == 299
    for text in HARD:
        assert trained.decode(trained.encode(text)) == unicode.replace_surrogates(text)
        assert 299 not in trained.encode(text)


def test_a_trained_tokenizer_is_stored_and_opened_again(trained, tmp_path):
    spec = data.TrainedBpe(n_vocab=300)
    made = build.build(spec, tmp_path / "a.json", lambda: TEXTS)
    assert made.digest == trained.digest
    opened = build.build(spec, tmp_path / "a.json", lambda: pytest.fail("trained again"))
    build.save_files(opened, spec, tmp_path)
    in_run = build.build(build.spec_in(spec, tmp_path))
    copy = pickle.loads(pickle.dumps(in_run))
    for one in (opened, in_run, copy):
        assert one.digest == made.digest and one.encode("the mat 12") == made.encode("the mat 12")
    assert (tmp_path / "tokenizer.json").read_bytes() == trained.content == copy.content
    others = [byte_level_bpe.TrainedTokenizer([pair]) for pair in (("a", "b"), ("b", "c"))]
    assert len({made.digest, *(other.digest for other in others)}) == 3


@pytest.mark.parametrize("weights, common", [((9.0, 1.0), "aa"), ((1.0, 9.0), "bb")])
def test_the_first_merge_is_of_the_source_with_the_weight(tmp_path, monkeypatch, weights, common):
    monkeypatch.setattr("gptjax.data.tokenizers.training_text.SAMPLE_CHARS", 60_000)
    sources = [
        write(tmp_path / f"{letter}.jsonl", [f"{letter * 4} " * 500 for _ in range(40)], weight=w)
        for letter, w in zip("ab", weights, strict=True)
    ]
    ours = run_tokenizer.resolve(
        data.TrainedBpe(n_vocab=258),
        sources,
        data.ByDocument(fraction=0),
        tmp_path / "tokenizer.json",
        lambda line: None,
    )
    assert ours.decode([256]) == common


def test_the_name_of_the_file_depends_on_what_it_is_trained_on(tmp_path):
    source = write(tmp_path / "a.jsonl", TEXTS)
    other = write(tmp_path / "b.jsonl", TEXTS, weight=2.0)
    rule = data.ByDocument(fraction=0.2)
    paths = [
        run_tokenizer.model_path(data.TrainedBpe(n_vocab=n), given, rule, tmp_path)
        for n, given in ((300, (source,)), (301, (source,)), (300, (source, other)))
    ]
    paths += [run_tokenizer.model_path(data.TrainedBpe(), (source,), data.Tail(), tmp_path)]
    assert len(set(paths)) == 4 and {path.suffix for path in paths if path} == {".json"}


# --- one line for what is wrong -------------------------------------------------------------------


def refused(spec, match, **more):
    with pytest.raises(ValueError, match=match) as error:
        build.build(spec, **more)
    assert "\n" not in str(error.value)


def test_too_little_text():
    refused(
        data.TrainedBpe(n_vocab=4096),
        r"TrainedBpe\(n_vocab=4096\): its training text is too small for so many; ask for at most "
        r"\d+",
        texts=lambda: ["hello world"],
    )
    refused(data.TrainedBpe(), r"TrainedBpe\(\): there is no text here to train it on; give its")


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["model"]["merges"].pop(),
        lambda file: file["model"]["merges"].append(["x", None]),
        lambda file: file["model"]["merges"].reverse(),
        lambda file: file["model"]["vocab"].update({"<|endoftext|>": 256}),
        lambda file: file["pre_tokenizer"].update(add_prefix_space=True),
        lambda file: file.update(normalizer={"type": "NFC"}),
        lambda file: file.update(model=[]),
    ],
)
def test_another_tokenizer_json_is_refused(change, trained, tmp_path):
    path, file = tmp_path / "x.json", json.loads(trained.content)
    change(file)
    path.write_text(json.dumps(file))
    refused(
        data.TrainedBpe(path=str(path)),
        r"x.json is not the tokenizer.json of a byte-level BPE that gptjax trained: give Tok",
    )


def test_a_missing_or_damaged_file(tmp_path):
    refused(data.TrainedBpe(path=str(tmp_path / "no.json")), r"no.json cannot be read")
    (tmp_path / "x.json").write_text("{")
    refused(data.TrainedBpe(path=str(tmp_path / "x.json")), r"x.json")
