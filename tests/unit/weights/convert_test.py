"""python -m gptjax.convert: weights become a run that speaks, and a run becomes weights; or
nothing is left behind."""

import dataclasses
import hashlib
import resource

import pytest
import safetensors.numpy

from gptjax import convert, sample, train
from gptjax.config import data
from gptjax.configs import registry
from gptjax.data.tokenizers import build
from gptjax.runtime import run_dir
from gptjax.sharding import trees
from gptjax.weights import export_hf, load, open_model
from tests.unit.weights import load_test as tools


@pytest.fixture
def folder(tmp_path):
    c = tools.config("gpt2")
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, n_layers=1))
    (tmp_path / "theirs").mkdir()
    export_hf.save(tmp_path / "theirs", c, tools.random(c.model), build.ByteTokenizer())
    return tmp_path / "theirs"


def converted(source, to, *more: str) -> None:
    convert.main([f"--from={source}", f"--to={to}", *more])


def test_a_run_is_opened_with_its_own_tokenizer_alone(folder, tmp_path, monkeypatch):
    converted(folder, tmp_path / "run")
    there, asked = load.load(str(tmp_path / "run")), []
    there.check(there.config, build.ByteTokenizer())
    with pytest.raises(
        ValueError, match="was trained with a tokenizer of digest .*: set data.tokenizer to Bytes"
    ):
        there.check(there.config, dataclasses.make_dataclass("Other", [("digest", str)])("0" * 64))
    monkeypatch.setattr(
        load.RunWeights, "check", lambda run, config, text: asked.append(text.digest)
    )
    open_model.open_model(str(tmp_path / "run"), [], lambda done: None)
    assert asked == [build.ByteTokenizer().digest]


def test_import_then_export_is_the_identity(folder, tmp_path, capsys):
    converted(folder, tmp_path / "run")
    said = capsys.readouterr().out
    assert (
        "Hugging Face gpt2 -> run of gpt2" in said
        and f"python -m gptjax.sample --model={tmp_path / 'run'}" in said
    )
    assert run_dir.load_config(tmp_path / "run").model.n_layers == 1
    sample.main(
        [f"--model={tmp_path / 'run'}", "--prompt=so", "--max_new_tokens=4", "--temperature=0"]
    )
    assert "gpt2, step 0" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--config=gpt1 is of weights that become a run"):
        converted(tmp_path / "run", tmp_path / "back", "--config=gpt1")
    converted(tmp_path / "run", tmp_path / "back")
    for name in ("model.safetensors", "config.json"):
        digests = [
            hashlib.sha256((place / name).read_bytes()).hexdigest()
            for place in (folder, tmp_path / "back")
        ]
        assert digests[0] == digests[1], name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "run", "theirs"]


def test_a_directory_that_holds_something_is_left_alone(folder, tmp_path):
    before = sorted(folder.iterdir())
    with pytest.raises(ValueError, match="is there already"):
        converted(folder, folder)
    assert sorted(folder.iterdir()) == before
    (tmp_path / "empty").mkdir()
    converted(folder, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()


def test_other_files_are_left_alone_and_no_parents_are_made_on_refusal(
    folder, tmp_path, monkeypatch
):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "mine.txt").write_text("mine")
    converted(folder, tmp_path / "a" / "b" / "run")
    converted(folder, tmp_path / "run")
    assert (tmp_path / "run.partial" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "run").stat().st_mode & 0o777 == (tmp_path / "theirs").stat().st_mode & 0o777
    monkeypatch.setattr(
        convert,
        "write_run",
        lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    for to in (tmp_path / "x" / "y" / "run", tmp_path / "a" / "c" / "run"):
        with pytest.raises(OSError, match="No space"):
            converted(folder, to)
    assert not (tmp_path / "x").exists() and [path.name for path in (tmp_path / "a").iterdir()] == [
        "b"
    ]


def test_a_directory_that_is_filled_meanwhile_is_left_alone(folder, tmp_path, monkeypatch):
    inner = convert.write_run

    def meanwhile(*given):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs.txt").write_text("another's")
        return inner(*given)

    monkeypatch.setattr(convert, "write_run", meanwhile)
    with pytest.raises(OSError, match="not empty"):
        converted(folder, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "theirs"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["theirs.txt"]


def test_the_current_directory_a_link_and_home_are_places_too(folder, tmp_path, monkeypatch):
    for name in ("here", "real", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for to, there in ((".", "here"), ("../link", "real"), ("~/run", "home/run")):
        monkeypatch.chdir(tmp_path / "here")  # the first takes the place of the one that we were in
        converted(folder, to)
        assert (tmp_path / there / "config.json").exists(), to
    for flag in ("--to=", "--from=", "--to=~nobody-here/x"):
        with pytest.raises(SystemExit):
            convert.main([f"--from={folder}", f"--to={tmp_path / 'x'}", flag])


def test_nothing_incomplete_remains(folder, tmp_path, monkeypatch):
    converted(folder, tmp_path / "run")
    monkeypatch.setattr(
        safetensors.numpy,
        "save_file",
        lambda *given, **more: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(OSError, match="No space"):
        converted(tmp_path / "run", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "theirs"]


@pytest.mark.parametrize(
    "more,said",
    [
        (
            ["--set", "data.tokenizer=Gpt2Bpe()"],
            "the weights have 257 ids, but data.tokenizer=Gpt2Bpe.path=None. has 50,257",
        ),
        (
            ["--set", "model.n_vocab=256"],
            "the weights have 256 ids, but data.tokenizer=Bytes.. has 257; set data.tokenizer",
        ),
        (["--set", "model.n_vocab=258"], r"the tensor wte.weight is .257, 16., expected .258, 16."),
        (["--set", "model.n_layer=2"], "did you mean model.n_layers"),
        (["--config=gpt5"], "no config is called 'gpt5'"),
    ],
)
def test_mismatches_are_a_one_line_error(folder, tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        converted(folder, tmp_path / "run", *more)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_run_begins_with_weights(tmp_path, capsys):
    """Of a folder, and of a run: after a step of next to no length they are still what they
    were."""
    c = registry.config("smoke")
    (tmp_path / "theirs").mkdir()
    params = tools.random(c.model)
    export_hf.save(tmp_path / "theirs", c, params, build.ByteTokenizer())
    converted(tmp_path / "theirs", tmp_path / "run", "--config=smoke")
    options = ["--config=smoke", "--set", "train.schedule.peak_lr=1e-30", "--set", "train.steps=1"]
    assert (
        train.main([*options, f"--init={tmp_path / 'run'}", f"--run_dir={tmp_path / 'trained'}"])
        == 0
    )
    assert (
        f"beginning with the weights of {tmp_path / 'run'}: a run of gptjax"
        in capsys.readouterr().out
    )
    there = load.load(tmp_path / "trained")
    tools.same(there.load_params(tools.wanted(c)), params)
    with pytest.raises(
        ValueError,
        match=("holds weights from gptjax.convert, not a run: start one from them with --init="),
    ):
        train.main([*options, f"--run_dir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"n_layers": 2}, r"have n_layers 1, but model.n_layers=2: .*--set \"model.n_layers=1\""),
        ({"norm": "post"}, "have norm 'pre', but model.norm='post'"),
        ({"n_vocab": 256}, "have n_vocab 257, but model.n_vocab=256"),
        ({"n_ctx": 13}, "have learned 12 positions, but model.n_ctx=13"),
        ({}, "the weights have 257 ids, but data.tokenizer=Gpt2Bpe.path=None. has 50,257"),
        ({"n_ctx": 6, "n_vocab": 260}, None),
    ],
)
def test_weights_are_checked_against_a_config(folder, changes, said):
    there = load.load(folder)
    text = build.build(data.Gpt2Bpe() if not changes else data.Bytes())
    spoken = dataclasses.replace(
        there.config.data, tokenizer=data.Gpt2Bpe() if not changes else data.Bytes()
    )
    train_of = dataclasses.replace(there.config.train, batch_tokens=8 * 12 * 13)
    model = dataclasses.replace(there.config.model, **changes)
    c = dataclasses.replace(there.config, model=model, data=spoken, train=train_of)
    if said is None:
        there.check(c, text)
        wanted = tools.wanted(c)
        read = dict(trees.named_leaves(there.load_params(wanted)))
        assert read["position_TD"].shape == (6, 16) and read["token_VD"].shape == (384, 16)
        return
    with pytest.raises(ValueError, match=said):
        there.check(c, text)


def test_the_machines_limits_are_looked_at_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**31, 2**31))
    monkeypatch.setattr(load, "load", lambda *arguments: pytest.fail("read"))
    for main, flags in (
        (convert.main, [f"--from={tmp_path}", f"--to={tmp_path / 'to'}"]),
        (sample.main, [f"--model={tmp_path}"]),
    ):
        with pytest.raises(ValueError, match="ulimit -v"):
            main(flags)
