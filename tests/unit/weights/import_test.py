"""Weights as people have them: a table under its output's name, tables with rows of padding,
tokenizers with added tokens; and a run made of weights, which needs their folder no more."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from gptjax import convert, sample
from gptjax.config import data, overrides, schema
from gptjax.data.tokenizers import build, gpt1_bpe, gpt2_bpe
from gptjax.runtime import run_dir
from gptjax.weights import export_hf, load, open_model
from tests import tiny
from tests.unit.weights import load_test as tools

TABLE = "transformer.wte.weight"


def opened(folder, *assignments):
    """(weights, what was said, the model)."""
    said = []
    there = load.load(folder, assignments, log=said.append)
    there.check(there.config, build.build(there.config.data.tokenizer))
    return there, said


@pytest.mark.parametrize("kind", tools.MODELS)
def test_a_tied_table_under_the_outputs_name_is_taken(kind, tmp_path):
    c = tools.config(kind)
    params = tools.random(c.model)
    export_hf.save(tmp_path, c, params, tools.TEXT)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    table = next(name for name in tensors if name.endswith(("wte.weight", "tokens_embed.weight")))
    tensors["lm_head.weight"] = tensors.pop(
        table
    )  # as safetensors.torch.save_model keeps one name of two
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    there, said = opened(tmp_path)
    tools.same(there.load_params(tools.wanted(c)), params)
    assert not said


# --- padding --------------------------------------------------------------------------------------


def small(n_vocab: int, spec: data.Tokenizer, norm: str = "pre") -> schema.Config:
    model = schema.Model(n_layers=1, n_heads=2, d_model=8, n_vocab=n_vocab, n_ctx=12, norm=norm)  # type: ignore[arg-type]
    return dataclasses.replace(tiny.config(), model=model, data=data.Data(tokenizer=spec))


@pytest.fixture(scope="module")
def bpe():
    return gpt2_bpe.Gpt2Tokenizer(None)


@pytest.fixture
def padded(tmp_path, bpe):
    """padded(rows) is a folder of GPT-2's tokenizer and of a table with so many."""

    def made(rows: int, *without: str):
        c = small(bpe.n_vocab, data.Gpt2Bpe())
        params = tools.random(c.model)
        export_hf.save(tmp_path, c, params, bpe)
        tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
        tensors[TABLE] = np.pad(
            tensors[TABLE], ((0, rows - bpe.n_vocab), (0, 0)), constant_values=7.0
        )
        safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
        settings = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": rows}
        del settings["gptjax_tokenizer"]
        (tmp_path / "config.json").write_text(json.dumps(settings))
        for name in ("tokenizer_config.json", *without):
            (tmp_path / name).unlink()
        return tmp_path, c, params

    return made


def test_rows_after_the_tokenizers_ids_are_left_out_and_a_line_says_so(padded):
    folder, c, params = padded(50_304)
    there, said = opened(folder)
    assert there.config.model.n_vocab == 50_257
    assert said == [
        f"{folder}: only the first 50,257 of the 50,304 rows of its token table are used"
    ]
    tools.same(there.load_params(tools.wanted(c)), params)


def test_without_tokenizer_files_the_user_sets_where_padding_begins(padded):
    folder, c, params = padded(50_304, "vocab.json", "merges.txt", "tokenizer.json")
    with pytest.raises(
        ValueError,
        match=(
            "50,304 ids, .* has 50,257; if the rest is padding, --set model.n_vocab=50257; set "
            "data.tok"
        ),
    ):
        opened(folder)
    there, said = opened(folder, "model.n_vocab=50257")
    assert len(said) == 1 and "only the first 50,257" in said[0]
    tools.same(there.load_params(tools.wanted(c)), params)
    with pytest.raises(
        ValueError, match=r"the tensor wte.weight is \[50304, 8\], expected \[50305, 8\]"
    ):
        opened(folder, "model.n_vocab=50305")


@pytest.mark.parametrize(
    "rows, file", [(50_257, "tokenizer.json"), (50_258, "tokenizer.json"), (50_258, "vocab.json")]
)
def test_an_added_token_is_left_out_and_a_line_says_so(padded, bpe, rows, file):
    folder, c, params = padded(
        rows, *(["vocab.json", "merges.txt"] if file == "tokenizer.json" else ["tokenizer.json"])
    )
    there = json.loads((folder / file).read_text())
    if file == "vocab.json":
        there |= {"<|pad|>": 50_257}
    else:
        there["added_tokens"] += [{"id": 50_257, "content": "<|pad|>", "special": True}]
    (folder / file).write_text(json.dumps(there))
    there, said = opened(folder)
    assert said[-1] == (
        f"{folder}: its tokenizer's '<|pad|>' is left out, which Gpt2Bpe(path=None) does not have"
    )
    assert len(said) == 1 + (rows > 50_257) and there.config.model.n_vocab == 50_257
    tools.same(there.load_params(tools.wanted(c)), params)


# --- a run of weights -----------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("kind", ["gpt1", "gpt2"])
def test_a_run_of_weights_needs_their_folder_no_more(kind, shared, tmp_path, monkeypatch, capsys):
    spec = data.Gpt1Bpe(words="basic") if kind == "gpt1" else data.Gpt2Bpe()
    files = gpt1_bpe.FILES if kind == "gpt1" else gpt2_bpe.FILES
    theirs = tmp_path / "theirs"
    shutil.copytree(shared / "data" / "tokenizers" / kind, theirs)
    theirs.chmod(0o755)
    text = build.build(dataclasses.replace(spec, path=str(theirs)))
    c = small(
        text.n_vocab,
        dataclasses.replace(spec, path=str(theirs)),
        "post" if kind == "gpt1" else "pre",
    )
    export_hf.save(theirs, c, tools.random(c.model), text)
    monkeypatch.chdir(tmp_path)
    more = [] if kind == "gpt1" else ["--set", "data.tokenizer=Gpt2Bpe(path='theirs')"]
    convert.main(["--from=theirs", "--to=run", *more])
    shutil.rmtree(theirs)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert {*files.digests} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert run_dir.load_config(tmp_path / "run").data.tokenizer == spec and overrides.flatten(
        run_dir.load_config(tmp_path / "run")
    )
    capsys.readouterr()
    sample.main(
        [
            f"--model={tmp_path / 'run'}",
            "--prompt=there and back",
            "--max_new_tokens=2",
            "--temperature=0",
        ]
    )
    assert "there and back" in capsys.readouterr().out
    convert.main([f"--from={tmp_path / 'run'}", "--to=back"])
    assert opened(tmp_path / "elsewhere" / "back")[0].config.data.tokenizer == dataclasses.replace(
        spec, path=str(tmp_path / "elsewhere" / "back") if kind == "gpt1" else None
    )


# --- the config that was sealed -------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a checkpoint."""
    place = tmp_path_factory.mktemp("made")
    c = tools.config("gpt_neo")
    (place / "theirs").mkdir()
    export_hf.save(place / "theirs", c, tools.random(c.model), tools.TEXT)
    convert.main([f"--from={place / 'theirs'}", f"--to={place / 'run'}"])
    return place / "run"


CHANGES = [
    (
        {"model.attention": "(Dense(), Banded(window=4), Banded(window=4), Dense())"},
        "model.attention: .*window=3.* -> .*window=4",
    ),
    ({"model.gelu": "erf"}, "model.gelu: 'tanh' -> 'erf'"),
    ({"seed": 5}, "seed: 0 -> 5"),
    ({"train.optimizer.weight_decay": 0.3}, "train.optimizer.weight_decay: "),
    ({"train.total_tokens": 10**12}, None),
    ({"loop.every_eval": 3, "compute.remat": "full", "train.microbatch_rows": 4}, None),
]


def test_a_config_that_is_not_the_checkpoints_is_refused(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    whole = json.loads(file.read_text())
    openers = [
        lambda: open_model.open_model(tmp_path / "run", [], lambda line: None),
        lambda: sample.main([f"--model={tmp_path / 'run'}", "--max_new_tokens=1"]),
        lambda: convert.main([f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'exported'}"]),
    ]
    for changes, said in CHANGES:
        file.write_text(json.dumps(whole | changes))
        if said is None:
            opened(tmp_path / "run")
            continue
        for opener in [lambda: opened(tmp_path / "run"), *openers]:
            with pytest.raises(
                ValueError,
                match=(
                    f"run/config.json is not the config that its checkpoint was saved with .{said}"
                ),
            ):
                opener()
    assert not (tmp_path / "exported").exists()


def test_a_run_is_not_opened_as_another_model(made):
    opened(made, "mesh.data=1", "compute.remat=full")
    with pytest.raises(
        ValueError, match=r"model.gelu: 'tanh' -> 'erf': these fields belong to the parameters"
    ):
        opened(made, "model.gelu=erf")


def test_a_run_without_a_checkpoint_and_a_folder_without_weights(made, tmp_path):
    shutil.copy(made / "config.json", tmp_path / "config.json")
    with pytest.raises(
        ValueError, match="has no checkpoint yet; let python -m gptjax.train run until it saves one"
    ):
        opened(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="no checkpoint in"):
        opened(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="no weights are in .*: it has neither"):
        opened(tmp_path)
