"""python -m gptjax.prepare: parallel, resumed after kill -9, and its last line trains."""

import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from gptjax import cli, prepare
from gptjax.config import data, find_files
from gptjax.data import open_dataset
from tests import corpus

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def text(tmp_path):
    lines = [
        json.dumps({"text": f"document {n} " + "some words of text " * (n % 50)})
        for n in range(2000)
    ]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return f"Text(path={str(tmp_path / 'text.jsonl')!r})"


def arguments(text, out, *more):
    return [
        "--config=nano",
        f"--set=data.sources={text}",
        "--set=data.tokenizer=Bytes()",
        f"--out={out}",
        "--characters_per_shard=30000",
        *more,
    ]


def program(*args):
    return [sys.executable, "-m", "gptjax.prepare", *args]


def config_of(printed: str):
    """The config of the line `python -m gptjax.train ...` that was printed last."""
    words = shlex.split(printed.strip().splitlines()[-1])
    assert words[:3] == ["python", "-m", "gptjax.train"]
    parser = cli.make_config_parser("train", "", "")
    return cli.resolve_config(parser.parse_args(words[3:]))


def test_the_last_line_trains(text, tmp_path, capsys):
    prepare.main(arguments(text, tmp_path / "out", "--workers=1"))
    out = capsys.readouterr().out
    assert f"{tmp_path / 'out'} train: " in out and "documents" in out
    assert (
        f"--set \"data.sources=Shards(path='{tmp_path / 'out'}')\"" in out
        and '--set "model.n_vocab=257"' in out
    )
    read = open_dataset.open_dataset(
        config_of(out), tmp_path / "cache", lambda line: pytest.fail(f"tokenized again: {line}")
    )
    assert read.row(0).shape == (config_of(out).model.n_ctx + 1,)


def test_several_sources_and_a_separate_one(text, tmp_path, capsys):
    (tmp_path / "held.txt").write_text("held out text " * 500)
    (tmp_path / "more.txt").write_text("more text " * 500)
    both = f"({text[:-1]}, weight=3), Text(path={str(tmp_path / 'more.txt')!r}))"
    held = f"--set=data.validation=Separate(source=Text(path={str(tmp_path / 'held.txt')!r}))"
    prepare.main(arguments(both, tmp_path / "out", held, "--workers=1"))
    config = config_of(capsys.readouterr().out)
    assert [type(source) for source in config.data.sources] == [
        data.Shards
    ] * 2 and config.data.sources[0].weight == 3
    read = open_dataset.open_dataset(config, tmp_path / "cache", lambda line: None)
    assert read.description()["validation"]["tokens"] == 14 * 500 + 1


@pytest.mark.parametrize("spec", ["SentencePiece(n_pieces=310)", "TrainedBpe(n_vocab=310)"])
def test_a_trained_tokenizer_travels_with_the_shards(spec, text, tmp_path, capsys):
    prepare.main(arguments(text, tmp_path / "out", f"--set=data.tokenizer={spec}", "--workers=1"))
    read = open_dataset.open_dataset(
        config_of(capsys.readouterr().out), tmp_path / "cache", lambda line: pytest.fail(line)
    )
    assert read.tokenizer.n_vocab == 310


def test_killed_and_resumed_with_other_workers_is_the_same(text, tmp_path):
    whole = subprocess.run(
        program(*arguments(text, tmp_path / "whole", "--workers=1")),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert whole.returncode == 0, whole.stderr
    running = subprocess.Popen(
        program(*arguments(text, tmp_path / "out", "--workers=2")),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while running.poll() is None and not list((tmp_path / "out").glob("block-*.json")):
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "out" / "manifest.json").exists(), (
        "it finished before it could be killed: give it more to do"
    )
    assert list((tmp_path / "out").glob("block-*.json"))
    again = subprocess.run(
        program(*arguments(text, tmp_path / "out", "--workers=1")),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    a, b = (
        {p.name: p.read_bytes() for p in (tmp_path / d).iterdir() if p.suffix != ".partial"}
        for d in ("whole", "out")
    )
    assert a == b


def test_wrong_use_is_one_line_and_status_2(text, tmp_path):
    def refused(*args):
        ran = subprocess.run(program(*args), cwd=ROOT, capture_output=True, text=True)
        assert (
            ran.returncode == 2 and ran.stderr.startswith("error: ") and ran.stderr.count("\n") == 1
        ), ran.stderr
        return ran.stderr

    assert "does not exist" in refused(*arguments("Text(path='nowhere.txt')", tmp_path / "a"))
    assert "--workers: '0': give a whole number from 1" in refused(
        *arguments(text, tmp_path / "b", "--workers=0")
    )
    assert "is tokenized already" in refused(*arguments("Shards(path='x')", tmp_path / "c"))
    (tmp_path / "file").write_text("")
    assert "file" in refused(*arguments(text, tmp_path / "file", "--workers=2"))


def test_help_is_answered_before_anything_slow_is_imported():
    ran = subprocess.run(program("--help"), cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and "--characters_per_shard" in ran.stdout
    slow = (
        "{'numpy', 'jax', 'grain', 'tokenizers', 'tiktoken', 'sentencepiece', 'pyarrow', "
        "'rich', 'tensorflow_datasets'}"
    )
    check = (
        f"import sys, gptjax.prepare; sys.exit(str({slow} & set(sys.modules)) if {slow} & "
        "set(sys.modules) else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_ones_own_text_is_prepared_and_the_last_line_trains_on_it(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("a book of many words, " * 900)
    given = [
        "--config=smoke",
        f"--text={tmp_path / 'book.txt'}",
        f"--out={tmp_path / 'out'}",
        "--workers=1",
    ]
    prepare.main(given)
    config = config_of(capsys.readouterr().out)
    assert config.name == "smoke-book" and config.data.validation == data.Tail(fraction=0.1)
    read = open_dataset.open_dataset(config, tmp_path / "cache", lambda line: pytest.fail(line))
    assert read.description()["validation"]["tokens"] == len("a book of many words, " * 90) + 1


def test_a_corpus_is_listed_once(tmp_path, capsys, monkeypatch):
    listed, list_path = [], find_files._list
    monkeypatch.setattr(
        find_files, "_list", lambda path, formats: listed.append(path) or list_path(path, formats)
    )
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("a book of many words, " * 90)
    given = [
        "--config=smoke",
        f"--text={tmp_path}",
        "--set=data.tokenizer=SentencePiece(n_pieces=300)",
        "--set=model.n_vocab=300",
    ]
    prepare.main([*given, f"--out={tmp_path / 'out'}", "--workers=1"])
    assert listed == [str(tmp_path)] and "train on it" in capsys.readouterr().out
    (tmp_path / "out").rename(tmp_path / "shards")  # what the next program finds is listed anew
    (tmp_path / "9.txt").write_text("one more " * 90)
    prepare.main([*given, f"--out={tmp_path / 'out'}", "--workers=1"])
    assert "10 documents" in capsys.readouterr().out and len(listed) == 2


@pytest.mark.parametrize("spec", ["SentencePiece(n_pieces=300)", "TrainedBpe(n_vocab=300)"])
def test_what_is_finished_stays_as_it_is(spec, text, tmp_path, capsys):
    """Also where the tokenizer is made of the text, which has another time, then another line."""
    given = arguments(
        text,
        tmp_path / "out",
        "--workers=1",
        f"--set=data.tokenizer={spec}",
        "--set=model.n_vocab=300",
    )
    prepare.main(given)
    before = corpus.contents(tmp_path / "out")
    (tmp_path / "text.jsonl").touch()
    prepare.main(given)
    assert (
        "comparing their text" in capsys.readouterr().out
        and corpus.contents(tmp_path / "out") == before
    )
    with (tmp_path / "text.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps({"text": "and quite other words: " + "xyzzy " * 9999}))
    with pytest.raises(
        ValueError,
        match=(
            "was prepared with another text: it has documents 2000, .*, now it is documents 2001, "
        ),
    ):
        prepare.main(given)
    assert corpus.contents(tmp_path / "out") == before


def test_what_no_run_could_train_on_is_no_success(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("a book of many words, " * 900)
    (tmp_path / "small.jsonl").write_text(
        "".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(200))
    )
    for number, (name, rule, match) in enumerate(
        (
            ("book.txt", "ByDocument(fraction=0.01)", "is one document, which cannot be both"),
            (
                "small.jsonl",
                "ByDocument(fraction=0.02)",
                "the validation split has .* fewer than one row of model.n_ctx=32",
            ),
            ("small.jsonl", "Tail(fraction=0.1)", "the validation split has 0 tokens"),
        )
    ):
        held = f"--set=data.validation={rule}"
        with pytest.raises(ValueError, match=match):
            source = f"--set=data.sources=Text(path='{tmp_path / name}')"
            prepare.main(
                ["--config=smoke", source, held, f"--out={tmp_path / str(number)}", "--workers=1"]
            )
    assert "train on it" not in capsys.readouterr().out
