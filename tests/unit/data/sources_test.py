"""Where a run's rows come from: text that is tokenized when it is first read, what was prepared,
and what is refused before hours go by."""

import dataclasses
import json
import re

import numpy as np
import pytest

from gptjax.config import data
from gptjax.data import run_tokenizer, shards
from gptjax.data.sources import open
from gptjax.data.tokenizers import build
from tests.corpus import DOCUMENTS, prepared, reading, refused, write


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "text.jsonl", DOCUMENTS)


def test_without_sources_the_embedded_corpus_is_used_with_a_notice(tmp_path, monkeypatch):
    from gptjax.data.sources.document import Document

    monkeypatch.setattr(
        "gptjax.data.sources.stdlib_corpus.documents",
        lambda: (Document(t, t, 0.0) for t in DOCUMENTS),
    )
    said = []
    read = reading(tmp_path, say=said.append)
    assert said[0] == "training on the embedded corpus, because data.sources names nothing else"
    (described,) = read.description()["sources"]
    assert (
        described["source"] == "Embedded(weight=1.0)"
        and described["python"]
        and described["text"]["documents"] == 120
    )
    json.dumps(read.description())


def test_the_second_reading_finds_what_the_first_made(source, tmp_path, monkeypatch):
    said = []
    spec = data.SentencePiece(n_pieces=300)
    first = reading(tmp_path, source, spec=spec, n_vocab=300, say=said.append)
    assert (
        "training 300 SentencePiece pieces" in said[0]
        and "tokenizing Text" in said[1]
        and said[2] == "100% tokenized"
        and "tokens to train on" in said[3]
    )
    monkeypatch.setattr(
        "gptjax.data.sources.open.documents", lambda source: pytest.fail("read again")
    )
    said.clear()
    again = reading(
        tmp_path, dataclasses.replace(source, weight=7.0), spec=spec, n_vocab=300, say=said.append
    )
    assert not said and again.tokenizer.digest == first.tokenizer.digest
    np.testing.assert_array_equal(first.row(3), again.row(3))


def test_changed_text_is_tokenized_again(source, tmp_path):
    before = reading(tmp_path, source).description()["sources"][0]["text"]
    write(tmp_path / "text.jsonl", [*DOCUMENTS, "one more"])
    after = reading(tmp_path, source).description()["sources"][0]["text"]
    assert after["documents"] == before["documents"] + 1 and after["digest"] != before["digest"]


def test_the_same_text_by_another_tokenizer_is_tokenized_again(source, tmp_path):
    for name, texts in (("a", DOCUMENTS[:60]), ("b", DOCUMENTS[60:])):
        (tmp_path / f"{name}.model").write_bytes(
            build.sentencepiece_tokenizer.train(texts, 300).model
        )
    specs = [
        data.Bytes(),
        *(data.SentencePiece(path=str(tmp_path / f"{name}.model")) for name in "ab"),
    ]
    readings = [
        reading(tmp_path, source, spec=spec, n_vocab=257 if spec == data.Bytes() else 300)
        for spec in specs
    ]
    for read in readings:
        text = read.tokenizer.decode(
            [token for row in read.validation_rows(100) for token in row[:-1]]
        )
        assert re.search(r"document \d+ says", text), text
    assert len({read.description()["sources"][0]["text"]["digest"] for read in readings}) == 1
    assert len({read.digest() for read in readings}) == 3


def test_sentencepiece_is_trained_on_training_text_only(tmp_path, monkeypatch):
    texts = [f"{chr(0x100 + n)} some words to learn pieces of " * 9 for n in range(40)]
    seen, trained = [], build.sentencepiece_tokenizer.train

    def watched(given, n):
        seen.extend(given)
        return trained(seen, n)

    monkeypatch.setattr("gptjax.data.tokenizers.sentencepiece_tokenizer.train", watched)
    read = reading(
        tmp_path,
        write(tmp_path / "a.jsonl", texts),
        spec=data.SentencePiece(n_pieces=330),
        n_vocab=330,
    )
    assert read.tokenizer.n_vocab == 330
    assert 20 < len(seen) < 40 and set(seen) < set(texts)


@pytest.mark.parametrize(
    "weights, greek", [((1.0, 1.0), 0.5), ((9.0, 1.0), 0.1), ((1.0, 3.0), 0.75)]
)
def test_sentencepiece_is_trained_on_all_sources_by_weight(tmp_path, monkeypatch, weights, greek):
    monkeypatch.setattr("gptjax.data.tokenizers.training_text.SAMPLE_CHARS", 60_000)
    english = write(
        tmp_path / "english.jsonl", [f"{n % 10}" * 500 for n in range(400)], weight=weights[0]
    )  # the first 60,000 are not all
    other = write(
        tmp_path / "greek.jsonl", ["\u03b1\u03b2\u03b3" * 40 for _ in range(80)], weight=weights[1]
    )
    given = "".join(run_tokenizer.sample_texts((english, other), data.ByDocument(fraction=0)))
    assert (
        abs(given.count("\u03b1") * 3 / len(given) - greek) < 0.03 and 25_000 < len(given) <= 60_000
    )
    assert {str(n) for n in range(10)} <= set(given)
    assert given == "".join(
        run_tokenizer.sample_texts((english, other), data.ByDocument(fraction=0))
    )


def test_the_sample_of_one_small_source_is_all_of_it(source, tmp_path):
    rule = data.ByDocument(fraction=0.2)
    assert "".join(run_tokenizer.sample_texts((source,), rule)) == "".join(
        run_tokenizer.training_texts(source, rule)
    )


def test_a_run_goes_on_with_the_pieces_that_it_began_with(source, tmp_path):
    rule, spec = data.ByDocument(fraction=0.2), data.SentencePiece(n_pieces=300)
    place = run_tokenizer.model_path(spec, (source,), rule, tmp_path / "cache")
    heavier = dataclasses.replace(source, weight=2.0)
    assert place == run_tokenizer.model_path(
        spec, (heavier,), rule, tmp_path / "cache"
    )  # of one source the weight says nothing
    both = [
        run_tokenizer.model_path(spec, (source, other), rule, tmp_path / "cache")
        for other in (source, heavier)
    ]
    assert len({place, *both}) == 3
    earlier = shards.content_key(300, [open.fingerprint(source)] * 2, "ByDocument(fraction=0.2)")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"tokenizer-{earlier}.model").write_bytes(b"")
    assert (
        run_tokenizer.model_path(spec, (source, heavier), rule, tmp_path / "cache").name
        == f"tokenizer-{earlier}.model"
    )


def test_prepared_shards_bring_their_sentencepiece(source, tmp_path):
    model = build.sentencepiece_tokenizer.train(DOCUMENTS, 300)
    there = prepared(source, tmp_path / "out", data.SentencePiece(n_pieces=300), given=model)
    read = reading(tmp_path, there, spec=data.SentencePiece(n_pieces=300), n_vocab=300)
    assert read.tokenizer.digest == model.digest


# --- one line for what is wrong -------------------------------------------------------------------


def test_wrong_vocabulary_names_both_and_the_way_out(source, tmp_path):
    refused(
        r"Bytes\(\) has 257 ids but model.n_vocab=300: --set model.n_vocab=257",
        lambda: reading(tmp_path, source, n_vocab=300),
    )


def test_shards_of_another_tokenizer_or_split_are_refused(source, tmp_path):
    there = prepared(source, tmp_path / "out")
    model = build.sentencepiece_tokenizer.train(DOCUMENTS, 300)
    (tmp_path / "x.model").write_bytes(model.model)
    spec = data.SentencePiece(path=str(tmp_path / "x.model"))
    refused(
        r"was tokenized by Bytes\(\) .* this run's is SentencePiece",
        lambda: reading(tmp_path, there, spec=spec, n_vocab=300),
    )
    refused(
        r'was split by ByDocument\(fraction=0.2\).*--set "data.validation=ByDocument',
        lambda: reading(tmp_path, there, held_out=data.Tail()),
    )
    other = build.sentencepiece_tokenizer.train(
        [text[::-1] for text in DOCUMENTS], 300
    )  # as many ids
    there_too = prepared(source, tmp_path / "too", spec, given=other)
    refused(
        r"was tokenized by SentencePiece.* this run's is SentencePiece",
        lambda: reading(tmp_path, there_too, spec=spec, n_vocab=300),
    )
    gone = data.Shards(path=str(tmp_path / "nowhere"))
    refused(r"is no shard directory", lambda: reading(tmp_path, gone))
    refused(
        r"there is no text here to train it on",
        lambda: reading(tmp_path, gone, spec=data.SentencePiece()),
    )


def test_damaged_shards_are_one_line(source, tmp_path):
    there = prepared(source, tmp_path / "out")
    path = tmp_path / "out" / "train-00000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])
    refused(r"train-00000.tokens.npy is damaged or cut short", lambda: reading(tmp_path, there))
    assert shards.read_manifest(tmp_path / "out")


def test_empty_splits_say_which_value_to_change(tmp_path):
    one = write(tmp_path / "one.jsonl", ["a single long text " * 50])
    rare, advice = (
        data.ByDocument(fraction=0.01),
        r'raise data.validation.fraction=0.01, or cut every document: --set "data.validation=Tail',
    )
    refused(
        r"validation split has 0 tokens.*" + advice, lambda: reading(tmp_path, one, held_out=rare)
    )
    almost = data.ByDocument(fraction=0.9999)
    refused(
        r"no document is left to train on; lower data.validation.fraction=0.9999",
        lambda: reading(tmp_path, one, held_out=almost),
    )
    little = data.Tail(fraction=0.001)
    refused(
        r"validation split has .*raise data.validation.fraction=0.001",
        lambda: reading(tmp_path, one, held_out=little),
    )


def lone(tmp_path, name="book.txt", text="It is a truth universally acknowledged. " * 99):
    (tmp_path / "alone").mkdir(exist_ok=True)
    (tmp_path / "alone" / name).write_text(text)
    return tmp_path / "alone"


@pytest.mark.parametrize("spec", [None, data.SentencePiece(n_pieces=300)])
@pytest.mark.parametrize("ending", ["", "/*.txt", "/book.txt"])
def test_one_document_is_refused_before_it_is_tokenized(tmp_path, monkeypatch, ending, spec):
    monkeypatch.setattr(
        "gptjax.data.tokenizers.sentencepiece_tokenizer.train",
        lambda *given: pytest.fail("trained"),
    )
    monkeypatch.setattr(
        "gptjax.data.tokenize.tokenize_corpus", lambda *given: pytest.fail("tokenized")
    )
    source = data.Text(path=str(lone(tmp_path)) + ending)
    match = (
        r"is one document, which cannot be both trained and validated on: hold out its end, "
        r".*Tail\(fraction=0.1\)"
    )
    refused(
        match,
        lambda: reading(
            tmp_path,
            source,
            spec=spec,
            n_vocab=300 if spec else 257,
            held_out=data.ByDocument(fraction=0.5),
        ),
    )


def test_few_documents_of_which_none_is_held_out_are_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gptjax.data.tokenize.tokenize_corpus", lambda *given: pytest.fail("tokenized")
    )
    few = write(tmp_path / "few.jsonl", ["one text " * 99, "another " * 99, "a third " * 99])
    advice = r"the validation split has 0 tokens; raise data.validation.fraction=0.01, or cut"
    refused(
        r"no document of Text\(.*few.jsonl.* is held out: " + advice,
        lambda: reading(tmp_path, few, held_out=data.ByDocument()),
    )


def test_skipped_files_are_reported_and_recorded(tmp_path):
    corpus = lone(tmp_path, "notes.md")
    write(corpus / "a.jsonl", [*DOCUMENTS, None, "", None])
    (corpus / "empty.txt").write_text("")
    said = []
    read = reading(tmp_path, data.Text(path=str(corpus)), say=said.append)
    assert any("2 files; skipped: 1 of unknown format (notes.md)" in line for line in said)
    assert any(
        "2 documents whose text is null, 1 empty documents, 1 files without text" in line
        for line in said
    )
    (described,) = read.description()["sources"]
    assert described["passed_over"] == {
        "documents whose text is null": 2,
        "empty documents": 1,
        "files without text": 1,
    }


def test_a_mixture_that_cannot_be_kept_is_refused_before_and_recorded_as_it_is(
    source, tmp_path, monkeypatch
):
    tiny = dataclasses.replace(source, weight=3.73e-5)
    said = []
    read = reading(tmp_path, source, tiny, say=said.append)
    assert "is rounded to 1 row in 32,768, 0.818 times as much" in said[0]
    small = read.description()["sources"][1]
    tokens = small["splits"]["train"]["tokens"]
    assert (
        small["weight"] == 3.73e-5
        and small["share"] == 1 / 32768
        and small["epochs"] == pytest.approx(10_000 / 32768 / tokens)
    )
    monkeypatch.setattr(
        "gptjax.data.tokenize.tokenize_corpus", lambda *given: pytest.fail("tokenized")
    )
    refused(
        r"1 row in 65,536",
        lambda: reading(tmp_path, source, dataclasses.replace(source, weight=1e-7)),
    )


def test_a_corpus_smaller_than_one_row(tmp_path):
    small = write(tmp_path / "small.jsonl", ["0123456789" * 4])
    refused(
        r"Text\(.*small.jsonl.*\) has 33 tokens, fewer than one row of model.n_ctx=64 .*--set "
        r"model.n_ctx=32",
        lambda: reading(tmp_path, small, n_ctx=64, held_out=data.Tail(fraction=0.2)),
    )


def test_validating_on_what_is_trained_on_is_refused(source, tmp_path):
    held = data.Separate(source=dataclasses.replace(source, weight=2.0))
    refused(
        r"text.jsonl is also trained on, by .*; validate on another",
        lambda: reading(tmp_path, source, held_out=held),
    )


def test_bad_sources_are_one_line(tmp_path):
    refused(r"does not exist", lambda: reading(tmp_path, data.Text(path=str(tmp_path / "no.txt"))))
    refused(
        r"not prepared", lambda: reading(tmp_path, data.Tfds(name="nosuch", data_dir=str(tmp_path)))
    )
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\x00")
    refused(
        r"is not text: a zero byte at offset 4",
        lambda: reading(tmp_path, data.Text(path=str(tmp_path / "binary.txt"))),
    )
