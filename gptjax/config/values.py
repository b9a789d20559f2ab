"""The text of a value -> a value of the type that a field declares.

Numbers: 3.2e6 and 500_000 are integers where one is wanted. Strings: bare or quoted.
Alternatives: a call, `Banded(window=256)`, `Separate(source=Text(path='x.txt'))`, or a bare name,
`Dense`. Tuples: `(Banded(window=256), Dense)`; a single element stands for a tuple of one. `None`
where it is allowed. Every ValueError is one line: the path, what was given, what is allowed.
"""

import ast
import dataclasses
import difflib
import functools
import re
import sys
import types
import typing
import warnings
from typing import Any

from gptjax.config import parse

MAX_DEPTH = 50  # of the syntax tree of a value
MAX_QUOTED = 200  # characters of a value in an error


@functools.cache
def type_hints(record: type) -> dict[str, Any]:
    """Field -> its declared type."""
    return typing.get_type_hints(record)


def union_members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; any other type is its own only member."""
    return (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )


def parse_text(text: str, hint: Any, path: str) -> Any:
    """Parses the text of a value. A top-level string may be unquoted; inside a call, only if it is
    one word.
    """
    options = union_members(hint)
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if str in options and not is_quoted and not (text == "None" and type(None) in options):
        return text
    # A word of a Literal may be no expression, such as one with a hyphen.
    if not is_quoted and all(typing.get_origin(o) is typing.Literal for o in options):
        return convert(ast.Name(text), hint, path)
    return convert(parse_expression(text, hint, path), hint, path)


def parse_expression(text: str, hint: Any, path: str) -> ast.expr:
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
    raise ValueError(f"{path}={parse.one_line(text, MAX_QUOTED)}: {describe_type(hint)}{quote}")


def convert(tree: ast.expr, hint: Any, path: str) -> Any:
    """Converts a parsed expression or constant to the declared type `hint`."""
    options = union_members(hint)
    if isinstance(tree, ast.Constant) and tree.value is None and type(None) in options:
        return None
    for option in options:
        if typing.get_origin(option) is tuple:
            parts = tree.elts if isinstance(tree, ast.Tuple | ast.List) else [tree]
            return tuple(convert(part, typing.get_args(option)[0], path) for part in parts)
    value = tree.id if isinstance(tree, ast.Name) else _literal(tree)
    for option in options:
        fits, converted = _convert_scalar(value, option)
        if fits:
            return converted
    records = {
        option.__name__: option
        for option in options
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    }
    if records:
        return _convert_record(tree, records, hint, path)
    raise ValueError(f"{path}={_unparse(tree)}: {describe_type(hint)}")


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
        raise ValueError(f"{path}={_unparse(tree)}: {describe_type(hint)}")
    name = call.func.id
    if name not in records:
        words = [w for o in union_members(hint) for w in typing.get_args(o) if isinstance(w, str)]
        known = [*words, *records]
        raise ValueError(f"{path}={_unparse(tree)}: {suggest(name, known)}; {describe_type(hint)}")
    record, hints = records[name], type_hints(records[name])
    if call.args or any(k.arg is None for k in call.keywords):
        raise ValueError(f"{path}={_unparse(tree)}: name each field: {_signature(record)}")
    arguments = {str(k.arg): k.value for k in call.keywords}
    for key in arguments:
        if key not in hints:
            raise ValueError(
                f"{path}={_unparse(tree)}: {name} has no field {key!r}; {suggest(key, list(hints))}"
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
    return construct(
        record, {k: convert(v, hints[k], f"{path}.{k}") for k, v in arguments.items()}, path
    )


def construct(record: type, values: dict[str, Any], path: str) -> Any:
    """Constructs the record, with `path` in the error if it is invalid."""
    try:
        return record(**values)
    except ValueError as error:
        raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from None


# --- hints ----------------------------------------------------------------------------------------


def suggest(name: str, known: list[str]) -> str:
    """A hint: the most similar of the known names, or all of them."""
    matches = difflib.get_close_matches(name[:60], known, n=1)
    return f"did you mean {matches[0]}?" if matches else f"there are {', '.join(known) or 'none'}"


def describe_type(hint: Any) -> str:
    """What may be given for the declared type `hint`, in words."""
    words = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "None",
    }
    choices = []
    for option in union_members(hint):
        if typing.get_origin(option) is typing.Literal:
            choices += [str(a) for a in typing.get_args(option)]
        elif typing.get_origin(option) is tuple:
            inner = describe_type(typing.get_args(option)[0]).removeprefix("give ")
            choices += [f"a tuple, ({inner}, ...)"]
        else:
            choices += [words[option] if option in words else _signature(option)]
    return f"give {' or '.join(choices)}"


def _signature(record: Any) -> str:
    return f"{record.__name__}({', '.join(f'{f.name}=...' for f in dataclasses.fields(record))})"
