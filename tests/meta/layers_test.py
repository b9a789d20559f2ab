"""The import law: a file imports only from what stands above it in the listing of
docs/contributing/architecture.md, which is complete.

The listing is the first fenced block with a line that starts with `gptjax/`. Below that line, a
line's leading words that end in `/` or `.py` are folders and files, placed by indentation; any
other line is prose. Their order is the order of the law.
"""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTERS = {"import_module", "__import__", "runpy", "spec_from_file_location", "exec_module"}
BY_NAME = {
    "evals/registry.py": "evals/tasks/ and its files, which stand above it",
    "data/sources/stdlib_corpus.py": "Python's own library, as text",
    "configs/registry.py": "a user's file of recipes",
    "runtime/child.py": "the program that it becomes",
    "__main__.py": "programs, all of which stand above it",
    "__init__.py": "api.py, and the modules that have a name of it: when one is first used",
}  # what each file imports by a name that is computed
OTHERS = {
    "configs",
    "launch",
    "tests",
    "bench",
}  # names at the top of the checkout; the first two are gptjax.configs and gptjax.launch


def listing(page: str) -> list[str]:
    """The files of the listing, as paths relative to the folder of gptjax, in order."""
    for block in page.split("```")[1::2]:
        lines = block.splitlines()[1:]
        starts = [i for i, line in enumerate(lines) if line.startswith("gptjax/")]
        if starts:
            return _files(lines[starts[0] + 1 :])
    raise AssertionError("no fenced block has a line that starts with gptjax/")


def _files(lines: list[str]) -> list[str]:
    files, open_folders = [], []  # the open ones as (indentation, path)
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent == 0:
            break
        for word in line.split():
            if not word.endswith(("/", ".py")):
                break
            open_folders = [(i, path) for i, path in open_folders if i < indent]
            path = (open_folders[-1][1] if open_folders else "") + word
            if word.endswith("/"):
                open_folders.append((indent, path))
            else:
                files.append(path)
    return files


def imports(root: Path, path: str) -> tuple[list[str], list[str]]:
    """(files of the package that a file imports, imports that lead nowhere or are relative);
    those inside functions count."""
    found, lost = [], []
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            lost.append("." * node.level + (node.module or ""))
        wanted = []
        if isinstance(node, ast.ImportFrom) and node.module:
            wanted = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names]
        for module, name in wanted:
            if module.split(".")[0] != root.name or f"{name}".startswith("__"):
                continue
            parts = "/".join(module.split(".")[1:])
            here = [f"{parts}/{name}.py".lstrip("/"), f"{parts}.py"]
            there = [candidate for candidate in here if (root / candidate).is_file()]
            if there:
                found.append(there[0])
            else:
                lost.append(f"{module}.{name}" if name else module)
    return found, lost


def by_string(root: Path, path: str) -> list[str]:
    """The modules that a file imports by a string: "?" for one that is computed. Those of Python
    and of other projects are left out."""
    tree = ast.parse((root / path).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {id(node.func) for node in calls}
    found = ["?" for node in ast.walk(tree) if _names_importer(node) and id(node) not in called]
    for node in calls:
        if _names_importer(node.func):
            first = node.args[0] if node.args else None
            name = first.value if isinstance(first, ast.Constant) else None
            if not isinstance(name, str):
                found.append("?")
            elif name.split(".")[0] in {"", root.name, *OTHERS}:
                found.append(name)
    return found


def _names_importer(node: ast.AST) -> bool:
    """Is it one of IMPORTERS, or does it give one of them another name?"""
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name, asname=str()):
            return name in IMPORTERS
        case ast.ImportFrom(module=name):
            return name in IMPORTERS
        case _:
            return False


def package_files(root: Path) -> list[str]:
    """The Python files of the package, also those of directories that are links."""
    walked = os.walk(root, followlinks=True)
    files = [Path(folder, name) for folder, _, names in walked for name in names]
    return sorted(str(file.relative_to(root)) for file in files if file.suffix == ".py")


def faults(root: Path, listed: list[str]) -> list[str]:
    """Every break of the law in the package at `root`, a sentence each."""
    files = package_files(root)
    said = [
        f"{path} is not in the listing"
        for path in files
        if path not in listed and not path.endswith("__init__.py")
    ]
    said += [f"{path} is in the listing and does not exist" for path in listed if path not in files]
    said += [f"{path} is listed twice" for path in dict.fromkeys(listed) if listed.count(path) > 1]
    edges = {}
    for path in files:
        edges[path], lost = imports(root, path)
        said += [f"{path} imports {name}, which is relative or does not exist" for name in lost]
        said += [
            f"{path} imports {name} by a string"
            for name in by_string(root, path)
            if path not in BY_NAME
        ]
        said += [
            f"{path} imports {name}, which stands outside of the package"
            for name in sorted(outsiders(root / path) & OTHERS)
        ]
        if path.endswith("__init__.py") and path not in listed:
            said += [
                f"{path} imports {other}: an __init__ holds a docstring only"
                for other in edges[path]
            ]
        elif path in listed:
            below = [
                o for o in edges[path] if o in listed and listed.index(o) >= listed.index(path)
            ]
            said += [f"{path} imports {other}, which stands below it" for other in below]
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        said.append(f"a cycle: {' -> '.join(error.args[1])}")
    return said


def test_gptjax_keeps_the_law():
    page = ROOT / "docs" / "contributing" / "architecture.md"
    assert faults(ROOT / "gptjax", listing(page.read_text())) == []


def outsiders(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
    return names


def test_every_file_that_imports_by_name_does_so():
    assert [path for path in BY_NAME if "?" not in by_string(ROOT / "gptjax", path)] == []


def test_config_needs_only_pythons_own_library():
    for folder in ("config", "configs"):  # and each other: both stand above all that needs more
        for path in (ROOT / "gptjax" / folder).glob("*.py"):
            assert outsiders(path) <= {*sys.stdlib_module_names, "gptjax"}, path


@pytest.mark.parametrize("name", ["configs", "launch"])
def test_a_link_holds_what_stands_at_the_top_and_under_no_other_name(name):
    link = ROOT / "gptjax" / name
    assert link.is_symlink() and os.readlink(link) == f"../{name}"
    found = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"ImportError: import gptjax.{name} instead of {name}" in found.stderr


# --- the test's own tests: a small house, whole and with each fault -------------------------------

PAGE = """
```
make train
```
```
gptjax/
  config/    what is a run?
    schema.py    every .py word of prose is ignored
    count.py
  configs/   recipes; a link to ../configs
    ladder.py
  tasks/     what is it asked?
    finetune/
      glue.py
  train.py plan.py
             the programs
configs/     the recipes
```
"""
HOUSE = {
    "config/__init__.py": '"""Doc."""',
    "config/schema.py": "import os",
    "config/count.py": "from gptjax.config import schema\nfrom gptjax.config.schema import Model",
    "../configs/ladder.py": "import importlib\nimportlib.import_module('yaml')",
    "tasks/finetune/glue.py": "import gptjax.config.count",
    "train.py": "def f():\n    from gptjax.tasks.finetune import glue",
    "plan.py": "",
}


def built(tmp_path: Path, changes: dict[str, str]) -> list[str]:
    root = tmp_path / "gptjax"
    root.mkdir()
    (root / "configs").symlink_to("../configs")
    for path, text in (HOUSE | changes).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return faults(root, listing(PAGE))


def test_the_listing_is_read_in_order():
    assert listing(PAGE) == [
        "config/schema.py",
        "config/count.py",
        "configs/ladder.py",
        "tasks/finetune/glue.py",
        "train.py",
        "plan.py",
    ]
    with pytest.raises(AssertionError, match="no fenced block"):
        listing("gptjax/\n```\nelse\n```")


@pytest.mark.parametrize(
    "changes,said",
    [
        ({}, None),
        (
            {"config/schema.py": "def f(): from gptjax.config import count"},
            "config/schema.py imports config/count.py, which stands below it",
        ),
        ({"config/schema.py": "import gptjax.train"}, "a cycle: "),
        (
            {"train.py": "from gptjax import plan"},
            "train.py imports plan.py, which stands below it",
        ),
        (
            {"plan.py": "from gptjax.config import nothing"},
            "plan.py imports gptjax.config.nothing, which is relative or does not exist",
        ),
        ({"plan.py": "from .config import count"}, "plan.py imports .config, which is relative"),
        (
            {"../configs/ladder.py": "def f(): from gptjax import train"},
            "configs/ladder.py imports train.py, which stands below it",
        ),
        (
            {"config/count.py": "from gptjax.configs import ladder"},
            "config/count.py imports configs/ladder.py, which stands below it",
        ),
        ({"../configs/mine.py": ""}, "configs/mine.py is not in the listing"),
        ({"plan.py": "import configs"}, "plan.py imports configs, which stands outside"),
        (
            {"plan.py": "import importlib\nimportlib.import_module('gptjax.train')"},
            "plan.py imports gptjax.train by a string",
        ),
        (
            {"plan.py": "from importlib import import_module as f\nf('gptjax.train')"},
            "plan.py imports ? by a string",
        ),
        (
            {"plan.py": "import runpy\nf = runpy.run_module\nf('gptjax.train')"},
            "plan.py imports ? by a string",
        ),
        (
            {"plan.py": "import importlib\nimportlib.import_module('.train', 'gptjax')"},
            "plan.py imports .train by a string",
        ),
        (
            {"plan.py": "__import__('gptjax.launch.tpu')"},
            "plan.py imports gptjax.launch.tpu by a string",
        ),
        (
            {"plan.py": "import importlib as i\ni.import_module('gptjax.' + 'train')"},
            "plan.py imports ? by a string",
        ),
        ({"tasks/extra.py": ""}, "tasks/extra.py is not in the listing"),
        (
            {"tasks/__init__.py": "from gptjax.config import count"},
            "tasks/__init__.py imports config/count.py: an __init__",
        ),
        ({"__init__.py": "from gptjax import plan"}, "__init__.py imports plan.py: an __init__"),
    ],
)
def test_each_fault_is_found(tmp_path, changes, said):
    found = built(tmp_path, changes)
    assert found == [] if said is None else any(said in fault for fault in found), found


def test_a_listed_file_that_is_not_there_is_found(tmp_path):
    root = tmp_path / "gptjax"
    root.mkdir()
    (root / "plan.py").write_text("")
    assert faults(root, ["train.py", "plan.py", "plan.py"]) == [
        "train.py is in the listing and does not exist",
        "plan.py is listed twice",
    ]
