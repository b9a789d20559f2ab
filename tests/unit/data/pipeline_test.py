"""From a config to batches: the same for any number of processes, exact resume from any step, nothing of validation in training."""

import dataclasses
import json
import re

import numpy as np
import pytest

from gptjax.config import data
from gptjax.config.schema import Config, Constant, Model, Train
from gptjax.data import corpora, pipeline, shards, tokenising, tokenizer

N_CTX = 16
DOCUMENTS = [f"document {n} says " + " ".join(str(n * k) for k in range(n % 30)) for n in range(120)]


class Ramped:
    """Batches of 8, 8, then 16 rows and on; the protocol of config/batches.py."""

    n_steps = 12
    max_rows = 16

    def rows(self, step):
        return 8 if step < 2 else 16

    def first_row(self, step):
        return sum(self.rows(s) for s in range(step))

    def microbatch(self, step, limit_rows):
        return limit_rows


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "text.jsonl", DOCUMENTS)


def write(path, texts, **more):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return data.Text(path=str(path), **more)


def config(*sources, n_vocab=257, n_ctx=N_CTX, spec=None, held_out=None, seed=0):
    return Config(
        name="test",
        model=Model(n_layers=1, n_heads=1, d_model=8, n_vocab=n_vocab, n_ctx=n_ctx),
        data=data.Data(sources=sources, tokenizer=spec or data.Bytes(), held_out=held_out or data.ByDocument(fraction=0.2)),
        train=Train(total_tokens=10_000, batch_tokens=16 * n_ctx, schedule=Constant(peak=1e-3)),
        seed=seed,
    )


def reading(tmp_path, *sources, say=lambda line: None, **options):
    return pipeline.reading(config(*sources, **options), tmp_path / "cache", say)


def refused(match, call):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)


def drawn(iterator):
    return [{name: np.array(value) for name, value in batch.items()} for batch in iterator]


def same(a, b):
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


# --- batches -----------------------------------------------------------------------------------------------------------


def test_batches_have_one_shape_and_hold_the_plans_rows(source, tmp_path):
    read, plan = reading(tmp_path, source), Ramped()
    batches = drawn(read.batches(plan, 4))
    assert len(batches) == plan.n_steps
    for step, batch in enumerate(batches):
        assert batch["rows"] == 4 and batch["tokens"].shape == (4, 4, N_CTX + 1) and batch["tokens"].dtype == np.int32
        assert batch["count"].shape == () and batch["count"].dtype == np.int32 and batch["count"] * 4 == plan.rows(step)
        rows = batch["tokens"].reshape(-1, N_CTX + 1)
        for place in range(plan.rows(step)):
            np.testing.assert_array_equal(rows[place], read.row(plan.first_row(step) + place))
        assert not rows[plan.rows(step) :].any()


def test_one_process_or_four_give_the_same_global_batch(source, tmp_path):
    read = reading(tmp_path, source)
    whole = drawn(read.batches(Ramped(), 8))
    parts = [drawn(read.batches(Ramped(), 8, here=lambda n_rows, p=p: range(n_rows)[2 * p : 2 * p + 2])) for p in range(4)]
    assert parts[0][0]["tokens"].shape == (2, 2, N_CTX + 1)
    joined = [parts[0][step] | {"tokens": np.concatenate([part[step]["tokens"] for part in parts], axis=1)} for step in range(12)]
    same(joined, whole)


@pytest.mark.parametrize("microbatch_rows", [2, 8])
def test_the_microbatch_changes_no_row(source, tmp_path, microbatch_rows):
    read = reading(tmp_path, source)
    rows = [b["tokens"].reshape(-1, N_CTX + 1) for b in drawn(read.batches(Ramped(), microbatch_rows))]
    np.testing.assert_array_equal(rows, [b["tokens"].reshape(-1, N_CTX + 1) for b in drawn(read.batches(Ramped(), 4))])


@pytest.mark.parametrize("step", [0, 1, 2, 5, 11, 12])
def test_resume_anywhere_is_the_uninterrupted_run(source, tmp_path, step):
    whole = drawn(reading(tmp_path, source).batches(Ramped(), 4))
    same(drawn(reading(tmp_path, source).batches(Ramped(), 4, first_step=step)), whole[step:])
    first = reading(tmp_path, source).batches(Ramped(), 4)
    for _ in range(step):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    again = reading(tmp_path, source).batches(Ramped(), 4)
    again.set_state(state)
    same(drawn(again), whole[step:])
    same(drawn(first), whole[step:])  # reading the state moved nothing


def test_the_seed_decides_the_order(source, tmp_path):
    a, b = (reading(tmp_path, source, seed=seed) for seed in (0, 1))
    assert not np.array_equal(a.row(0), b.row(0)) and np.array_equal(a.validation(5), b.validation(5))


def test_a_batch_that_is_no_whole_number_of_microbatches_is_a_bug(source, tmp_path):
    with pytest.raises(AssertionError):
        drawn(reading(tmp_path, source).batches(Ramped(), 5))


def test_the_full_batch_may_have_larger_microbatches(source, tmp_path):
    class Larger(Ramped):
        def microbatch(self, step, limit_rows):
            return 2 if self.rows(step) < self.max_rows else 16

    read = reading(tmp_path, source)
    found = drawn(read.batches(Larger(), 16))
    shapes = [(b["tokens"].shape[:2], int(b["count"]), int(b["rows"])) for b in found]
    assert shapes == [((8, 2), 4, 2)] * 2 + [((1, 16), 1, 16)] * 10
    rows = [b["tokens"].reshape(-1, N_CTX + 1) for b in found]
    np.testing.assert_array_equal(rows, [b["tokens"].reshape(-1, N_CTX + 1) for b in drawn(read.batches(Ramped(), 4))])


def test_sources_of_as_many_documents_are_read_in_orders_of_their_own(tmp_path):
    a, b = (write(tmp_path / f"{name}.jsonl", [f"{name}{n:02}" * 12 for n in range(40)]) for name in "ab")
    read, orders = reading(tmp_path, a, b, held_out=data.Tail(fraction=0.1)), {"a": [], "b": []}
    for n in range(100):
        found = re.search(r"([ab])(\d\d)", read.tokenizer.decode(read.row(n)))
        orders[found[1]].append(found[2])
    assert len(orders["a"]) == len(orders["b"]) == 50 and orders["a"] != orders["b"]


def test_another_split_or_content_is_another_run(source, tmp_path):
    """The cache and the digest that a run is continued by."""
    by_document, tail = (reading(tmp_path, source, held_out=rule) for rule in (data.ByDocument(fraction=0.2), data.Tail(fraction=0.2)))
    first, second = (read.description()["sources"][0]["splits"]["train"] for read in (by_document, tail))
    assert first["documents"] < second["documents"] == len(DOCUMENTS) and by_document.digest() != tail.digest()
    before = tail.digest()
    tail._opened[0].manifest["splits"]["train"]["shards"][0]["digest"] = "another"
    assert tail.digest() != before


def test_mixtures_draw_by_weight(tmp_path):
    a, b = write(tmp_path / "a.jsonl", ["a" * 400] * 3, weight=3.0), write(tmp_path / "b.jsonl", ["b" * 400] * 3)
    read = reading(tmp_path, a, b, held_out=data.Tail(fraction=0.2))
    rows = np.stack([read.row(n) for n in range(40)])
    assert sum(ord("a") in row for row in rows) == 30 and sum(ord("b") in row for row in rows) == 10
    said = read.description()["sources"]
    assert [s["weight"] for s in said] == [3.0, 1.0]
    tokens = said[0]["splits"]["train"]["tokens"]
    assert tokens == 3 * 321 and np.allclose([s["epochs"] for s in said], [0.75 * 10_000 / tokens, 0.25 * 10_000 / tokens])
    assert {*map(ord, "ab")} <= set(read.validation(10**6).ravel().tolist()), "both sources are validated on"


def test_text_that_is_read_more_than_once_is_said_to_be(tmp_path):
    small, large = write(tmp_path / "small.jsonl", ["a" * 600] * 2), write(tmp_path / "large.jsonl", ["b" * 30_000] * 2)
    rule = data.Tail(fraction=0.2)
    assert reading(tmp_path, small, held_out=rule).summary().endswith(", read 10.4 times")
    assert reading(tmp_path, small, large, held_out=rule).summary().endswith(", read 5.2 and 0.1 times")
    assert " read " not in reading(tmp_path, large, held_out=rule).summary()


# --- held out ------------------------------------------------------------------------------------------------------------


def sides(read, n_rows):
    """Every training row of an epoch and every validation row, as text."""
    text = read.tokenizer.decode
    return "|".join(text(read.row(n)) for n in range(n_rows)), "|".join(text(row) for row in read.validation(10**6))


def test_no_token_of_validation_is_trained_on(tmp_path):
    # Document n is a run of one character: a row shows whose tokens it holds. Every text is there twice, in two sources.
    letters = [chr(0x100 + n) for n in range(60)]
    a = write(tmp_path / "a.jsonl", [letter * 50 for letter in letters] * 2)
    b = write(tmp_path / "b.jsonl", [letter * 50 for letter in letters[::-1]], weight=2.0)
    read = reading(tmp_path, a, b)
    trained, held = (set(side) & set(letters) for side in sides(read, 3000))
    assert trained | held == set(letters) and not trained & held and held


def test_tail_holds_out_the_end_of_every_document(tmp_path):
    texts = [chr(0x100 + n) * 80 + chr(0x200 + n) * 20 for n in range(20)]
    read = reading(tmp_path, write(tmp_path / "a.jsonl", texts), held_out=data.Tail(fraction=0.2))
    trained, held = sides(read, 1000)
    assert set(held) & set(map(chr, range(0x200, 0x214))) and not set(held) & set(map(chr, range(0x100, 0x114)))
    assert not set(trained) & set(map(chr, range(0x200, 0x214)))


def test_separate_validates_on_the_other_source_whole(tmp_path):
    a, b = write(tmp_path / "a.jsonl", ["a" * 300] * 3), write(tmp_path / "b.jsonl", ["b" * 100] * 3)
    read = reading(tmp_path, a, held_out=data.Separate(source=b))
    trained, held = sides(read, 100)
    assert "b" not in trained and "a" not in held and read.description()["validation"]["tokens"] == 303


def test_validation_is_the_same_every_time_and_counts_bytes(source, tmp_path):
    read = reading(tmp_path, source)
    rows = read.validation(5)
    assert rows.shape == (5, N_CTX + 1) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows, reading(tmp_path, source).validation(5))
    held = read.description()["validation"]
    assert read.validation_bytes_per_token == held["bytes"] / held["tokens"] == (held["tokens"] - held["documents"]) / held["tokens"]


# --- where it comes from ---------------------------------------------------------------------------------------------------


def test_nothing_named_means_the_embedded_corpus_and_is_said(tmp_path, monkeypatch):
    from gptjax.data.document import Document

    monkeypatch.setattr("gptjax.data.embedded.documents", lambda: (Document(t, t, 0.0) for t in DOCUMENTS))
    said = []
    read = reading(tmp_path, say=said.append)
    assert said[0] == "training on the embedded corpus, because data.sources names nothing else"
    (described,) = read.description()["sources"]
    assert described["source"] == "Embedded(weight=1.0)" and described["python"] and described["text"]["documents"] == 120
    json.dumps(read.description())


def test_the_second_reading_finds_what_the_first_made(source, tmp_path, monkeypatch):
    said = []
    spec = data.SentencePiece(n_pieces=300)
    first = reading(tmp_path, source, spec=spec, n_vocab=300, say=said.append)
    assert (
        "training 300 SentencePiece pieces" in said[0]
        and "tokenising Text" in said[1]
        and said[2] == "100% tokenised"
        and "tokens to train on" in said[3]
    )
    monkeypatch.setattr("gptjax.data.corpora.documents", lambda source: pytest.fail("read again"))
    said.clear()
    again = reading(tmp_path, dataclasses.replace(source, weight=7.0), spec=spec, n_vocab=300, say=said.append)
    assert not said and again.tokenizer.digest == first.tokenizer.digest
    np.testing.assert_array_equal(first.row(3), again.row(3))


def test_changed_text_is_tokenised_again(source, tmp_path):
    before = reading(tmp_path, source).description()["sources"][0]["text"]
    write(tmp_path / "text.jsonl", [*DOCUMENTS, "one more"])
    after = reading(tmp_path, source).description()["sources"][0]["text"]
    assert after["documents"] == before["documents"] + 1 and after["digest"] != before["digest"]


def test_the_same_text_by_another_tokenizer_is_tokenised_again(source, tmp_path):
    for name, texts in (("a", DOCUMENTS[:60]), ("b", DOCUMENTS[60:])):
        (tmp_path / f"{name}.model").write_bytes(tokenizer.pieces.trained(texts, 300).model)
    specs = [data.Bytes(), *(data.SentencePiece(path=str(tmp_path / f"{name}.model")) for name in "ab")]
    readings = [reading(tmp_path, source, spec=spec, n_vocab=257 if spec == data.Bytes() else 300) for spec in specs]
    for read in readings:
        text = read.tokenizer.decode([token for row in read.validation(100) for token in row[:-1]])
        assert re.search(r"document \d+ says", text), text
    assert len({read.description()["sources"][0]["text"]["digest"] for read in readings}) == 1
    assert len({read.digest() for read in readings}) == 3


def test_sentencepiece_is_trained_on_training_text_only(tmp_path, monkeypatch):
    texts = [f"{chr(0x100 + n)} some words to learn pieces of " * 9 for n in range(40)]
    seen, trained = [], tokenizer.pieces.trained

    def watched(given, n):
        seen.extend(given)
        return trained(seen, n)

    monkeypatch.setattr("gptjax.data.pieces.trained", watched)
    read = reading(tmp_path, write(tmp_path / "a.jsonl", texts), spec=data.SentencePiece(n_pieces=330), n_vocab=330)
    assert read.tokenizer.n_vocab == 330
    assert 20 < len(seen) < 40 and set(seen) < set(texts)


@pytest.mark.parametrize("weights, greek", [((1.0, 1.0), 0.5), ((9.0, 1.0), 0.1), ((1.0, 3.0), 0.75)])
def test_sentencepiece_is_trained_on_all_sources_by_weight(tmp_path, monkeypatch, weights, greek):
    monkeypatch.setattr("gptjax.data.pieces.SAMPLE", 60_000)
    english = write(tmp_path / "english.jsonl", [f"{n % 10}" * 500 for n in range(400)], weight=weights[0])  # the first 60,000 are not all
    other = write(tmp_path / "greek.jsonl", ["\u03b1\u03b2\u03b3" * 40 for _ in range(80)], weight=weights[1])
    given = "".join(pipeline.sample((english, other), data.ByDocument(fraction=0)))
    assert abs(given.count("\u03b1") * 3 / len(given) - greek) < 0.03 and 25_000 < len(given) <= 60_000
    assert {str(n) for n in range(10)} <= set(given)
    assert given == "".join(pipeline.sample((english, other), data.ByDocument(fraction=0)))


def test_the_sample_of_one_small_source_is_all_of_it(source, tmp_path):
    rule = data.ByDocument(fraction=0.2)
    assert "".join(pipeline.sample((source,), rule)) == "".join(pipeline.training_texts(source, rule))


def test_a_run_goes_on_with_the_pieces_that_it_began_with(source, tmp_path):
    rule, spec = data.ByDocument(fraction=0.2), data.SentencePiece(n_pieces=300)
    place = pipeline.model_place(spec, (source,), rule, tmp_path / "cache")
    heavier = dataclasses.replace(source, weight=2.0)
    assert place == pipeline.model_place(spec, (heavier,), rule, tmp_path / "cache")  # of one source the weight says nothing
    both = [pipeline.model_place(spec, (source, other), rule, tmp_path / "cache") for other in (source, heavier)]
    assert len({place, *both}) == 3
    earlier = pipeline.digest(300, [corpora.fingerprint(source)] * 2, "ByDocument(fraction=0.2)")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"tokenizer-{earlier}.model").write_bytes(b"")
    assert pipeline.model_place(spec, (source, heavier), rule, tmp_path / "cache").name == f"tokenizer-{earlier}.model"


def prepared(source, directory, spec=None, rule=None, given=None):
    spec, rule = spec or data.Bytes(), rule or data.ByDocument(fraction=0.2)
    tokenising.write(source, repr(spec), given or tokenizer.tokenizer(spec), rule, directory, lambda done: None, block=500)
    return data.Shards(path=str(directory))


def test_prepared_shards_give_the_rows_of_their_source(source, tmp_path):
    there = prepared(source, tmp_path / "out")
    a, b = reading(tmp_path, source), reading(tmp_path, there)
    same(drawn(a.batches(Ramped(), 8)), drawn(b.batches(Ramped(), 8)))
    np.testing.assert_array_equal(a.validation(9), b.validation(9))


def test_prepared_shards_bring_their_sentencepiece(source, tmp_path):
    model = tokenizer.pieces.trained(DOCUMENTS, 300)
    there = prepared(source, tmp_path / "out", data.SentencePiece(n_pieces=300), given=model)
    read = reading(tmp_path, there, spec=data.SentencePiece(n_pieces=300), n_vocab=300)
    assert read.tokenizer.digest == model.digest


# --- one line for what is wrong --------------------------------------------------------------------------------------------


def test_wrong_vocabulary_names_both_and_the_way_out(source, tmp_path):
    refused(r"Bytes\(\) has 257 ids but model.n_vocab=300: --set model.n_vocab=257", lambda: reading(tmp_path, source, n_vocab=300))


def test_shards_of_another_tokenizer_or_split_are_refused(source, tmp_path):
    there = prepared(source, tmp_path / "out")
    model = tokenizer.pieces.trained(DOCUMENTS, 300)
    (tmp_path / "x.model").write_bytes(model.model)
    spec = data.SentencePiece(path=str(tmp_path / "x.model"))
    refused(r"was tokenised by Bytes\(\) .* this run's is SentencePiece", lambda: reading(tmp_path, there, spec=spec, n_vocab=300))
    refused(
        r'was split by ByDocument\(fraction=0.2\).*--set "data.held_out=ByDocument', lambda: reading(tmp_path, there, held_out=data.Tail())
    )
    other = tokenizer.pieces.trained([text[::-1] for text in DOCUMENTS], 300)  # as many ids
    there_too = prepared(source, tmp_path / "too", spec, given=other)
    refused(r"was tokenised by SentencePiece.* this run's is SentencePiece", lambda: reading(tmp_path, there_too, spec=spec, n_vocab=300))
    gone = data.Shards(path=str(tmp_path / "nowhere"))
    refused(r"is no shard directory", lambda: reading(tmp_path, gone))
    refused(r"there is no text here to train it on", lambda: reading(tmp_path, gone, spec=data.SentencePiece()))


def test_damaged_shards_are_one_line(source, tmp_path):
    there = prepared(source, tmp_path / "out")
    path = tmp_path / "out" / "train-00000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])
    refused(r"train-00000.tokens.npy is damaged or cut short", lambda: reading(tmp_path, there))
    assert shards.read_manifest(tmp_path / "out")


def test_empty_splits_say_which_value_to_change(tmp_path):
    one = write(tmp_path / "one.jsonl", ["a single long text " * 50])
    rare, advice = data.ByDocument(fraction=0.01), r'raise data.held_out.fraction=0.01, or cut every document: --set "data.held_out=Tail'
    refused(r"validation split has 0 tokens.*" + advice, lambda: reading(tmp_path, one, held_out=rare))
    almost = data.ByDocument(fraction=0.9999)
    refused(r"no document is left to train on; lower data.held_out.fraction=0.9999", lambda: reading(tmp_path, one, held_out=almost))
    little = data.Tail(fraction=0.001)
    refused(r"validation split has .*raise data.held_out.fraction=0.001", lambda: reading(tmp_path, one, held_out=little))


def lone(tmp_path, name="book.txt", text="It is a truth universally acknowledged. " * 99):
    (tmp_path / "alone").mkdir(exist_ok=True)
    (tmp_path / "alone" / name).write_text(text)
    return tmp_path / "alone"


@pytest.mark.parametrize("spec", [None, data.SentencePiece(n_pieces=300)])
@pytest.mark.parametrize("ending", ["", "/*.txt", "/book.txt"])
def test_one_document_is_refused_before_it_is_tokenised(tmp_path, monkeypatch, ending, spec):
    monkeypatch.setattr("gptjax.data.pieces.trained", lambda *given: pytest.fail("trained"))
    monkeypatch.setattr("gptjax.data.tokenising.write", lambda *given: pytest.fail("tokenised"))
    source = data.Text(path=str(lone(tmp_path)) + ending)
    match = r"is one document, which cannot be both trained and validated on: hold out its end, .*Tail\(fraction=0.1\)"
    refused(match, lambda: reading(tmp_path, source, spec=spec, n_vocab=300 if spec else 257, held_out=data.ByDocument(fraction=0.5)))


def test_few_documents_of_which_none_is_held_out_are_refused_before(tmp_path, monkeypatch):
    monkeypatch.setattr("gptjax.data.tokenising.write", lambda *given: pytest.fail("tokenised"))
    few = write(tmp_path / "few.jsonl", ["one text " * 99, "another " * 99, "a third " * 99])
    advice = r"the validation split has 0 tokens; raise data.held_out.fraction=0.01, or cut"
    refused(r"no document of Text\(.*few.jsonl.* is held out: " + advice, lambda: reading(tmp_path, few, held_out=data.ByDocument()))


def test_what_is_passed_over_is_said_and_recorded(tmp_path):
    corpus = lone(tmp_path, "notes.md")
    write(corpus / "a.jsonl", [*DOCUMENTS, None, "", None])
    (corpus / "empty.txt").write_text("")
    said = []
    read = reading(tmp_path, data.Text(path=str(corpus)), say=said.append)
    assert any("2 files; passed over: 1 of no known format (notes.md)" in line for line in said)
    assert any("2 documents whose text is null, 1 empty documents, 1 files without text" in line for line in said)
    (described,) = read.description()["sources"]
    assert described["passed_over"] == {"documents whose text is null": 2, "empty documents": 1, "files without text": 1}


def test_a_mixture_that_cannot_be_kept_is_refused_before_and_recorded_as_it_is(source, tmp_path, monkeypatch):
    tiny = dataclasses.replace(source, weight=3.73e-5)
    said = []
    read = reading(tmp_path, source, tiny, say=said.append)
    assert "is rounded to 1 row in 32,768, 0.818 times as much" in said[0]
    small = read.description()["sources"][1]
    tokens = small["splits"]["train"]["tokens"]
    assert small["weight"] == 3.73e-5 and small["share"] == 1 / 32768 and small["epochs"] == pytest.approx(10_000 / 32768 / tokens)
    monkeypatch.setattr("gptjax.data.tokenising.write", lambda *given: pytest.fail("tokenised"))
    refused(r"1 row in 65,536", lambda: reading(tmp_path, source, dataclasses.replace(source, weight=1e-7)))


@pytest.mark.parametrize("held", [False, True])
def test_an_id_that_appears_while_the_run_reads_is_named(source, tmp_path, monkeypatch, held):
    read = reading(tmp_path, prepared(source, tmp_path / "out"))
    split = "validation" if held else "train"
    for file in (tmp_path / "out").glob(f"{split}-*.tokens.npy"):
        with file.open("r+b") as stream:
            stream.seek(-4, 2)
            stream.write(b"\xff\xff")
    refused(
        rf"{split}-000\d\d.tokens.npy holds the id 65,535 at token [\d,]+, and the vocabulary has 257 ids",
        lambda: read.validation(10**6) if held else drawn(read.batches(Ramped(), 4)),
    )


def test_damage_to_a_large_directory_reaches_the_run(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "VERIFIED", 0)
    there = prepared(source, tmp_path / "out")
    file = tmp_path / "out" / "train-00002.tokens.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    read = reading(tmp_path, there)
    refused(r"train-00002.\*.npy is damaged: it differs from the manifest", lambda: drawn(read.batches(Ramped(), 4)))


def test_a_corpus_smaller_than_one_row(tmp_path):
    small = write(tmp_path / "small.jsonl", ["0123456789" * 4])
    refused(
        r"Text\(.*small.jsonl.*\) has 33 tokens, fewer than one row of model.n_ctx=64 .*--set model.n_ctx=32",
        lambda: reading(tmp_path, small, n_ctx=64, held_out=data.Tail(fraction=0.2)),
    )


def test_validating_on_what_is_trained_on_is_refused(source, tmp_path):
    held = data.Separate(source=dataclasses.replace(source, weight=2.0))
    refused(r"text.jsonl is also trained on, by .*; validate on another", lambda: reading(tmp_path, source, held_out=held))


def test_bad_sources_are_one_line(tmp_path):
    refused(r"does not exist", lambda: reading(tmp_path, data.Text(path=str(tmp_path / "no.txt"))))
    refused(r"not prepared", lambda: reading(tmp_path, data.Tfds(name="nosuch", data_dir=str(tmp_path))))
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\x00")
    refused(r"is not text: a zero byte at offset 4", lambda: reading(tmp_path, data.Text(path=str(tmp_path / "binary.txt"))))
