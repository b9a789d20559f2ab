"""Sources that are read while training: the same rows at every start, from any step on, on any
number of processes; nothing of validation in training; changed files are refused by name."""

import dataclasses
import gzip
import itertools
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from gptjax import prepare
from gptjax.config import data
from gptjax.data import mixture, open_dataset
from gptjax.data.sources import file_listing
from tests import bucket
from tests.corpus import N_CTX, config, prepared, reading, refused, write

TEXTS = [f"<{n}> " + " ".join(str(n * k) for k in range(n % 30)) for n in range(150)]
LONG = "<long> " + " ".join(map(str, range(60)))  # longer than a row of N_CTX bytes
ROWS, N_STEPS = 8, 90


class Plan:
    """The protocol of config/batch_schedule.py."""

    n_steps, max_rows = N_STEPS, ROWS

    def rows(self, step):
        return ROWS

    def first_row(self, step):
        return ROWS * step

    def microbatch(self, step, limit_rows):
        return limit_rows


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write_files(folder):
    """Three files of different formats, with nulls, empty texts, blank lines and a long text."""
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\n" + lines([*TEXTS[:20], None, "", LONG, *TEXTS[20:50]]))
    column = pyarrow.table({"text": [*TEXTS[50:70], None, *TEXTS[70:100]]})
    pyarrow.parquet.write_table(column, folder / "b.parquet", row_group_size=7)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[100:])))


@pytest.fixture
def folder(tmp_path):
    write_files(tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture(params=[1, 3])
def source(folder, request):
    return data.Stream(path=str(folder), shuffle_rows=request.param)


def drawn(dataset, first_step=0, local_rows=range, n=N_STEPS):
    """The rows of each step, (steps, rows, N_CTX + 1)."""
    batches = dataset.batches(Plan(), 4, first_step, local_rows)
    return np.stack(
        [batch["tokens"].reshape(-1, N_CTX + 1) for batch in itertools.islice(batches, n)]
    )


def stop_at(dataset, step):
    """What a checkpoint of `step` holds, as it is read from the disk."""
    batches = dataset.batches(Plan(), 4)
    for _ in range(step):
        next(batches)
    return json.loads(json.dumps(dataset.position(step)))


def resumed(tmp_path, source, position, **options):
    dataset = reading(tmp_path, source, **options)
    dataset.seek(position)
    return dataset


# --- rows -----------------------------------------------------------------------------------------


def test_rows_are_the_documents_end_to_end_epoch_after_epoch(folder, tmp_path):
    said = []
    source = data.Stream(path=str(folder), shuffle_rows=1)
    tail = write(tmp_path / "other.jsonl", ["something else " * 20])
    read = reading(tmp_path, source, held_out=data.Separate(source=tail), say=said.append)
    epoch = [*TEXTS[:20], LONG, *TEXTS[20:]]
    expected = [b for text in epoch for b in [*text.encode(), 256]] * 2
    n = N_STEPS * ROWS
    assert len(expected) / 2 < n * N_CTX < len(expected)  # into the second epoch
    rows = drawn(read).reshape(-1, N_CTX + 1)
    assert rows.tolist() == [expected[i * N_CTX : (i + 1) * N_CTX + 1] for i in range(n)]
    assert read.position(N_STEPS)[0]["epoch"] == 1
    told = [line for line in said if "begins again" in line]  # at most a chunk ahead
    assert len(told) <= 2
    assert "end of epoch 1, of 151 documents, and 3 without text, 0 validated on" in told[0]


def test_windows_hold_the_rows_of_the_stream_in_another_order(folder, tmp_path):
    plain, shuffled = (
        drawn(reading(tmp_path, data.Stream(path=str(folder), shuffle_rows=n))).reshape(
            -1, 8, N_CTX + 1
        )
        for n in (1, 8)
    )
    assert not np.array_equal(plain, shuffled)
    for a, b in zip(plain, shuffled, strict=True):
        assert sorted(a.tolist()) == sorted(b.tolist())


def test_two_processes_read_what_one_does(source, tmp_path):
    whole = drawn(reading(tmp_path, source))
    halves = [
        drawn(reading(tmp_path, source), local_rows=lambda n, p=p: range(n)[2 * p : 2 * p + 2])
        for p in range(2)
    ]
    joined = np.concatenate(
        [half.reshape(N_STEPS, ROWS // 4, 2, N_CTX + 1) for half in halves], axis=2
    )
    np.testing.assert_array_equal(joined.reshape(whole.shape), whole)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 21, 47, 55, 72, 77, 89])
def test_a_run_goes_on_from_any_step(source, tmp_path, step):
    whole = drawn(reading(tmp_path, source))
    again = resumed(tmp_path, source, stop_at(reading(tmp_path, source), step))
    np.testing.assert_array_equal(drawn(again, step), whole[step:])
    # and once more, from a checkpoint of the resumed run
    batches = again.batches(Plan(), 4, step)
    next(batches)
    third = resumed(tmp_path, source, json.loads(json.dumps(again.position(step + 1))))
    if step + 1 < N_STEPS:
        np.testing.assert_array_equal(drawn(third, step + 1), whole[step + 1 :])


def test_every_process_saves_the_position_that_one_process_has(source, tmp_path):
    one = stop_at(reading(tmp_path, source), 7)
    first_rows = reading(tmp_path, source)
    batches = first_rows.batches(Plan(), 4, 0, lambda n: range(n)[:1])
    for _ in range(7):
        next(batches)
    assert json.loads(json.dumps(first_rows.position(7))) == one


def test_a_step_that_was_not_taken_does_not_move_the_position(source, tmp_path):
    """The loop reads a batch and is stopped before the step is complete."""
    read = reading(tmp_path, source)
    batches = read.batches(Plan(), 4)
    for _ in range(5):
        next(batches)
    assert json.loads(json.dumps(read.position(4))) == stop_at(reading(tmp_path, source), 4)


def test_little_is_read_to_go_on(folder, tmp_path, monkeypatch):
    """Files before the place are not opened, nor row groups decoded."""
    source = data.Stream(path=str(folder), shuffle_rows=1)
    position = stop_at(reading(tmp_path, source), 60)
    assert position[0]["place"]["file"] == 2 and position[0]["epoch"] == 0
    read = reading(tmp_path, source)
    opened = []
    real = file_listing.open_file
    monkeypatch.setattr(
        file_listing, "open_file", lambda name: (opened.append(name), real(name))[1]
    )
    read.seek(position)
    next(read.batches(Plan(), 4, 60))
    assert {os.path.basename(name) for name in opened[:2]} == {"c.jsonl.gz"}


def test_a_mixture_has_its_shares_and_goes_on(folder, tmp_path):
    """Of two streams and a prepared source."""
    other = write(tmp_path / "other.jsonl", [f"[{n}] " + "x" * (n % 40) for n in range(90)])
    third = write(tmp_path / "third.jsonl", [f"({n}) " + "y" * (n % 40) for n in range(90)])
    shards = prepared(third, tmp_path / "third")
    sources = (
        data.Stream(path=str(folder), weight=3),
        data.Stream(path=other.path, shuffle_rows=2, weight=2),
        dataclasses.replace(shards, weight=1),
    )
    read = reading(tmp_path, *sources)
    assert [s["share"] for s in read.description()["sources"]] == [1 / 2, 1 / 3, 1 / 6]
    whole = drawn(read)
    marks = [
        "".join(chr(b) for b in row if chr(b % 256) in "<[(")
        for row in whole.reshape(-1, N_CTX + 1)
    ]
    choose = mixture.Mixture([3, 2, 1])
    for number, mark in enumerate(marks):
        assert set(mark) <= {"<[("[choose(number)[0]]}
    for step in (1, 9, 20):
        position = stop_at(reading(tmp_path, *sources), step)
        assert position[2] is None
        again = reading(tmp_path, *sources)
        again.seek(position)
        np.testing.assert_array_equal(drawn(again, step), whole[step:])


# --- validation -----------------------------------------------------------------------------------


def texts_of(rows):
    return bytes(b for row in rows.reshape(-1, N_CTX + 1) for b in row[:-1] if b < 256).decode()


def with_eval_rows(source, n, tmp_path):
    whole = config(source)
    few = dataclasses.replace(whole, loop=dataclasses.replace(whole.loop, eval_rows=n))
    return open_dataset.open_dataset(few, tmp_path / "cache", print)


def test_what_is_validated_on_is_not_trained_on(folder, tmp_path):
    """The same documents as in shards of the same text."""
    read = with_eval_rows(data.Stream(path=str(folder), shuffle_rows=1), 1000, tmp_path)
    train = texts_of(drawn(read))
    shards = reading(tmp_path, data.Text(path=str(folder)))
    held = [
        shards._validation.tokens(d, 0, n)[:-1].tobytes()
        for d, n in enumerate(shards._validation.lengths.tolist())
    ]
    kind = shards._validation.tokens(0, 0, 1).dtype
    held = {bytes(np.frombuffer(ids, kind).astype(np.uint8)).decode() for ids in held}
    assert 15 < len(held) < 60 and held <= {*TEXTS, LONG}
    for text in [*TEXTS, LONG]:
        assert (f"{text.split()[0]} " in train) != (text in held), text
    np.testing.assert_array_equal(read.validation_rows(10**6), shards.validation_rows(10**6))


def test_documents_of_a_separate_source_are_not_trained_on(folder, tmp_path):
    """Copies of them are left out of the stream."""
    other = write(tmp_path / "held.jsonl", [*TEXTS[10:20], "new " * 50])
    source = data.Stream(path=str(folder), shuffle_rows=1)
    read = reading(tmp_path, source, held_out=data.Separate(source=other))
    train = texts_of(drawn(read))
    assert [n for n in range(150) if f"<{n}> " not in train] == [*range(10, 20)]


def test_as_much_is_validated_on_as_the_rows_need(folder, tmp_path):
    read = with_eval_rows(data.Stream(path=str(folder)), 2, tmp_path)
    assert read.validation_rows(2).shape == (2, N_CTX + 1)
    assert (
        read._validation.n_tokens
        < reading(tmp_path, data.Stream(path=str(folder)))._validation.n_tokens
    )
    # evaluating on other rows does not make the data other data
    assert read.digest() == reading(tmp_path, data.Stream(path=str(folder))).digest()


# --- faults ---------------------------------------------------------------------------------------


def rewrite(folder):
    (folder / "b.parquet").write_bytes((folder / "b.parquet").read_bytes())
    os.utime(folder / "b.parquet", ns=(0, 1))


CHANGES = {
    "gone": (lambda f: (f / "c.jsonl.gz").unlink(), "c.jsonl.gz is gone since the checkpoint"),
    "new": (lambda f: (f / "d.jsonl").write_bytes(lines(["d"])), "d.jsonl is new since"),
    "longer": (
        lambda f: (f / "a.jsonl").write_bytes((f / "a.jsonl").read_bytes() + lines(["e"])),
        r"a.jsonl has [\d,]+ bytes, where it had [\d,]+ since",
    ),
    "rewritten": (rewrite, "b.parquet was written again"),
}


@pytest.mark.parametrize("change, match", CHANGES.values(), ids=CHANGES)
def test_changed_files_are_named(source, folder, tmp_path, change, match):
    position = stop_at(reading(tmp_path, source), 5)
    change(folder)
    refused(match, lambda: resumed(tmp_path, source, position))


def test_another_text_at_the_place_is_refused(folder, tmp_path):
    source = data.Stream(path=str(folder), shuffle_rows=1)
    held_out = data.Separate(source=write(tmp_path / "held.jsonl", ["held out " * 50]))
    position = stop_at(reading(tmp_path, source, held_out=held_out), 3)
    (folder / "a.jsonl").write_bytes((folder / "a.jsonl").read_bytes().replace(b"1", b"2"))
    state = (folder / "a.jsonl").stat()
    for file in position[0]["files"]:
        if file[0].endswith("a.jsonl"):
            file[1:] = state.st_size, str(state.st_mtime_ns)
    refused(
        "a.jsonl has another text after line",
        lambda: resumed(tmp_path, source, position, held_out=held_out),
    )


@pytest.mark.parametrize(
    "content, match",
    {
        b"": "no document is left to train on",
        lines([None, ""]): r"no document is left to train on \(2 without text",
        lines(["short"]): "fewer than one row",
        b'{"text": 3}': "line 1 has no string field 'text'",
        b'{"other": "x"}\n': "has no string field 'text': it has other",
        b'{"text": "x"': "line 1 is not JSON",
        b"\xff\xfe": "line 1",
    }.items(),
)
def test_files_of_no_use_are_refused_at_the_start(tmp_path, content, match):
    (tmp_path / "a.jsonl").write_bytes(content)
    other = write(tmp_path / "held.jsonl", ["held out " * 50])
    source = data.Stream(path=str(tmp_path / "a.jsonl"))
    refused(match, lambda: reading(tmp_path, source, held_out=data.Separate(source=other)))


def test_damage_met_while_training_names_the_file(folder, tmp_path):
    content = (folder / "c.jsonl.gz").read_bytes()
    (folder / "c.jsonl.gz").write_bytes(content[:-20])
    other = write(tmp_path / "held.jsonl", ["held out " * 50])
    source = data.Stream(path=str(folder), shuffle_rows=1)
    read = reading(tmp_path, source, held_out=data.Separate(source=other))
    refused("c.jsonl.gz is damaged or cut short", lambda: drawn(read))


@pytest.mark.parametrize(
    "source, options, match",
    [
        (data.Stream(path="nowhere"), {}, "nowhere does not exist"),
        (data.Stream(path="memory://nothing/*.jsonl"), {}, "there is no file of text"),
        (
            data.Stream(path="unknown://a.jsonl"),
            {},
            r"unknown://a.jsonl cannot be read by fsspec \(ValueError: Protocol",
        ),
        (
            data.Stream(path="a.jsonl"),
            {"spec": data.SentencePiece()},
            "would be trained on the run's own text, which a stream does not hold",
        ),
        (
            data.Embedded(),
            {"held_out": data.Separate(source=data.Stream(path="a"))},
            "a stream can be trained on; validate on Text",
        ),
    ],
)
def test_what_a_stream_cannot_do_is_said(tmp_path, source, options, match):
    refused(match, lambda: reading(tmp_path, source, **options))


def test_prepare_explains_itself(folder):
    arguments = ["--config=smoke", "--out=x", "--set", f"data.sources=Stream(path='{folder}')"]
    refused("read while training, without being prepared", lambda: prepare.main(arguments))


# --- other places ---------------------------------------------------------------------------------


def test_places_of_fsspec_are_read_alike(folder, tmp_path):
    place = bucket.BucketFileSystem()
    for file in folder.iterdir():
        place.pipe(f"/streamed/{file.name}", file.read_bytes())
    try:
        local = drawn(reading(tmp_path, data.Stream(path=str(folder))))
        for path in ("bucket://streamed", "bucket://streamed/*.*"):
            source = data.Stream(path=path)
            np.testing.assert_array_equal(drawn(reading(tmp_path, source)), local)
        position = stop_at(reading(tmp_path, source), 11)
        np.testing.assert_array_equal(drawn(resumed(tmp_path, source, position), 11), local[11:])
        place.pipe("/streamed/a.jsonl", (folder / "a.jsonl").read_bytes())
        refused("a.jsonl was written again", lambda: resumed(tmp_path, source, position))
    finally:
        place.rm("/streamed", recursive=True)


def test_datasets_of_hugging_face_go_on_too(folder, tmp_path):
    pytest.importorskip("datasets", reason="needs requirements-stream.txt")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for part in range(3):
        texts = [text for text in TEXTS[50 * part : 50 * part + 50]] * 7
        (corpus / f"train-{part}.jsonl").write_bytes(lines(texts))
    source = data.HfDataset(name=str(corpus), shuffle_rows=2)
    files = data.Stream(path=str(corpus), shuffle_rows=2)
    whole = drawn(reading(tmp_path, source))
    np.testing.assert_array_equal(whole, drawn(reading(tmp_path, files)))
    for step in (1, 19):
        position = stop_at(reading(tmp_path, source), step)
        again = resumed(tmp_path, source, position)
        np.testing.assert_array_equal(drawn(again, step, n=5), whole[step : step + 5])
    refused(
        "has no column 'body': it has text",
        lambda: reading(tmp_path, dataclasses.replace(source, field="body")),
    )
    refused("HfDataset", lambda: reading(tmp_path, data.HfDataset(name=str(tmp_path / "none"))))
