"""python -m gptjax.convert: weights become a run that speaks, and a run becomes weights; or nothing is left behind."""

import dataclasses
import hashlib

import pytest
import safetensors.numpy

from gptjax import convert, sample
from gptjax.config import run
from gptjax.data import tokenizer
from gptjax.interop import export
from tests.unit.interop import weights_test as tools


@pytest.fixture
def folder(tmp_path):
    c = tools.config("gpt2")
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, n_layers=1))
    (tmp_path / "theirs").mkdir()
    export.save(tmp_path / "theirs", c, tools.random(c.model), tokenizer.Bytes())
    return tmp_path / "theirs"


def converted(source, to, *more: str) -> None:
    convert.main([f"--from={source}", f"--to={to}", *more])


def test_there_and_back(folder, tmp_path, capsys):
    converted(folder, tmp_path / "run")
    said = capsys.readouterr().out
    assert "Hugging Face gpt2 -> run of gpt2" in said and f"python -m gptjax.sample --run={tmp_path / 'run'}" in said
    assert run.config(tmp_path / "run").model.n_layers == 1
    sample.main([f"--run={tmp_path / 'run'}", "--prompt=so", "--tokens=4", "--temperature=0"])
    assert "gpt2, step 0" in capsys.readouterr().out
    converted(tmp_path / "run", tmp_path / "back")
    for name in ("model.safetensors", "config.json"):
        digests = [hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (folder, tmp_path / "back")]
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


def test_nothing_half_written_stays(folder, tmp_path, monkeypatch):
    converted(folder, tmp_path / "run")
    monkeypatch.setattr(
        safetensors.numpy, "save_file", lambda *given, **more: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        converted(tmp_path / "run", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "theirs"]


@pytest.mark.parametrize(
    "more,said",
    [
        (["--set", "data.tokenizer=Gpt2Bpe()"], "the weights have 257 ids, but data.tokenizer=Gpt2Bpe.path=None. has 50,257"),
        (["--set", "model.n_vocab=256"], r"the tensor wte.weight is \[257, 16\], expected \[256, 16\]"),
        (["--set", "model.n_layer=2"], "did you mean n_layers"),
        (["--config=gpt5"], "no config is called 'gpt5'"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        converted(folder, tmp_path / "run", *more)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
