"""The package as others get it: what its wheel holds, that it runs where it is installed, and
what the files about it state."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import gptjax
from gptjax.distributed import processes
from gptjax.runtime import run_dir

ROOT = Path(__file__).parents[2]
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
EXTRAS = {path.stem.removeprefix("requirements-"): path for path in ROOT.glob("requirements-*.txt")}
RECIPES = """
import dataclasses
from gptjax.configs import small

def tiny():
    smoke = small.smoke()
    loop = dataclasses.replace(smoke.loop, sample_tokens=1)
    model = dataclasses.replace(smoke.model, n_layers=1)
    return dataclasses.replace(smoke, name="tiny", model=model, loop=loop)
"""


def build(tree: Path, what: str, out: Path) -> Path:
    """The wheel or sdist of a source tree, by the build backend that pyproject.toml names,
    without an index."""
    out.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(out)], cwd=tree, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what a package is built from: building writes into the tree."""
    for tool in ("setuptools", "pip"):
        pytest.importorskip(tool, reason=f"needs {tool}, which requirements-dev.txt or venv brings")
    tree = tmp_path_factory.mktemp("package") / "tree"
    tree.mkdir()
    for folder in ("gptjax", "configs", "launch"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=ignored)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(sources) -> Path:
    return build(sources, "build_wheel", sources.parent / "wheel")


@pytest.fixture(scope="module")
def environment(wheel) -> Path:
    """A new environment with the wheel in it, and the packages of the one that runs the tests
    beside it."""
    venv = wheel.parents[1] / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site_packages,) = venv.glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(sysconfig.get_path("purelib"))
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, f"--python={venv / 'bin' / 'python'}", *install], check=True)
    return venv


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs git's list of files")
def test_no_folder_of_a_run_is_committed():
    """A log, a run or a crawl that lies in the checkout is added by mistake."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    folders = {name.partition("/")[0] for name in listed if "/" in name}
    known = {".ci", ".github", "bench", "configs", "docs", "examples", "gptjax", "launch", "tests"}
    assert folders == known


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    about = f"gptjax-{gptjax.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"gptjax", about}
    walked = os.walk(ROOT / "gptjax", followlinks=True)
    files = [Path(folder, name).relative_to(ROOT) for folder, _, inner in walked for name in inner]
    expected = {str(file) for file in files if file.suffix in (".py", ".typed", ".html")}
    assert {name for name in names if name.startswith("gptjax/")} == expected
    assert {"gptjax/configs/ladder.py", "gptjax/launch/tpu.py", "gptjax/py.typed"} <= expected
    assert f"{about}/licenses/LICENSE" in names


def test_the_sdist_makes_the_same_wheel(sources, wheel):
    sdist = build(sources, "build_sdist", sources.parent / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(sources.parent, filter="data")
    tree = sources.parent / f"gptjax-{gptjax.__version__}"
    again = build(tree, "build_wheel", sources.parent / "wheel of sdist")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {name: one.read(name) for name in one.namelist()} == {
            name: other.read(name) for name in other.namelist()
        }


def test_it_is_installed_beside_nothing_else(environment):
    (site_packages,) = environment.glob("lib/python*/site-packages")
    about = f"gptjax-{gptjax.__version__}.dist-info"
    assert {path.name for path in site_packages.iterdir()} == {"gptjax", about, "packages.pth"}
    assert processes.source_digest(site_packages / "gptjax") == processes.source_digest()


def test_it_trains_a_recipe_of_ones_own_in_an_empty_directory(environment, tmp_path):
    """And what the run holds is read without that recipe."""

    def ran(*arguments):
        command = [str(environment / "bin" / "gptjax"), *arguments]
        variables = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
        flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
        variables["XLA_FLAGS"] = " ".join(flags)  # not eight devices
        done = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = ran()
    assert "\n  train " in listed and "\n  launch_tpu " in listed
    assert ran("--version") == f"gptjax {gptjax.__version__}\n"
    (tmp_path / "mine.py").write_text(RECIPES)
    (tmp_path / "text.txt").write_text("some words " * 500)
    ran("train", "--config=mine.py:tiny", "--text=text.txt", "--set", "train.steps=2")
    (tmp_path / "mine.py").unlink()
    run = tmp_path / "runs" / "tiny-text"
    assert run_dir.load_config(run).name == "tiny-text" and (run / "checkpoints" / "2").is_dir()
    assert "#SBATCH" in ran("launch-slurm", "--", "--config=smoke", "--run_dir=/shared/run")


# --- what the files about it state ----------------------------------------------------------------


def lines_of(path: Path) -> set[str]:
    """The requirements of a file, normalized."""
    lines = [line.split(" #")[0].strip() for line in path.read_text().splitlines()]
    return {str(Requirement(line)) for line in lines if line and not line.startswith("#")}


def test_its_extras_are_the_requirements_files(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = f"gptjax-{gptjax.__version__}.dist-info/METADATA"
        about = message_from_bytes(archive.read(name))
    assert set(about.get_all("Provides-Extra", [])) == set(EXTRAS)
    assert {"gpu", "tpu", "eval", "dev", "docs"} <= set(EXTRAS)
    found: dict[str, set[str]] = {"": set()} | {extra: set() for extra in EXTRAS}
    for text in about.get_all("Requires-Dist", []):
        extra = re.search(r"""(?: and |; )extra == ['"]([a-z0-9]+)['"]$""", text)
        text = text[: extra.start()] if extra else text
        text = re.sub(r"; \((.*)\)$", r"; \1", text)
        found[extra[1] if extra else ""].add(str(Requirement(text)))
    assert found[""] == lines_of(ROOT / "requirements.txt")
    assert {extra: found[extra] for extra in EXTRAS} == {
        extra: lines_of(path) for extra, path in EXTRAS.items()
    }
    assert about["License-Expression"] == "Apache-2.0" and about["Requires-Python"] == ">=3.11"


@pytest.mark.parametrize(
    "path", [ROOT / "requirements.txt", *EXTRAS.values()], ids=lambda p: p.name
)
def test_every_requirement_is_of_one_version(path):
    assert [line for line in lines_of(path) if not re.search(r"==[0-9]", line)] == []


def test_the_citation_and_the_license_are_of_this_package():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about["version"] == gptjax.__version__ and about["license"] == "Apache-2.0"
    assert (
        "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()
    )


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())


def test_the_makefile_names_tests_that_are_there():
    names = re.findall(r"tests/[\w/]+\.py", (ROOT / "Makefile").read_text())
    assert names and [name for name in names if not (ROOT / name).is_file()] == []


def test_the_workflow_checks_what_is_promised():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    commands = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert {"make check", "make test", "make train", "make docs"} <= commands
    assert {command.removeprefix("make ") for command in commands} <= targets()


def test_pre_commit_runs_what_make_check_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    text = (ROOT / "Makefile").read_text()
    check = (
        text.partition("\ncheck:")[2].partition("\n\n")[0].replace("$(RUN)", "$(VENV)/bin/python")
    )
    assert "RUN = $(VENV)/bin/python\n" in text and "VENV ?= .venv\n" in text
    commands = check.replace("$(VENV)", ".venv").split("\n\t")[1].split(" && ")
    assert len(commands) == len(hooks)
    for command, hook in zip(commands, hooks, strict=True):
        assert command.startswith(hook["entry"]), hook


def test_ci_runs_the_checks_and_then_the_tests_last():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines[-2:] == ["make check", "make test"]


def test_the_version_is_written_once():
    """As text in gptjax/__init__.py, where a build reads it without importing."""
    tree = ast.parse((ROOT / "gptjax" / "__init__.py").read_text())
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert len(values) == 1 and isinstance(values[0], ast.Constant)
    assert gptjax.__version__ not in (ROOT / "pyproject.toml").read_text()
