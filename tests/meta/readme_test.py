"""What the README tells a newcomer to type exists."""

import re
from pathlib import Path

import pytest

from gptjax.configs import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def readme() -> str:
    path = ROOT / "README.md"
    assert path.is_file(), "README.md is missing"
    return path.read_text()


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))


def test_make_targets_exist(readme):
    named = set(re.findall(r"\bmake ([a-z-]+)(?=[`\n]|\s+#|\s{2,})", readme))
    assert {"train", "test"} <= named, "the README's two commands are make train and make test"
    assert named <= targets((ROOT / "Makefile").read_text())


def test_programs_exist(readme):
    named = set(re.findall(r"python -m gptjax\.([a-z0-9_.]+)", readme))
    assert named, "the README shows no program"
    assert [
        n
        for n in named
        if not (ROOT / "gptjax" / f"{n.rstrip('.').replace('.', '/')}.py").is_file()
    ] == []


def test_configs_exist(readme):
    known = {*registry.config_names(), *registry.aliases(), *registry.finetuning_names(), "NAME"}
    assert [
        n for n in re.findall(r"--config[= ]([A-Za-z0-9_.]+)", readme) if n.rstrip(".") not in known
    ] == []
