"""`override(config, "model.n_layers=2")`: edits of a tree of frozen records, read by declared type;
and its flat, JSON form.

In `path=value`, the value is in the grammar of values.py. Paths reach into a chosen alternative
(`train.schedule.peak_lr=3e-4`) and, by number, into a tuple (`model.attention.0.window=128`). Every
ValueError is one line: the path, what was given, what is allowed.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import json
import re
import typing
from typing import Any, TypeVar

from gptjax.config import legacy, parse, synonyms, values
from gptjax.config.schema import FAMILY_FIELDS, LATER_LEAVES, Config, Model

Root = TypeVar("Root")


@dataclasses.dataclass
class _Edit:
    """Edit at one path: an optional new value, as text, and edits of its children."""

    text: str | None = None
    children: dict[str, "_Edit"] = dataclasses.field(default_factory=dict)


def override(config: Root, *assignments: str) -> Root:
    """Returns the record with every `path=value` applied; the last one wins. All are applied
    together and the result is validated once.
    """
    root = _Edit()
    for assignment in assignments:
        is_text = isinstance(assignment, str)
        path, equals, text = assignment.partition("=") if is_text else ("", "", "")
        if not equals or not path.strip():
            raise ValueError(
                f"{parse.quote(assignment)} is not of the form path=value, for example "
                "train.steps=100"
            )
        edit = root
        for key in path.strip().split("."):
            edit = edit.children.setdefault(key, _Edit())
        edit.text, edit.children = text.strip(), {}
    return _apply_edit(config, type(config), root, "")


def flatten(config: Config) -> dict[str, Any]:
    """Returns every leaf path with its number, string or None; alternatives and tuples as text of
    the override grammar. JSON represents it exactly.

    Fields in which model families differ are left out where they are GPT's, and later fields where
    they have their defaults, so that the stored config of a GPT does not change when one is added.
    """
    return {
        path: leaf
        for path, value in _leaves(config, "")
        if (leaf := _json_value(value)) != _gpt_defaults().get(path, _NO_DEFAULT)
    }


_NO_DEFAULT = object()


def _json_value(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else repr(value)


@functools.cache
def _gpt_defaults() -> dict[str, Any]:
    """The leaves that `flatten` leaves out, with their values."""
    defaults = {field.name: field.default for field in dataclasses.fields(Model)}
    return {
        f"model.{path}": _json_value(functools.reduce(getattr, rest, defaults[name]))
        for path, _ in _leaf_paths(Model, "")
        for name, *rest in [path.split(".")]
        if name in FAMILY_FIELDS
    } | LATER_LEAVES


def unflatten(leaves: dict[str, Any]) -> Config:
    """Inverse of `flatten`, also for leaves written by earlier versions. Raises ValueError for
    missing or unknown paths.
    """
    leaves = _gpt_defaults() | legacy.translate(leaves)
    expected = dict(_leaf_paths(Config, ""))
    unknown = [path for path in leaves if path not in expected]
    missing = [path for path in expected if path not in leaves]
    if unknown or missing:
        problems = [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        problems += [f"missing: {', '.join(missing)}"] * bool(missing)
        raise ValueError(
            f"this config was written by another version of gptjax ({'; '.join(problems)}); use "
            "that version, or edit the file"
        )
    return _unflatten_record(Config, leaves, "")


def diff(a: Config, b: Config) -> list[str]:
    """Returns a line "path: value of a -> value of b" for each field that differs, with values in
    the override grammar.
    """
    return [f"{path}: {x!r} -> {y!r}" for path, x, y in _iter_diff(a, b, "")]


def edits(a: Config, b: Config) -> tuple[str, ...]:
    """Returns `path=value` for each field that differs: what `override` makes b of a with."""
    return tuple(
        f"{path}={y if isinstance(y, str) else repr(y)}" for path, _, y in _iter_diff(a, b, "")
    )


def digest(config: Config) -> str:
    """Returns 16 hexadecimal digits that are equal only for equal configs."""
    return hashlib.sha256(json.dumps(flatten(config), sort_keys=True).encode()).hexdigest()[:16]


# --- the tree of records --------------------------------------------------------------------------


def _leaf_paths(record: type, prefix: str, alternatives: bool = False):
    """Yields every leaf path below a record, with its type. Fields of one record type are descended
    into; unions are leaves, unless `alternatives` is set.
    """
    for name, hint in values.type_hints(record).items():
        records = [
            option for option in values.union_members(hint) if dataclasses.is_dataclass(option)
        ]
        if records and (alternatives or dataclasses.is_dataclass(hint)):
            for option in records:
                yield from _leaf_paths(typing.cast(type, option), f"{prefix}{name}.", alternatives)
        else:
            yield prefix + name, hint


def _leaves(config: Config, prefix: str):
    """Yields (path, value) of every leaf of a config."""
    for path, _ in _leaf_paths(type(config), prefix):
        yield path, functools.reduce(getattr, path.split("."), config)


def _iter_diff(a: Any, b: Any, path: str):
    """Yields (path, value of a, value of b) of each field below `path` that differs."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        for name in values.type_hints(type(a)):
            yield from _iter_diff(
                getattr(a, name), getattr(b, name), f"{path}.{name}" if path else name
            )
    elif a != b:
        yield path, a, b


def _unflatten_record(record: type, leaves: dict[str, Any], prefix: str):
    """The record whose leaves start with `prefix`."""
    fields = {}
    for name, hint in values.type_hints(record).items():
        path = prefix + name
        if dataclasses.is_dataclass(hint):
            fields[name] = _unflatten_record(typing.cast(type, hint), leaves, path + ".")
            continue
        is_text = any(
            o is str or typing.get_origin(o) is typing.Literal for o in values.union_members(hint)
        )
        leaf = leaves[path]
        if isinstance(leaf, str) and not is_text:
            tree = values.parse_expression(leaf, hint, path)
        else:
            tree = ast.Constant(leaf)
        fields[name] = values.convert(tree, hint, path)
    return values.construct(record, fields, prefix[:-1])


def _apply_edit(value: Any, hint: Any, edit: _Edit, path: str) -> Any:
    """Returns `value`, of declared type `hint`, with `edit` applied bottom-up, so that each record
    is validated once.
    """
    if edit.text is not None:
        value = values.parse_text(edit.text, hint, path)
    if not edit.children:
        return value
    dot = f"{path}." if path else ""
    if isinstance(value, tuple):
        elements = list(value)
        for key, part in edit.children.items():
            if not (key.isascii() and key.isdecimal() and len(key) < 10) or int(key) >= len(
                elements
            ):
                raise ValueError(
                    f"{dot}{parse.one_line(key, 60)}: {path} has {len(elements)} elements, "
                    "numbered from 0; or give it whole, "
                    f"{path}=(..., ...)"
                )
            elements[int(key)] = _apply_edit(
                elements[int(key)], typing.get_args(hint)[0], part, dot + key
            )
        return tuple(elements)
    if not dataclasses.is_dataclass(value):
        name = parse.one_line(next(iter(edit.children)), 60)
        raise ValueError(
            f"{dot}{name}: {path} is {parse.quote(value)}, which has no fields; "
            f"{values.describe_type(hint)}"
        )
    hints = values.type_hints(type(value))
    for key in edit.children:
        if key not in hints:
            hint_text = _suggest(key, list(hints), path, type(value).__name__)
            raise ValueError(
                f"{dot}{parse.one_line(key, 60)}: {type(value).__name__} has no field "
                f"{parse.quote(key)}; {hint_text}"
            )
    return values.construct(
        type(value),
        _fields(value)
        | {
            k: _apply_edit(getattr(value, k), hints[k], e, dot + k)
            for k, e in edit.children.items()
        },
        path,
    )


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


# --- hints ----------------------------------------------------------------------------------------


def synonym(path: str, word: str, record: str = "") -> str:
    """What a word that is no field means, in earlier versions or other projects; "" if unknown."""
    target = legacy.PATHS.get(path) or legacy.FIELDS.get(record, {}).get(word)
    if target is not None and "." not in target:
        target = f"{path.rpartition('.')[0]}.{target}"
    target = target or synonyms.FIELDS.get(path) or synonyms.FIELDS.get(word, "")
    return f"did you mean {target}?" if re.fullmatch(r"[\w.]+", target) else target


def _suggest(name: str, known: list[str], path: str, record: str) -> str:
    """A hint for a field of `path`, a record that lacks `name`: another project's word for it, the
    most similar name there, or similar ones of the whole tree.
    """
    if elsewhere := synonym(f"{path}.{name[:60]}", name[:60], record):
        return elsewhere
    if not difflib.get_close_matches(name[:60], known, n=1):
        leaves = [p for p, _ in _leaf_paths(Config, "", alternatives=True)]
        if f"{path}.{name}" in leaves:
            return f"another value of {path} has it: set {path} as a whole"
        ends = [p.split(".")[-1] for p in leaves]
        matches = difflib.get_close_matches(name[:60], ends, n=1, cutoff=0.75)
        if paths := list(dict.fromkeys(p for p in leaves if p.split(".")[-1] in matches)):
            return f"did you mean {' or '.join(paths)}?"
    return values.suggest(name, known)
