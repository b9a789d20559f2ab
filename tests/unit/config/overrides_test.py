"""The grammar of `path=value`, the flat form and its inverse, and the sentence that each wrong
input gets."""

import json
import math
import random

import pytest

from gptjax.config.data import (
    ByDocument,
    Bytes,
    Data,
    Embedded,
    Gpt2Bpe,
    SentencePiece,
    Separate,
    Shards,
    Tail,
    Text,
    Tfds,
)
from gptjax.config.overrides import diff, digest, edits, flatten, override, unflatten
from gptjax.config.schema import (
    AdamW,
    Banded,
    Config,
    Constant,
    Cosine,
    Dense,
    Dropout,
    Fixed,
    Init,
    Linear,
    Mesh,
    Model,
    Ramp,
    Strided,
    Train,
)

CONFIG = Config(
    name="base",
    model=Model(
        n_layers=4,
        n_heads=2,
        d_model=8,
        n_vocab=257,
        n_ctx=16,
        attention=(Banded(window=4), Dense()),
    ),
    data=Data(tokenizer=Bytes()),
    train=Train(
        total_tokens=6400,
        batch_tokens=64,
        schedule=Cosine(peak_lr=1e-3, warmup_tokens=640, decay_tokens=6400),
    ),
)


def after(*assignments):
    return override(CONFIG, *assignments)


def refused(*assignments) -> str:
    with pytest.raises(ValueError) as caught:
        after(*assignments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_numbers_are_read_by_declared_type():
    assert after("train.total_tokens=3.2e6").train.total_tokens == 3_200_000
    assert type(after("train.total_tokens=3.2e6").train.total_tokens) is int
    assert after("train.total_tokens=500_000").train.total_tokens == 500_000
    assert type(after("train.optimizer.eps=1").train.optimizer.eps) is float
    assert after("mesh.fsdp=-1").mesh.fsdp == -1
    assert after("train.optimizer.clip_norm=None").train.optimizer.clip_norm is None
    assert (
        after("train.steps=20").train.steps == 20
        and after("train.steps=20", "train.steps=None").train.steps is None
    )


@pytest.mark.parametrize(
    "path,value,allowed",
    [
        ("model.n_layers", "four", "a whole number"),
        ("model.n_layers", "True", "a whole number"),
        ("model.n_layers", "2.5", "a whole number"),
        ("model.n_layers", "None", "a whole number"),
        ("model.n_layers", "", "a whole number"),
        ("model.n_layers", "(2", "a whole number"),
        ("model.n_layers", "{[]: 1}", "a whole number"),
        ("train.optimizer.b1", "'0.9'", "a number"),
        ("train.optimizer.b1", "1e999", "a number"),
        ("train.steps", "many", "a whole number or None"),
        ("model.norm", "middle", "pre or post"),
        ("model.norm", "1", "pre or post"),
        (
            "train.schedule",
            "3",
            "Cosine(peak_lr=..., warmup_tokens=..., decay_tokens=..., final_fraction=...) or "
            "Linear(",
        ),
        ("train.schedule", "None", "Cosine("),
        ("model.attention", "(Dense(), 3)", "Dense() or Banded(window=...)"),
        ("model", "tiny", "Model(n_layers=..., "),
    ],
)
def test_a_wrong_type_says_path_given_and_allowed(path, value, allowed):
    said = refused(f"{path}={value}")
    assert said.startswith(f"{path}=") and allowed in said


def test_strings_are_bare_or_quoted():
    assert after("name=a b+c=d").name == "a b+c=d"
    assert (
        after("name='a b'").name == "a b"
        and after('name="None"').name == "None"
        and after("name=None").name == "None"
    )
    assert after("loop.sample_prompt='\\n'").loop.sample_prompt == "\n"
    assert after("data.tokenizer=Gpt2Bpe(path='None')").data.tokenizer == Gpt2Bpe(path="None")
    assert after("data.tokenizer=Gpt2Bpe", "data.tokenizer.path=../x/y").data.tokenizer == Gpt2Bpe(
        path="../x/y"
    )
    assert (
        after("data.tokenizer=Gpt2Bpe(path='x')", "data.tokenizer.path=None").data.tokenizer
        == Gpt2Bpe()
    )
    assert after("model.norm=post").model.norm == "post" == after("model.norm='post'").model.norm


def test_alternatives_are_calls_or_names():
    assert after("train.schedule=Constant(peak_lr=1)").train.schedule == Constant(peak_lr=1.0)
    assert after(
        "data.validation=Separate(source=Text(path='x y.txt'))"
    ).data.validation == Separate(source=Text(path="x y.txt"))
    assert (
        after("data.validation=Tail").data.validation
        == Tail()
        == after("data.validation=Tail()").data.validation
    )
    assert after(
        "train.batch_ramp=Ramp(start_tokens=16, over_tokens=3.2e3)"
    ).train.batch_ramp == Ramp(start_tokens=16, over_tokens=3200)
    assert after("model.init=Init(residual='depth_scaled', weight=1)").model.init == Init(
        residual="depth_scaled", weight=1.0
    )


def test_tuples_and_single_elements():
    assert after(
        "model.attention=(Strided(stride=2), Fixed(block=4, summary=1))"
    ).model.attention == (Strided(stride=2), Fixed(block=4, summary=1))
    assert after("model.attention=[Dense, Dense]").model.attention == (Dense(), Dense())
    assert (
        after("model.attention=Dense()").model.attention
        == (Dense(),)
        == after("model.attention=Dense").model.attention
    )
    assert after("data.sources=Text(path='x')").data.sources == (Text(path="x"),)
    assert after("data.sources=()").data.sources == ()


def test_paths_reach_into_alternatives_and_tuples():
    assert after("train.schedule.peak_lr=3e-4").train.schedule == Cosine(
        peak_lr=3e-4, warmup_tokens=640, decay_tokens=6400
    )
    assert after("model.attention.0.window=2").model.attention == (Banded(window=2), Dense())
    assert after(
        "train.schedule=Constant(peak_lr=1)", "train.schedule.peak_lr=2"
    ).train.schedule == Constant(peak_lr=2.0)
    assert after(
        "train.schedule.peak_lr=2", "train.schedule=Constant(peak_lr=1)"
    ).train.schedule == Constant(peak_lr=1.0)
    assert "2 elements" in refused("model.attention.2.window=2")
    assert "train.batch_ramp is None" in refused(
        "train.batch_ramp.start_tokens=16"
    ) and "Ramp(start_tokens=..." in refused("train.batch_ramp.start_tokens=16")
    assert "has no fields" in refused("model.n_layers.x=1")


def test_changes_that_are_valid_only_together():
    assert "does not divide" in refused("model.n_heads=3")
    assert after("model.n_heads=3", "model.d_model=48").model.n_heads == 3
    assert after("model.d_model=48", "model.n_heads=3").model.n_heads == 3
    assert after("model.n_ctx=48", "train.batch_tokens=96").batch_rows == 2
    assert (
        after(
            "train.schedule.warmup_tokens=10_000", "train.schedule.decay_tokens=20_000"
        ).train.schedule.warmup_tokens
        == 10_000
    )


def test_near_misses():
    assert (
        refused("model.n_layer=3")
        == "model.n_layer: Model has no field 'n_layer'; did you mean model.n_layers?"
    )
    assert (
        refused("n_layers=3")
        == "n_layers: Config has no field 'n_layers'; did you mean model.n_layers?"
    )
    assert "did you mean model?" in refused("modle.n_layers=3")
    assert refused("model.mlp.top_k=2") == (
        "model.mlp.top_k: GELU has no field 'top_k'; another value of model.mlp has it: set "
        "model.mlp as a whole"
    )
    assert "did you mean Banded?" in refused("model.attention=Bandid(window=3)")
    assert "Banded has no field 'windows'; did you mean window?" in refused(
        "model.attention=Banded(windows=3)"
    )
    assert "there are peak_lr, warmup_tokens" in refused(
        "train.schedule=Constant(peak_lr=1)", "train.schedule.zzz=1"
    )


def test_calls_with_missing_or_unknown_fields():
    assert "name each field: Banded(window=...)" in refused("model.attention=Banded(3)")
    assert "Banded needs window" in refused(
        "model.attention=Banded()"
    ) and "Banded needs window" in refused("model.attention=Banded")
    assert "quote strings" in refused("data.sources=Text(path=../x.txt)")
    assert "give Dense() or Banded" in refused("model.attention=a.b(c=1)")
    assert "Text(path=" in refused("data.sources=text.Text(path='x')")
    assert "name each field" in refused("model.attention=Banded(**{'window': 3})")


def test_validation_names_the_path():
    assert (
        refused("model.attention=Banded(window=0)")
        == "model.attention: Banded.window=0: give a whole number from 1 to 16,777,216"
    )
    assert (
        refused("train.schedule.peak_lr=0")
        == "train.schedule: Cosine.peak_lr=0.0: give a number from 1e-30 to 1e+30"
    )
    assert "model.n_heads=3 does not divide" in refused("model.n_heads=3")
    assert (
        "'dots' cannot be saved; give none, full, or the activations that a layer saves, of "
        "attention, qkv, mid, up" in refused("compute.remat=mid+dots")
    )
    assert "'', 'full' cannot be saved" in refused("compute.remat=full+")


def test_an_assignment_needs_a_path():
    assert "path=value" in refused("train.steps") and "path=value" in refused("=3")


VARIANTS = [
    (),
    (
        "model.attention=Dense",
        "train.batch_ramp=Ramp(start_tokens=16, over_tokens=99)",
        "train.steps=7",
    ),
    (
        "model.attention=(Strided(stride=2), Fixed(block=4, summary=1))",
        "train.schedule=Linear(peak_lr=0.1, warmup_tokens=0, decay_tokens=9)",
    ),
    (
        "data.validation=Separate(source=Tfds(name='a/b', data_dir=None))",
        'data.tokenizer=Gpt1Bpe(path="it\'s")',
        "train.optimizer.clip_norm=None",
    ),
    (
        "data.sources=(Embedded, Text(path='a\\nb', weight=0.1), Shards(path='c'))",
        "data.tokenizer=SentencePiece",
        "loop.sample_prompt=None",
    ),
]


@pytest.mark.parametrize("assignments", VARIANTS)
def test_flatten_survives_json(assignments):
    config = after(*assignments)
    leaves = json.loads(json.dumps(flatten(config)))
    assert all(value is None or isinstance(value, int | float | str) for value in leaves.values())
    assert unflatten(leaves) == config
    assert digest(unflatten(leaves)) == digest(config)


def test_flattened_values_are_in_the_override_grammar():
    leaves = flatten(after("train.schedule=Constant(peak_lr=1)", "model.attention=Dense"))
    assert (
        leaves["model.attention"] == "(Dense(),)"
        and leaves["train.schedule"] == "Constant(peak_lr=1.0, warmup_tokens=0)"
    )
    assert (
        leaves["model.n_layers"] == 4
        and leaves["train.batch_ramp"] is None
        and leaves["train.optimizer.b2"] == 0.95
    )


def test_rebuild_names_what_is_unknown_and_missing():
    leaves = flatten(CONFIG) | {"train.lr": 1.0}
    del leaves["train.max_nonfinite_steps"], leaves["mesh.data"]
    with pytest.raises(
        ValueError, match=r"unknown: train.lr; missing: train.max_nonfinite_steps, mesh.data"
    ):
        unflatten(leaves)
    with pytest.raises(ValueError, match="model.n_layers='x': give a whole number"):
        unflatten(flatten(CONFIG) | {"model.n_layers": "'x'"})
    with pytest.raises(ValueError, match="does not divide"):
        unflatten(flatten(CONFIG) | {"model.n_heads": 3})


def test_differences_can_be_pasted_as_overrides():
    other = after("seed=4", "train.schedule.peak_lr=2e-3", "data.validation=Tail", "name=x")
    lines = diff(CONFIG, other)
    assert lines[0] == "name: 'base' -> 'x'" and "seed: 0 -> 4" in lines and len(lines) == 4
    assert (
        override(
            CONFIG,
            *(line.split(" -> ")[0].split(":")[0] + "=" + line.split(" -> ")[1] for line in lines),
        )
        == other
    )
    assert diff(CONFIG, CONFIG) == []


@pytest.mark.parametrize(
    "assignments",
    [
        (),
        ("model.heads.n_kv_heads=1", "model.mlp=SwiGLU(d_ff=96)", "model.biases=none"),
        ("model.mlp.d_ff=96", "model.attention=(Banded(window=8),Dense())", "name=a=b"),
        ("train.optimizer.clip_norm=None", "train.schedule.peak_lr=1e-05", "seed=7"),
    ],
)
def test_edits_make_the_second_config_of_the_first(assignments):
    second = override(CONFIG, *assignments)
    found = edits(CONFIG, second)
    assert len(found) == len(assignments) and override(CONFIG, *found) == second


def test_the_digest_distinguishes_configs():
    assert digest(CONFIG) == digest(after("seed=0")) and len(digest(CONFIG)) == 16
    assert (
        len({digest(c) for c in (CONFIG, after("seed=1"), after("model.attention.0.window=5"))})
        == 3
    )


def test_every_record_can_be_written():
    for record in (
        ByDocument(),
        Embedded(),
        Shards(path="x"),
        Tfds(name="x"),
        SentencePiece(),
        AdamW(),
        Dropout(),
        Mesh(),
        Linear(peak_lr=1.0, warmup_tokens=0, decay_tokens=1),
    ):
        assert eval(repr(record)) == record  # repr is the grammar


# --- texts of all kinds: a value or one line ------------------------------------------------------


def outcome(assignment):
    """The config, or the one line that is said; any other exception fails the test."""
    try:
        return override(CONFIG, assignment)
    except ValueError as error:
        assert type(error) is ValueError, error
        assert "\n" not in str(error) and len(str(error)) < 1500, str(error)[:2000]
        return str(error)


HOSTILE = {
    "3,000 signs": "-" * 3000 + "1",
    "100,000 signs": "-" * 100_000 + "1",
    "a sum of 3,000": "1" + "+1" * 3000,
    "a sum of 50,000": "1" + "+1" * 50_000,
    "powers": "9**" * 3000 + "9",
    "brackets": "(" * 50_000,
    "brackets, closed": "(" * 190 + "1" + ")" * 190,
    "calls of calls": "Dense" + "()" * 30_000,
    "records in records": "Separate(source=" * 80 + "Embedded()" + ")" * 80,
    "attributes": "a" + ".b" * 3000,
    "not": "not " * 3000 + "1",
    "lambdas": "lambda:" * 3000 + "1",
    "comparisons": "1" + "<1" * 3000,
    "an integer of 5,000 digits": "9" * 5000,
    "an integer of 100,000 digits": "9" * 100_000,
    "an integer of 4,000 digits": "9" * 4000,
    "hexadecimal": "0x" + "f" * 50_000,
    "a number without end": "1e999999999",
    "a superscript": "²",
    "Arabic digits": "٣",
    "a zero byte": "a\0b",
    "a lone surrogate": "\udce9",
    "a lone surrogate in a string": "'\udce9'",
    "an odd escape": "'\\d'",
    "an escape of nothing": "'\\N{nothing}'",
    "a line end": "1\n2",
    "a long string": "'" + "x" * 99_000 + "'",
    "many elements": "(" + "1," * 10_000 + ")",
    "a comment": "1 #",
    "bytes": "b'x'",
    "an f-string": "f'{1}'",
    "a complex number": "1j",
    "a walrus": "(x := 1)",
    "nothing": "",
    "markup": "[/b]",
    "terminal": "\x1b[31m",
}
FIELDS = (
    "model.n_layers",
    "train.optimizer.b1",
    "model.attention",
    "data.sources",
    "train.schedule",
    "train.batch_ramp",
    "model.norm",
    "name",
)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_a_hostile_value_is_read_or_refused_in_one_line(text):
    for path in FIELDS:
        outcome(f"{path}={text}")
    outcome(f"data.sources=Text(path={text})")


@pytest.mark.parametrize(
    "key",
    [
        "²",
        "٣",
        "9" * 5000,
        "x" * 99_000,
        "a" + ".a" * 40_000,
        "\udce9",
        "a\0b",
        "a\nb",
        "-1",
        "",
        "0x0",
        "1_0",
    ],
)
def test_a_hostile_path_is_refused_in_one_line(key):
    for path in ("data.sources.", "model.attention.", "model.n_layers.", "", "train."):
        said = outcome(f"{path}{key}=1")
        assert isinstance(said, str), (path, key[:20])


def test_random_texts_of_the_grammars_own_characters_are_read_or_refused():
    draw = random.Random(5)
    words = (
        "( ) [ ] , = . - + * ' \" \\ { } : # @ 1 9 0.5 1e308 1e-400 nan inf None True ² \0 \n "
        "\udc80 é Dense Banded window Text path"
    ).split(" ")
    for _ in range(1500):
        text = "".join(draw.choices(words, k=draw.randint(1, 12)))
        outcome(f"{draw.choice(FIELDS)}={text}")
        outcome(text)


def test_bytes_of_a_path_that_are_not_utf8_are_kept():
    config = after("data.sources=Text(path='caf\udce9.txt')")
    assert config.data.sources[0].path == "caf\udce9.txt"
    assert unflatten(json.loads(json.dumps(flatten(config)))) == config and digest(
        config
    ) != digest(CONFIG)


@pytest.mark.parametrize(
    "given, meant",
    [("train.lr", "train.schedule.peak_lr"), ("lr", "train.schedule.peak_lr")]
    + [
        ("model.n_embd", "model.d_model"),
        ("train.max_iters", "train.steps"),
        ("model.n_head", "model.n_heads"),
    ],
)
def test_names_of_other_projects_are_hinted_at(given, meant):
    assert refused(f"{given}=3").endswith(f"did you mean {meant}?")
    assert "did you mean" not in refused(
        "model.attention=Dense", "model.attention.0.window=4"
    )  # and not task.kind


DEEP = [1]
for _ in range(900):
    DEEP = [DEEP]
LEAVES = (
    None,
    True,
    [],
    {},
    DEEP,
    -1,
    0.5,
    10**400,
    1e308,
    math.nan,
    "",
    "x",
    "(",
    "-" * 3000 + "1",
    "\0",
    "\udc80",
    "9" * 5000,
    "Dense()",
)


def test_a_damaged_config_json_is_read_or_refused_in_one_line():
    leaves = flatten(CONFIG)
    for path in leaves:
        for value in LEAVES:
            try:
                assert isinstance(unflatten(leaves | {path: value}), Config)
            except ValueError as error:
                assert (
                    type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 1500
                ), (path, value)
