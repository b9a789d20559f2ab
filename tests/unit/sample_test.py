"""python -m gptjax.sample: whatever evaluate opens speaks, of a prompt from anywhere; numbers of
any size are right or one line."""

import dataclasses
import io
import json
import shutil
import sys

import jax
import pytest

from gptjax import convert, evaluate, sample
from gptjax.config import data, schema
from gptjax.data.tokenizers import build
from gptjax.report import console
from gptjax.runtime import errors
from gptjax.weights import export_hf, name_maps, open_model, tokenizer_files
from tests.unit.weights import load_test as tools
from tests.unit.weights import openai_test

OPEN = {}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """One model in each form that is opened: a folder for transformers, its file, a run,
    OpenAI's files."""
    place = tmp_path_factory.mktemp("places")
    c = tools.config("gpt2")
    params = jax.tree.map(lambda x: x / 4, tools.random(c.model))
    (place / "theirs").mkdir()
    export_hf.save(place / "theirs", c, params, tools.TEXT)
    convert.main([f"--from={place / 'theirs'}", f"--to={place / 'run'}"])
    return {
        "folder": place / "theirs",
        "file": place / "theirs" / "model.safetensors",
        "run": place / "run",
    }


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Each place is opened once for all tests."""
    opened = open_model.open_model

    def first(path, *given):
        if path not in OPEN:
            OPEN[path] = opened(path, *given)
        return OPEN[path]

    monkeypatch.setattr(open_model, "open_model", first)


def said(place, *flags: str, capsys) -> str:
    """What sample prints after its first line."""
    capsys.readouterr()
    sample.main([f"--model={place}", "--max_new_tokens=6", *flags])
    title, _, rest = capsys.readouterr().out.partition("\n")
    assert title in (
        "gpt2, step 0",
        "gpt2, Hugging Face gpt2",
        "openai_gpt, Hugging Face openai-gpt",
    ), title
    return rest


def test_a_run_and_weights_of_others_say_the_same(places, capsys):
    greedy = [
        said(place, "--prompt=so", "--temperature=0", capsys=capsys) for place in places.values()
    ]
    assert greedy[0].startswith("so") and len(set(greedy)) == 1 and len(greedy[0]) > 4


def test_what_evaluate_opens_is_opened_by_the_same_function(places, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        open_model,
        "open_model",
        lambda path, *given: asked.append(str(path)) or (_ for _ in ()).throw(ValueError("seen")),
    )
    for place in places.values():
        for ask in (
            lambda p: sample.main([f"--model={p}"]),
            lambda p: evaluate.load_model(p, console.Console(quiet=True)),
        ):
            with pytest.raises(ValueError, match="seen"):
                ask(str(place))
    assert asked == [str(place) for place in places.values() for _ in range(2)]


# --- prompts --------------------------------------------------------------------------------------


def test_a_prompt_comes_from_a_file_or_standard_input_to_its_last_byte(
    places, tmp_path, monkeypatch, capsys
):
    text = "no line\u2581 end,\n  caf\u00e9\n"
    (tmp_path / "prompt.txt").write_bytes(text.encode())
    expected = said(places["run"], f"--prompt={text}", capsys=capsys)
    assert expected.startswith(text)
    assert (
        said(places["run"], f"--prompt_file={tmp_path / 'prompt.txt'}", capsys=capsys) == expected
    )
    (tmp_path / "marked.txt").write_bytes(
        b"\xef\xbb\xbf" + text.encode()
    )  # as Windows' editors save it
    assert (
        said(places["run"], f"--prompt_file={tmp_path / 'marked.txt'}", capsys=capsys) == expected
    )
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))
    assert said(places["run"], "--prompt_file=-", capsys=capsys) == expected


def test_no_prompt_begins_as_texts_do(places, capsys, monkeypatch):
    from gptjax.generate import streaming

    read, stream = [], streaming.stream
    monkeypatch.setattr(
        streaming,
        "stream",
        lambda reader, text, prompts, *more: (
            read.append(prompts[0]) or stream(reader, text, prompts, *more)
        ),
    )
    alone = said(places["run"], "--prompt=", "--temperature=0", capsys=capsys)
    newline = said(places["run"], "--temperature=0", capsys=capsys)
    assert read == [[256], [10]] and "<|endoftext|>" not in alone and newline.startswith("\n")


def test_a_token_that_begins_texts_is_not_shown(places, capsys, monkeypatch):
    """Where it is another than end-of-text, as Llama 3's."""
    monkeypatch.setattr(build.ByteTokenizer, "start_of_text", ord("A"))
    shown, hidden = (
        said(places["run"], f"--prompt={text}", "--temperature=0", capsys=capsys)
        for text in ("A", "")
    )
    assert shown == "A" + hidden


def test_each_line_is_answered(places, monkeypatch, capsys):
    def typed(content: bytes) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
        return said(places["run"], "--interactive", "--temperature=0", capsys=capsys)

    one, other = (
        said(places["run"], f"--prompt={word}", "--temperature=0", capsys=capsys)
        for word in ("so", "caf\u00e9")
    )
    nothing = said(places["run"], "--prompt=", "--temperature=0", capsys=capsys)
    assert typed("so\n\ncaf\u00e9\nso".encode()) == one + nothing + other + one
    assert typed(b"") == "" and typed(b"\xff\xfe\n").startswith("\ufffd\ufffd")


def test_a_line_that_cannot_be_answered_ends_nothing_and_the_same_line_is_answered_anew(
    places, monkeypatch, capsys
):
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 40 + "\nso\n"))
    answers = said(places["run"], "--interactive", "--num_beams=2", capsys=capsys)
    assert (
        answers.startswith("warning: a prompt of 40 tokens and 6 new ones exceed")
        and "score" in answers
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("so\nso\n"))
    first, second = said(places["run"], "--interactive", "--seed=3", capsys=capsys).split("so")[1:]
    assert first != second and "so" + first == said(
        places["run"], "--prompt=so", "--seed=3", capsys=capsys
    )


def refused(*flags: str, capsys) -> str:
    """The one line of an error of status 2."""
    try:
        sample.main([*flags])
    except SystemExit as error:
        assert error.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line
    except Exception as error:
        assert errors.classify_error(error)[0] == 2 and "\n" not in str(error), error
        return str(error)
    raise AssertionError("not refused")


@pytest.mark.parametrize(
    "flags, line",
    [
        (
            ["--prompt=x", "--prompt_file=-"],
            ("--prompt and --prompt_file each say what to continue: give one of them"),
        ),
        (["--interactive", "--prompt="], "--prompt and --interactive each say"),
        (["--prompt_file="], "an empty path"),
        (["--prompt_file=nothing.txt"], "nothing.txt cannot be read: No such file or directory"),
        (["--prompt_file=."], "cannot be read: Is a directory"),
        (["--prompt_file=/dev/zero"], "/dev/zero is longer than 67,108,864 bytes"),
        (["--prompt_file=latin.txt"], "latin.txt is not UTF-8 text: byte 0xe9 at offset 3"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_one_line(flags, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    assert line in refused("--model=nothing", *flags, capsys=capsys)


def test_standard_input_that_is_closed_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input is closed" in refused(
        "--model=nothing", "--prompt_file=-", capsys=capsys
    )


def test_a_folder_that_is_no_model_is_one_short_line(tmp_path, capsys):
    for content in ("{}", json.dumps({"model_type": "gpt2", "n_layer": 1}), "[]"):
        (tmp_path / "config.json").write_text(content)
        assert len(refused(f"--model={tmp_path}", capsys=capsys)) < 400
    assert "an empty path" in refused("--model=", capsys=capsys)


# --- numbers --------------------------------------------------------------------------------------


OUT_OF_BOUNDS = {
    "num_samples": ("0", "12345678901234567890", "-1", "x", "1e30"),
    "max_new_tokens": ("0", "9" * 5000),
    "temperature": ("-1", "nan", "inf", "1e308", "1e309", "x"),
    "top_k": ("0", "-1"),
    "top_p": ("0", "1.1"),
    "seed": ("-1", "4294967296", "9223372036854775808", "1.5"),
    "num_beams": ("0", "1000000"),
    "length_penalty": ("1e308", "-1", "nan"),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_a_number_out_of_bounds_is_one_line(name, capsys):
    for value in OUT_OF_BOUNDS[name]:
        assert f"argument --{name}: " in refused(
            "--model=nothing", f"--{name}={value}", capsys=capsys
        )


def test_a_number_at_its_bounds_is_right(places, capsys):
    greedy = said(places["run"], "--prompt=so", "--temperature=0", capsys=capsys)
    assert said(places["run"], "--prompt=so", "--temperature=1e-320", capsys=capsys) == greedy
    largest = ["--temperature=1e300", "--top_k=9223372036854775807", "--seed=4294967295"]
    assert said(places["run"], "--prompt=so", *largest, capsys=capsys).startswith("so")


@pytest.mark.parametrize(
    "flags",
    [
        ["--prompt=so"],
        ["--num_samples=2", "--temperature=0"],
        ["--prompt=so", "--num_beams=2"],
        ["--interactive"],
    ],
)
def test_a_model_of_nan_is_one_line(flags, places, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("so\nso\n"))
    said(places["run"], "--prompt=so", capsys=capsys)
    there = OPEN[str(places["run"])]
    OPEN[str(places["run"].with_name("broken"))] = dataclasses.replace(
        there, params=jax.tree.map(lambda x: x * float("nan"), there.params)
    )
    line = refused(
        f"--model={places['run'].with_name('broken')}", "--max_new_tokens=6", *flags, capsys=capsys
    )
    assert line.startswith("the model's logits are NaN or infinite")


# --- GPT-1 ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(request, tmp_path_factory):
    """A GPT-1 with its published tokenizer (BERT's words), as a run."""
    files = request.config.rootpath.parent / "shared" / "data" / "tokenizers" / "gpt1"
    place = tmp_path_factory.mktemp("first")
    spec = data.Gpt1Bpe(path=str(files), words="basic")
    model = schema.Model(n_layers=1, n_heads=2, d_model=8, n_vocab=40_478, n_ctx=24, norm="post")
    c = dataclasses.replace(tools.config("openai-gpt"), model=model, data=data.Data(tokenizer=spec))
    (place / "theirs").mkdir()
    export_hf.save(place / "theirs", c, tools.random(model), build.build(spec))
    return place / "theirs"


@pytest.mark.shared
def test_gpt1s_text_is_what_its_tokenizer_writes(first, capsys):
    """The space between prompt and answer is the last token's of the prompt, which is shown as
    it was read."""
    for flags in (["--temperature=0"], ["--num_samples=2"], ["--num_beams=2"]):
        shown = said(first, "--prompt=In the Beginning", *flags, capsys=capsys)
        assert "in the beginning " in shown and "beginning " in shown.split("in the ")[1], shown


@pytest.mark.shared
def test_gpt1_begins_with_a_newline_where_a_prompt_has_no_tokens(first, capsys):
    unsaid = [
        said(first, *flags, "--temperature=0", capsys=capsys)
        for flags in ([], ["--prompt="], ["--prompt=  "])
    ]
    assert unsaid[0].startswith("\n ") and len(set(unsaid)) == 1


@pytest.mark.shared
def test_gpt1_stops_where_its_tokenizer_writes_the_stop(first, capsys):
    free = said(first, "--prompt=go", capsys=capsys).removeprefix("go ")
    word = free.split()[2]
    stopped = said(first, "--prompt=go", f"--stop={word.upper()}", capsys=capsys)
    assert stopped.split() == ["go", *free[: free.index(word)].split()] and len(stopped) < len(free)
    assert "tokenizer cannot write the stop string" in refused(
        f"--model={first}", "--stop=\u4e94", capsys=capsys
    )


@pytest.mark.shared
def test_gpt1_without_spacy_works_after_the_suggested_command(first, tmp_path, monkeypatch, capsys):
    """As weights of others come, whose config.json names no tokenizer of ours."""
    monkeypatch.setitem(sys.modules, "spacy", None)
    shutil.copytree(first, tmp_path / "theirs")
    settings = json.loads((first / "config.json").read_text())
    del settings[tokenizer_files.TOKENIZER_KEY]
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings))
    line = refused(f"--model={tmp_path / 'theirs'}", "--prompt=go", capsys=capsys)
    assert "--set data.tokenizer.words=basic" in line and "python -m gptjax.convert" in line
    convert.main(
        [
            f"--from={tmp_path / 'theirs'}",
            f"--to={tmp_path / 'run'}",
            "--set",
            "data.tokenizer.words=basic",
        ]
    )
    greedy = ["--prompt=In the Beginning", "--temperature=0"]
    sample.main([f"--model={tmp_path / 'run'}", "--max_new_tokens=6", *greedy])
    assert capsys.readouterr().out.partition("step 0\n")[2] == said(first, *greedy, capsys=capsys)


def test_openais_files_generate_text(tmp_path, capsys):
    c, _, tensors = openai_test.stored("gpt2", name_maps.OPENAI_GPT2)
    openai_test.save(tmp_path, {f"model/{name}": x for name, x in tensors.items()})
    m = c.model
    (tmp_path / "hparams.json").write_text(
        json.dumps(
            {"n_vocab": m.n_vocab, "n_ctx": 12, "n_embd": 16, "n_head": 4, "n_layer": m.n_layers}
        )
    )
    assert "the weights have 257 ids, but data.tokenizer=Gpt2Bpe" in refused(
        f"--model={tmp_path}", capsys=capsys
    )
    convert.main(
        [f"--from={tmp_path}", f"--to={tmp_path / 'run'}", "--set", "data.tokenizer=Bytes()"]
    )
    assert said(tmp_path / "run", "--prompt=so", capsys=capsys).startswith("so")
