"""The import law: a file imports only from what stands above it in the listing of
docs/contributing/architecture.md, which is complete.

The listing is the first fenced block with a line that starts with `gptjax/`. Below that line, a
line's leading words that end in `/` or `.py` are folders and files, placed by indentation; any
other line is prose. Their order is the order of the law.
"""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
            if module.split(".")[0] != root.name:
                continue
            parts = "/".join(module.split(".")[1:])
            here = [f"{parts}/{name}.py".lstrip("/"), f"{parts}.py"]
            there = [candidate for candidate in here if (root / candidate).is_file()]
            if there:
                found.append(there[0])
            else:
                lost.append(f"{module}.{name}" if name else module)
    return found, lost


def faults(root: Path, listed: list[str]) -> list[str]:
    """Every break of the law in the package at `root`, a sentence each."""
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.py"))
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
        if path.endswith("__init__.py"):
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


def test_gptjax_imports_nothing_that_stands_on_it():
    assert [
        str(p)
        for p in (ROOT / "gptjax").rglob("*.py")
        if outsiders(p) & {"configs", "tests", "bench", "launch"}
    ] == []


def test_config_needs_only_pythons_own_library():
    for path in [*(ROOT / "gptjax" / "config").glob("*.py"), *(ROOT / "configs").glob("*.py")]:
        assert outsiders(path) <= {*sys.stdlib_module_names, "gptjax", "configs"}, path


def test_recipes_import_only_config():
    for path in (ROOT / "configs").glob("*.py"):
        modules = [
            node.module
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.module
        ]
        assert all(
            m.startswith(("gptjax.config", "configs")) or m.split(".")[0] in sys.stdlib_module_names
            for m in modules
        ), path


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
  tasks/     what is it asked?
    finetune/
      glue.py
  train.py plan.py
             the programs
configs/
  ladder.py
```
"""
HOUSE = {
    "config/__init__.py": '"""Doc."""',
    "config/schema.py": "import os",
    "config/count.py": "from gptjax.config import schema\nfrom gptjax.config.schema import Model",
    "tasks/finetune/glue.py": "import gptjax.config.count",
    "train.py": "def f():\n    from gptjax.tasks.finetune import glue",
    "plan.py": "",
}


def built(tmp_path: Path, changes: dict[str, str]) -> list[str]:
    root = tmp_path / "gptjax"
    for path, text in (HOUSE | changes).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return faults(root, listing(PAGE))


def test_the_listing_is_read_in_order():
    assert listing(PAGE) == [
        "config/schema.py",
        "config/count.py",
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
        ({"tasks/extra.py": ""}, "tasks/extra.py is not in the listing"),
        (
            {"tasks/__init__.py": "from gptjax.config import count"},
            "tasks/__init__.py imports config/count.py: an __init__",
        ),
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
