"""Names find their recipes, wrong names find their neighbours, and nothing is imported before it
is asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from gptjax.config import registry

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
        match="'gpt2'; did you mean gpt2_124m or gpt2_355m or gpt2_774m or gpt2_1558m\\?",
    ):
        registry.config("gpt2")
    with pytest.raises(ValueError, match="'nanoo'; did you mean nano"):
        registry.config("nanoo")
    with pytest.raises(
        ValueError,
        match="'zzz'; there are smoke, nano, .*gpt3_175b, 117m, .* 175b \\(python -m gptjax.plan",
    ):
        registry.config("zzz")


def python(code: str, cwd: Path, path: str = ""):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_configs_and_jax_are_not_imported_with_the_package():
    code = (
        "import sys, gptjax.config.schema, gptjax.config.registry as r; print({'jax', "
        "'configs'} & {*sys.modules}, r.config('nano').name)"
    )
    loaded = python(code, ROOT)
    assert loaded.stdout.split() == ["set()", "nano"], loaded.stderr


def test_it_works_from_another_folder(tmp_path):
    found = python(
        "from gptjax.config import registry; print(registry.config('nano').name)",
        tmp_path,
        str(ROOT),
    )
    assert found.stdout.strip() == "nano", found.stderr


def test_a_missing_folder_of_configs_is_said_in_one_line(tmp_path):
    (tmp_path / "gptjax").symlink_to(ROOT / "gptjax")
    found = python(
        "from gptjax.config import registry\ntry: registry.config('nano')\nexcept ValueError as "
        "e: print(e)",
        tmp_path,
    )
    assert found.stdout.startswith("no folder configs/"), found.stderr
