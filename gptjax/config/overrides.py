"""`override(config, "model.n_layers=2")`: edits of a tree of frozen records, read by declared type;
and its flat, JSON form.

The grammar of `path=value`. Numbers: 3.2e6 and 500_000 are integers where one is wanted. Strings:
bare or quoted. Alternatives: a call, `Banded(window=256)`, `Separate(source=Text(path='x.txt'))`,
or a bare name, `Dense`. Tuples: `(Banded(window=256), Dense)`; a single element stands for a tuple
of one. `None` where it is allowed. Paths reach into a chosen alternative
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
import sys
import types
import typing
import warnings
from typing import Any, TypeVar

from gptjax.config import legacy, parse, synonyms
from gptjax.config.schema import Config

Root = TypeVar("Root")
MAX_DEPTH = 50  # of the syntax tree of a value
MAX_QUOTED = 200  # characters of a value in an error


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
        path, equals, text = assignment.partition("=")
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
    """
    return {
        path: value if value is None or isinstance(value, int | float | str) else repr(value)
        for path, value in _leaves(config, "")
    }


def unflatten(leaves: dict[str, Any]) -> Config:
    """Inverse of `flatten`, also for leaves written by earlier versions. Raises ValueError for
    missing or unknown paths.
    """
    leaves = legacy.translate(leaves)
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
    return list(_iter_diff(a, b, ""))


def digest(config: Config) -> str:
    """Returns 16 hexadecimal digits that are equal only for equal configs."""
    return hashlib.sha256(json.dumps(flatten(config), sort_keys=True).encode()).hexdigest()[:16]


# --- the tree of records --------------------------------------------------------------------------


@functools.cache
def _type_hints(record: type) -> dict[str, Any]:
    return typing.get_type_hints(record)


def _union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is its own only member."""
    return (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )


def _leaf_paths(record: type, prefix: str, alternatives: bool = False):
    """Yields every leaf path below a record, with its type. Fields of one record type are descended
    into; unions are leaves, unless `alternatives` is set.
    """
    for name, hint in _type_hints(record).items():
        records = [option for option in _union_members(hint) if dataclasses.is_dataclass(option)]
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
    """Yields the lines of `diff` below `path`."""
    if dataclasses.is_dataclass(a) and type(a) is type(b):
        for name in _type_hints(type(a)):
            yield from _iter_diff(
                getattr(a, name), getattr(b, name), f"{path}.{name}" if path else name
            )
    elif a != b:
        yield f"{path}: {a!r} -> {b!r}"


def _unflatten_record(record: type, leaves: dict[str, Any], prefix: str):
    """The record whose leaves start with `prefix`."""
    values = {}
    for name, hint in _type_hints(record).items():
        path = prefix + name
        if dataclasses.is_dataclass(hint):
            values[name] = _unflatten_record(typing.cast(type, hint), leaves, path + ".")
        elif isinstance(leaves[path], str) and not any(
            o is str or typing.get_origin(o) is typing.Literal for o in _union_members(hint)
        ):
            values[name] = _convert(_parse_expression(leaves[path], hint, path), hint, path)
        else:
            values[name] = _convert(ast.Constant(leaves[path]), hint, path)
    return _construct(record, values, prefix[:-1])


def _apply_edit(value: Any, hint: Any, edit: _Edit, path: str) -> Any:
    """Returns `value`, of declared type `hint`, with `edit` applied bottom-up, so that each record
    is validated once.
    """
    if edit.text is not None:
        value = _parse_text(edit.text, hint, path)
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
            f"{_describe_type(hint)}"
        )
    hints = _type_hints(type(value))
    for key in edit.children:
        if key not in hints:
            hint_text = _suggest(key, list(hints), True, path, type(value).__name__)
            raise ValueError(
                f"{dot}{parse.one_line(key, 60)}: {type(value).__name__} has no field "
                f"{parse.quote(key)}; {hint_text}"
            )
    return _construct(
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


def _construct(record: type, values: dict[str, Any], path: str) -> Any:
    """Constructs the record, with `path` in the error if it is invalid."""
    try:
        return record(**values)
    except ValueError as error:
        raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None


# --- values ---------------------------------------------------------------------------------------


def _parse_text(text: str, hint: Any, path: str) -> Any:
    """Parses the text of a value. A top-level string may be unquoted; inside a call, only if it is
    one word.
    """
    options = _union_members(hint)
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if str in options and not is_quoted and not (text == "None" and type(None) in options):
        return text
    if not is_quoted and any(typing.get_origin(o) is typing.Literal for o in options):
        return _convert(ast.Name(text), hint, path)
    return _convert(_parse_expression(text, hint, path), hint, path)


def _parse_expression(text: str, hint: Any, path: str) -> ast.expr:
    """Parses text as an expression at most MAX_DEPTH deep, so that walking it cannot exhaust the
    stack.
    """
    # Bytes of a path that are not UTF-8 become escapes, for ast.
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own, about escapes in strings
            tree = ast.parse(text, mode="eval").body
        level = [tree]
        for _ in range(MAX_DEPTH):
            level = [below for node in level for below in ast.iter_child_nodes(node)]
        if not level:
            return tree
    # The last two: nested more deeply than Python parses.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    quote = " (inside a call, quote strings: Text(path='a/b.txt'))" if "(" in text else ""
    raise ValueError(f"{path}={parse.one_line(text, MAX_QUOTED)}: {_describe_type(hint)}{quote}")


def _convert(tree: ast.expr, hint: Any, path: str) -> Any:
    """Converts a parsed expression or constant to the declared type `hint`."""
    options = _union_members(hint)
    if isinstance(tree, ast.Constant) and tree.value is None and type(None) in options:
        return None
    for option in options:
        if typing.get_origin(option) is tuple:
            parts = tree.elts if isinstance(tree, ast.Tuple | ast.List) else [tree]
            return tuple(_convert(part, typing.get_args(option)[0], path) for part in parts)
    records = {
        option.__name__: option
        for option in options
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    }
    if records:
        return _convert_record(tree, records, hint, path)
    value = tree.id if isinstance(tree, ast.Name) else _literal(tree)
    for option in options:
        fits, converted = _convert_scalar(value, option)
        if fits:
            return converted
    raise ValueError(f"{path}={_unparse(tree)}: {_describe_type(hint)}")


def _unparse(tree: ast.expr) -> str:
    """An expression as text, for an error message."""
    try:
        return parse.one_line(ast.unparse(tree), MAX_QUOTED)
    # An integer with too many digits or, from a config.json, deeply nested lists.
    except (ValueError, RecursionError):
        return "a value of too many digits or parts"


def _literal(tree: ast.expr) -> Any:
    """The number or string of an expression; any other expression is returned as is, and matches no
    type.
    """
    try:
        return ast.literal_eval(tree)
    except (ValueError, TypeError):
        return tree


def _convert_scalar(value: Any, option: Any) -> tuple[bool, Any]:
    """Returns (whether `value` fits the type, the converted value). A bool is not an int; an int is
    a float; a whole float is an int.
    """
    kind = type(value)
    if typing.get_origin(option) is typing.Literal:
        return kind is str and value in typing.get_args(option), value
    if option is bool:
        return (
            (True, value in (True, "true"))
            if kind is bool or value in ("true", "false")
            else (False, None)
        )
    if option is int and kind is float and value.is_integer():
        return True, int(value)
    if option is float and kind in (int, float) and abs(value) <= sys.float_info.max:
        return True, float(value)
    return option is kind and kind in (int, str), value


def _convert_record(tree: ast.expr, records: dict[str, type], hint: Any, path: str) -> Any:
    """Converts an expression `Name(field=value)`, `Name()` or `Name` to one of several record
    types.
    """
    call = tree if isinstance(tree, ast.Call) else ast.Call(func=tree, args=[], keywords=[])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"{path}={_unparse(tree)}: {_describe_type(hint)}")
    name = call.func.id
    if name not in records:
        raise ValueError(
            f"{path}={_unparse(tree)}: {_suggest(name, list(records), anywhere=False)}; "
            f"{_describe_type(hint)}"
        )
    record, hints = records[name], _type_hints(records[name])
    if call.args or any(k.arg is None for k in call.keywords):
        raise ValueError(f"{path}={_unparse(tree)}: name each field: {_signature(record)}")
    arguments = {str(k.arg): k.value for k in call.keywords}
    for key in arguments:
        if key not in hints:
            raise ValueError(
                f"{path}={_unparse(tree)}: {name} has no field {key!r}; "
                f"{_suggest(key, list(hints), anywhere=False)}"
            )
    missing = [
        f.name
        for f in dataclasses.fields(record)
        if f.default is dataclasses.MISSING and f.name not in arguments
    ]
    if missing:
        raise ValueError(
            f"{path}={_unparse(tree)}: {name} needs {', '.join(missing)}: {_signature(record)}"
        )
    return _construct(
        record, {k: _convert(v, hints[k], f"{path}.{k}") for k, v in arguments.items()}, path
    )


# --- hints ----------------------------------------------------------------------------------------


def synonym(path: str, word: str, record: str = "") -> str:
    """What a word that is no field means, in earlier versions or other projects; "" if unknown."""
    target = legacy.PATHS.get(path) or legacy.FIELDS.get(record, {}).get(word)
    if target is not None and "." not in target:
        target = f"{path.rpartition('.')[0]}.{target}"
    target = target or synonyms.FIELDS.get(path) or synonyms.FIELDS.get(word, "")
    return f"did you mean {target}?" if re.fullmatch(r"[\w.]+", target) else target


def _suggest(name: str, known: list[str], anywhere: bool, path: str = "", record: str = "") -> str:
    """A hint: the most similar known name or else, with `anywhere`, the synonym of another project
    or similar paths of the whole tree. path, record: of the record that lacks `name`.
    """
    name = name[:60]
    if anywhere and (elsewhere := synonym(f"{path}.{name}", name, record)):
        return elsewhere
    matches = difflib.get_close_matches(name, known, n=1)
    if matches:
        return f"did you mean {matches[0]}?"
    leaves = [p for p, _ in _leaf_paths(Config, "", alternatives=True)] if anywhere else []
    matches = difflib.get_close_matches(name, {p.split(".")[-1] for p in leaves}, n=1, cutoff=0.75)
    other_paths = list(dict.fromkeys(p for p in leaves if p.split(".")[-1] in matches))
    return (
        f"did you mean {' or '.join(other_paths)}?"
        if other_paths
        else f"there are {', '.join(known) or 'none'}"
    )


def _signature(record: Any) -> str:
    return f"{record.__name__}({', '.join(f'{f.name}=...' for f in dataclasses.fields(record))})"


def _describe_type(hint: Any) -> str:
    """What may be given for the declared type `hint`, in words."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "None",
    }
    choices = []
    for option in _union_members(hint):
        if typing.get_origin(option) is typing.Literal:
            choices += [str(a) for a in typing.get_args(option)]
        elif typing.get_origin(option) is tuple:
            inner = _describe_type(typing.get_args(option)[0]).removeprefix("give ")
            choices += [f"a tuple, ({inner}, ...)"]
        else:
            choices += [words[option] if option in words else _signature(option)]
    return f"give {' or '.join(choices)}"
