"""Names and files find their recipes, wrong names find their neighbours, and what is wrong with
a file is a line."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.configs import registry
from gptjax.runtime import errors

ROOT = Path(__file__).parents[3]


def test_a_name_finds_the_config_that_carries_it():
    for name in registry.config_names():
        assert registry.config(name).name == name


def test_an_alias_finds_what_it_names():
    for alias, name in registry.aliases().items():
        assert alias not in registry.config_names()
        assert registry.config(alias) == registry.config(name)


def test_an_unknown_name_says_the_nearest():
    with pytest.raises(
        ValueError,
        match="'gpt2_'; did you mean gpt2_124m or gpt2_355m or gpt2_774m or gpt2_1558m\\?",
    ):
        registry.config("gpt2_")
    with pytest.raises(ValueError, match="'nanoo'; did you mean nano"):
        registry.config("nanoo")
    with pytest.raises(
        ValueError,
        match=(
            "'zzz'; there are smoke, nano, .*gpt3_175b, .*, openai-gpt, gpt2, .*gpt2-xl, 117m, .* "
            "175b "
            "\\(python -m gptjax.plan"
        ),
    ):
        registry.config("zzz")


def test_recipes_come_without_jax():
    code = (
        "import sys, gptjax.configs.registry as r; print('jax' in sys.modules, "
        "r.config('nano').name)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert loaded.stdout.split() == ["False", "nano"], loaded.stderr


# --- files of one's own ---------------------------------------------------------------------------

MINE = """
import dataclasses
import beside
from gptjax.config.sweep import Sweep, seeds
from gptjax.configs import finetuning, small

small_one = dataclasses.replace(small.smoke(), name="small_one", seed=beside.SEED)
task = finetuning.own_task()
N = 3

def deep():
    model = dataclasses.replace(small_one.model, n_layers=N)
    return dataclasses.replace(small_one, name="deep", model=model)

def wrong():
    return dataclasses.replace(small_one, model=dataclasses.replace(small_one.model, n_heads=3))

def of(n):
    return small_one

def unfinished():
    pass

def ends():
    raise SystemExit("no")

def questions():
    return Sweep(description="?", recipe="smoke", points=seeds(2))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """mine.py in the current directory, with a module that it imports beside it."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "beside.py").write_text("SEED = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    yield tmp_path / "mine.py"
    sys.modules.pop("beside", None)


def test_a_recipe_comes_from_a_file_of_ones_own(mine, tmp_path, monkeypatch):
    path = list(sys.path)
    one = registry.config("mine.py:small_one")
    assert one == dataclasses.replace(registry.config("smoke"), name="small_one", seed=7)
    assert registry.config("mine.py:deep").model.n_layers == 3
    assert registry.finetuning("mine.py:task") == registry.finetuning("own")
    assert registry.sweep("./mine.py:questions").recipe == "smoke"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert registry.config(f"{mine}:small_one") == registry.config("../mine.py:small_one") == one
    assert sys.path == path and not (tmp_path / "__pycache__" / "mine.cpython-311.pyc").exists()


def test_a_file_that_is_changed_is_read_again(mine):
    mine.write_text("from gptjax.configs import small\nc = small.nano()")
    os.utime(mine, (1, 1))
    assert registry.config("mine.py:c").name == registry.config("mine.py:c").name == "nano"
    mine.write_text("from gptjax.configs import small\nc = small.smoke()")
    assert registry.config("mine.py:c").name == "smoke"


def test_a_file_is_run_once(mine, capsys):
    mine.write_text("from gptjax.configs import small\nc = small.nano()\nprint('runs')")
    assert registry.config("mine.py:c") == registry.config("mine.py:c")
    assert capsys.readouterr().out == "runs\n"


@pytest.mark.parametrize(
    "name,text,said",
    [
        ("none.py:a", None, "none.py: there is no such file; give FILE.py:NAME, or a name alone"),
        (".:a", None, ".: that is no file; give FILE.py:NAME"),
        ("nano:", None, "nano: there is no such file; give FILE.py:NAME, or a name alone"),
        (":nano", None, "an empty path"),
        ("mine.py", None, "mine.py: say which config of mine.py, as FILE.py:NAME; there are small"),
        ("mine.py:dep", None, "mine.py:dep: say which config of mine.py, .*did you mean deep?"),
        ("mine.py:N", None, "mine.py:N must be a config, or a function .*; it is a int"),
        ("mine.py:unfinished", None, "or a function that returns one; it is a NoneType"),
        ("mine.py:task", None, "is a fine-tuning recipe: gptjax.finetune --config=mine.py:task"),
        ("mine.py:questions", None, "it is a sweep: gptjax.sweep --sweep=mine.py:questions"),
        ("mine.py:of", None, "mine.py: TypeError: of() missing 1 required positional argument"),
        ("mine.py:wrong", None, "mine.py:16: ValueError: .*heads"),
        ("mine.py:ends", None, "mine.py:25: SystemExit: no"),
        ("mine.py:a", "a = 1\nb = (2\n", "mine.py:2: '(' was never closed"),
        ("mine.py:a", "a = 1\n\n1 / 0\n", "mine.py:3: ZeroDivisionError: division by zero"),
        ("mine.py:a", "import no_such\n", "mine.py:1: ModuleNotFoundError: .* 'no_such'"),
        ("mine.py:a", "raise SystemExit(1)\n", "mine.py:1: SystemExit: 1"),
        ("mine.py:a", "raise ValueError('a\\nb' + 'x' * 9999)\n", "mine.py:1: ValueError: a b"),
        ("mine.py:a", "a\0", "mine.py:?.*null bytes"),
        ("mine.py:a", "a = '\udcff'\n", "mine.py:1: (unicode error) 'utf-8' codec can't decode"),
        ("mine.py:a", "", "mine.py:a: say which .*; it has no config, nor a function"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(mine, name, text, said):
    if text is not None:
        mine.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")) as error:
        registry.config(name)
    status, line = errors.classify_error(error.value)
    assert status == 2 and "\n" not in line and len(line) < 1000


def test_a_config_is_neither_a_task_nor_a_sweep(mine):
    with pytest.raises(
        ValueError, match="mine.py:deep must be a fine-tuning recipe.* it is a config: gptjax.train"
    ):
        registry.finetuning("mine.py:deep")
    with pytest.raises(
        ValueError, match="mine.py:deep must be a sweep, .* it is a config: gptjax.train"
    ):
        registry.sweep("mine.py:deep")
