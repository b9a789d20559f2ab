"""What other projects call a field or a flag is answered by what it is here."""

import re

import pytest

from gptjax import cli, sample
from gptjax.config import overrides, synonyms
from gptjax.config.schema import Config
from gptjax.configs import registry

NAMES = ("train", "model", "data", "compute", "mesh", "loop")


def paths_of_the_schema():
    leaves = {path for path, _ in overrides._leaf_paths(Config, "", alternatives=True)}
    leaves |= {path for path, _ in overrides._leaf_paths(Config, "")}
    return leaves | {path.rpartition(".")[0] for path in leaves}


def test_every_target_is_a_field():
    known = paths_of_the_schema()
    mentioned = rf"\b(?:{'|'.join(NAMES)})(?:\.\w+)+"
    targets = {path for text in synonyms.FIELDS.values() for path in re.findall(mentioned, text)}
    assert len(targets) > 30 and sorted(targets - known) == []


@pytest.mark.parametrize(
    "assignment, answer",
    [
        ("train.epochs=3", "train.total_tokens is epochs"),
        ("mesh.model=2", "did you mean mesh.tensor"),
        ("model.n_positions=64", "did you mean model.n_ctx"),
        ("lr=3", "did you mean train.schedule.peak_lr"),
        ("train.schedule.peak=1", "did you mean train.schedule.peak_lr"),
        ("data.held_out=1", "did you mean data.validation"),
        ("compute.layers=scan", "did you mean compute.scan_layers"),
        ("train.batch_size=8", "train.batch_tokens is rows"),
    ],
)
def test_words_of_others(assignment, answer):
    with pytest.raises(ValueError, match=re.escape(answer)):
        overrides.override(registry.config("smoke"), assignment)


def parse(*arguments):
    parser = cli.make_config_parser("toy", "", "")
    parser.add_argument("--run_dir")
    return parser.parse_args(list(arguments))


def test_three_spellings_of_an_assignment_and_the_last_wins():
    words = ["--set", "seed=1", "train.steps=5", "--train.steps=7", "--run_dir", "a=b", "--seed=4"]
    args = parse(*words)
    assert args.assignments == ["seed=1", "train.steps=5", "train.steps=7", "seed=4"]
    assert args.run_dir == "a=b"
    assert parse("model.attention=(Dense(),)").assignments == ["model.attention=(Dense(),)"]


@pytest.mark.parametrize(
    "word, answer",
    [
        ("--run=x", "--run=x: that is --run_dir here"),
        ("--learning_rate=1e-3", "did you mean train.schedule.peak_lr?"),
        ("--output_dir=x", "that is --run_dir here"),
        ("--run_dri=x", "did you mean --run_dir?"),
        ("nano", "nano: neither an assignment, as train.steps=100"),
    ],
)
def test_other_flags_and_bare_words(capsys, word, answer):
    with pytest.raises(SystemExit) as caught:
        parse(word)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and answer in said and said.count("\n") == 1


def test_aliases():
    assert registry.config("gpt2") == registry.config("gpt2_124m")
    assert registry.config("openai-gpt") == registry.config("gpt1")


def test_transformers_word_for_sampling(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--model=x", "--do_sample"])
    assert "--do_sample: that is --temperature here" in capsys.readouterr().err
