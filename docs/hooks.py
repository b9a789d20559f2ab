"""The parts of docs/reference/ that are made from the code when mkdocs builds the site.

`<!-- generated: NAME -->` on a page becomes the text of GENERATED[NAME]: what the programs'
argument parsers and the config's dataclasses hold. Nothing here needs jax's devices.
"""

import argparse
import ast
import contextlib
import dataclasses
import importlib
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any
from unittest import mock

from gptjax import __main__ as programs
from gptjax.config import (
    chat_recipe,
    curation,
    decontamination,
    evaluation,
    finetuning,
    parse,
    rlhf_recipe,
    safety,
    schema,
    sweep,
)

ROOT = Path(__file__).parents[1]
SUBCOMMANDS = {"gptjax.sweep": ("report", "send")}  # words that choose another parser
FOREIGN = {"gptjax.lm_eval"}  # whose flags are another project's


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs' event: the page's text with its generated parts."""
    return re.sub(
        r"^<!-- generated: (\w+) -->$", lambda match: GENERATED[match[1]](), markdown, flags=re.M
    )


FLAG = re.compile(r"(?<=[\s>(\[|])--[a-z]\w*(?:-\w+)*")


def on_page_content(html: str, **_: Any) -> str:
    """mkdocs' event: the page's HTML, in which no line breaks within a flag's name."""
    return FLAG.sub(r'<span class="flag">\g<0></span>', html)


# --- the command line -------------------------------------------------------------------------


class _Parsed(Exception):
    pass


def parser_of(module: str, *words: str) -> argparse.ArgumentParser:
    """The parser that a program makes for arguments that begin with `words`.

    The program's main is called, and left where it would parse."""
    made: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        made.append(self)
        raise _Parsed

    main = importlib.import_module(module).main
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        contextlib.suppress(_Parsed),
    ):
        main([*words, "--help"])
    return made[0]


def command_line() -> str:
    """A section a program: what it does, its usage, its flags with their defaults, its examples."""
    sections = []
    for module in programs.list_programs().values():
        name = module.removeprefix("gptjax.")
        sections.append(f"## {name}\n")
        if module in FOREIGN:
            sections.append(_description(ast.get_docstring(ast.parse(source(module))) or ""))
            continue
        sections.append(_parser_section(parser_of(module)))
        for word in SUBCOMMANDS.get(module, ()):
            sections.append(f"### {name} {word}\n\n{_parser_section(parser_of(module, word))}")
    return "\n".join(sections)


def source(module: str) -> str:
    """The text of a module, which is not imported."""
    return (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()


def _parser_section(parser: argparse.ArgumentParser) -> str:
    """A parser as --help shows it: description, usage, a table a group of flags, examples."""
    formatter = parser.formatter_class(parser.prog, width=88)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    parts = [_description(parser.description or ""), f"```text\n{formatter.format_help()}```\n"]
    for title, actions in _groups(parser).items():
        if title:
            parts.append(f"{_cell(title[:1].upper() + title[1:])}\n")
        rows = [(_flag(parser, action), _cell(_help(parser, action))) for action in actions]
        parts.append(_table(("argument", "meaning"), rows))
    for title, _, example in [(parser.epilog or "").partition(":\n")]:
        if example:
            commands = "\n".join(
                re.sub(" {2,}#", "  #", line.strip()) for line in example.splitlines()
            )
            parts.append(f"{title.strip().capitalize()}:\n\n```bash\n{commands}\n```\n")
    return "\n".join(parts)


def _groups(parser: argparse.ArgumentParser) -> dict[str, list[argparse.Action]]:
    """The arguments by what stands over them in --help, "" for those of no group of their own."""
    groups: dict[str, list[argparse.Action]] = {}
    for group in parser._action_groups:
        own = group.title not in ("positional arguments", "options")
        title = f"{group.title}: {group.description or ''}" if own else ""
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        groups.setdefault(title, []).extend(a for a in actions if "--help" not in a.option_strings)
    return {title: actions for title, actions in groups.items() if actions}


def _description(text: str) -> str:
    """Paragraphs, and what is indented or a command as it stands."""
    blocks = re.split(r"\n\n+", text.strip())
    return "\n".join(
        f"```text\n{textwrap.dedent(block)}\n```\n"
        if block.startswith((" ", "python"))
        else f"{_cell(block)}\n"
        for block in blocks
    )


def _flag(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        choices = "|".join(map(str, action.choices or ()))
        default = parser._get_formatter()._get_default_metavar_for_optional(action)
        value = str(action.metavar or choices or default)
    names = action.option_strings or [value]
    shown = ", ".join(f"{name} {value}" if action.option_strings else name for name in names)
    return f"`{shown.strip()}`"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The flag's help, with what it leaves out: its choices and its default."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    if action.choices and action.metavar:
        text += f" One of {', '.join(map(str, action.choices))}."
    shown = action.default not in (None, False, [], (), argparse.SUPPRESS) and "default" not in text
    return text + (f" (default: {action.default})" if shown else "")


def _cell(text: str) -> str:
    """Plain text as markdown, on one line where it is a cell's."""
    return re.sub(r"([\\`*_|>\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# --- the config -------------------------------------------------------------------------------


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the string that stands below it in the class, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        match statement, following:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = " ".join(text.split())
    return docs


def records() -> dict[type, str]:
    """Every record of a recipe -> the path of its fields: "train.optimizer.", "" of Config.

    A record that is an alternative has the path of the field that it is a value of."""
    found: dict[type, str] = {}
    roots = (
        (schema.Config, ""),
        (finetuning.Finetuning, ""),
        (chat_recipe.ChatRecipe, ""),
        (rlhf_recipe.RlhfRecipe, ""),
        (evaluation.Protocol, "TASK."),
        (curation.Curation, ""),
        (safety.Policy, ""),
        (decontamination.Filter, ""),
        (decontamination.OverlapRule, ""),
        (sweep.Sweep, ""),
    )
    for root, path in roots:
        _add_records(root, path, found)
    return found


def _add_records(cls: type, path: str, found: dict[type, str]) -> None:
    if cls in found:
        return
    found[cls] = path
    for name, hint in typing.get_type_hints(cls).items():
        number = "N." if typing.get_origin(hint) is tuple else ""
        for member in _record_members(hint):
            _add_records(member, f"{path}{name}.{number}", found)


def _record_members(hint: Any) -> list[type]:
    """The records in a type: its own, of a union's members, of a tuple's elements."""
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    return [cls for member in typing.get_args(hint) for cls in _record_members(member)]


def config_fields() -> str:
    """A section a record: what it is, and a table of its fields."""
    return "\n".join(_record_section(cls, path) for cls, path in records().items())


def _record_section(cls: type, path: str) -> str:
    docs = field_docs(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    title = f"{cls.__name__}: `{path.removesuffix('.')}`" if path else cls.__name__
    level = "##" if path.count(".") < 2 else "###"
    text = f"{level} {title} {{#{cls.__name__.lower()}}}\n\n{_prose(inspect.getdoc(cls) or '')}\n"
    rows = [
        (f"`{path}{f.name}`", _type(hints[f.name]), _default(f), _prose(docs[f.name]))
        for f in dataclasses.fields(cls)
    ]
    return text + ("\n" + _table(("field", "type", "default", "meaning"), rows) if rows else "")


def _prose(text: str) -> str:
    """A docstring as markdown: its `code` stays."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if i % 2 else _cell_part(part) for i, part in enumerate(parts))


def _cell_part(text: str) -> str:
    return re.sub(r"([\\*_|>\[\]])", r"\\\1", text).replace("<", "&lt;")


def _default(field: dataclasses.Field) -> str:
    if field.default is dataclasses.MISSING:
        return "required"
    text = f'"{field.default}"' if isinstance(field.default, str) else repr(field.default)
    text = text.replace("\n", "\\n")
    if dataclasses.is_dataclass(field.default):
        cls = type(field.default)
        text = text if field.default != cls() else f"{cls.__name__}()"
    return f"`{text}`"


def _type(hint: Any) -> str:
    """A type in words: bounds of numbers, literals, and links to records."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kind, bounds = members
        return parse.describe_range(kind, bounds.low, bounds.high, bounds.above)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type, members))
    if origin is typing.Literal:
        return " or ".join(f"`{member}`" for member in members)
    if origin is tuple:
        return f"tuple of: {_type(members[0])}"
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    words = {int: "a whole number", float: "a number", str: "text", bool: "`True` or `False`"}
    return words.get(hint, "`None`")


# --- docstrings -------------------------------------------------------------------------------

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.M)  # up to the next empty line
# What markdown would take for bold or for links: a/__init__.py, params["token_VD"]["x"]
CODE = re.compile(r"(?<![\w`/.])(?:[\w/.]*__\w+__[\w.]*|\w+(?:\[\"\w+\"\])+)(?!`)")


def fence_examples(docstring: str) -> str:
    """The docstring with each doctest in a fenced block, and names and look-ups as code."""
    text, parts, end = re.sub(r" +# doctest: .*", "", docstring), [], 0
    for match in EXAMPLE.finditer(text):
        parts.append(CODE.sub(r"`\g<0>`", text[end : match.start()]))
        parts.append(f"{match[1]}```pycon\n{match[0]}\n{match[1]}```")
        end = match.end()
    return "".join([*parts, CODE.sub(r"`\g<0>`", text[end:])])


GENERATED = {"command_line": command_line, "config_fields": config_fields}
