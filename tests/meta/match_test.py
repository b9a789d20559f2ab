"""Every `case Name(field=...)` names a field that Name has: Python falls through such a case
silently where the field has another name, and type checkers do not look."""

import ast
import collections
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("gptjax", "configs", "launch") for path in (ROOT / folder).rglob("*.py")
)


def attributes(trees: list[ast.Module]) -> dict[str, set[str]]:
    """Class name -> its fields, methods and the attributes that its methods set."""
    known = collections.defaultdict(set)
    for tree in trees:
        for owner in ast.walk(tree):
            if isinstance(owner, ast.ClassDef):
                for node in ast.walk(owner):
                    if isinstance(node, ast.FunctionDef):
                        known[owner.name].add(node.name)
                    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                        known[owner.name].add(node.target.id)
                    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                        known[owner.name].add(node.attr)
    return known


def unknown_fields(trees: list[ast.Module]) -> list[str]:
    """`Name.field` of each class pattern whose class, defined in these files, lacks the field."""
    known = attributes(trees)
    patterns = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.MatchClass)]
    names = [(ast.unparse(pattern.cls).split(".")[-1], pattern) for pattern in patterns]
    return [
        f"{name}.{field}"
        for name, pattern in names
        if name in known
        for field in pattern.kwd_attrs
        if field not in known[name]
    ]


def test_class_patterns_name_fields_that_exist():
    assert FILES
    assert unknown_fields([ast.parse(path.read_text()) for path in FILES]) == []


def test_an_unknown_field_is_found():
    source = "class A:\n    x: int\nmatch a:\n    case m.A(x=1, y=2):\n        pass"
    assert unknown_fields([ast.parse(source)]) == ["A.y"]
