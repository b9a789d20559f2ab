"""docs/reference/ is whole: every program with its flags, every record and field of the configs."""

import importlib
import re
from pathlib import Path

import pytest

from docs import hooks
from gptjax import __main__ as programs
from tests import doc_commands

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_markers_name_what_is_generated():
    pages = [path.read_text() for path in REFERENCE.glob("*.md")]
    markers = [name for page in pages for name in re.findall(r"<!-- generated: (\w+) -->", page)]
    assert sorted(markers) == sorted(hooks.GENERATED)
    page = hooks.on_page_markdown("# Title\n\n<!-- generated: config_fields -->\n", page=None)
    assert page.startswith("# Title\n\n## Config") and "<!--" not in page


def test_every_program_and_flag_is_shown():
    page = hooks.command_line()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert list(sections) == [
        name.removeprefix("gptjax.") for name in programs.list_programs().values()
    ]
    for module in sorted({*programs.list_programs().values()} - hooks.FOREIGN):
        section = sections[module.removeprefix("gptjax.")]
        for word in ("", *hooks.SUBCOMMANDS.get(module, ())):
            parser = hooks.parser_of(module, *filter(None, [word]))
            usage = " ".join(parser.format_usage().split())
            flags = re.findall(r"--[a-z_]+(?: [A-Z][\w.|:]*)?", usage)
            assert flags or word, module
            shown = section.replace("\\|", "|")
            assert [flag for flag in flags if f"`{flag}" not in shown] == [], module
        assert re.findall(r"^\| (`.*`) \| +(?:\(default|\|)", section, re.M) == []


def test_examples_of_the_programs_can_be_parsed():
    shown = doc_commands.blocks(REFERENCE / "cli.md", hooks.command_line())
    assert len(shown) >= len(programs.list_programs()) - len(hooks.FOREIGN)
    wrong = [
        f"{' '.join(command)}: {error}"
        for block in shown
        for command in block.commands
        if (error := doc_commands.check(command))
    ]
    assert wrong == []


def test_every_record_and_field_is_shown():
    """Of all modules of gptjax/config/ that declare records."""
    page, shown = hooks.config_fields(), hooks.records()
    declared = set()
    for path in (Path(__file__).parents[2] / "gptjax" / "config").glob("*.py"):
        names = re.findall(r"^@record\nclass (\w+):", path.read_text(), re.M)
        module = importlib.import_module(f"gptjax.config.{path.stem}")
        declared |= {getattr(module, name) for name in names}
    assert len(declared) > 40
    assert declared == set(shown)
    for cls, path in shown.items():
        missing = [f for f in cls.__dataclass_fields__ if f"| `{path}{f}` |" not in page]
        assert missing == [], cls


@pytest.mark.parametrize("cls", hooks.records(), ids=lambda cls: cls.__name__)
def test_every_field_has_a_sentence(cls):
    docs = hooks.field_docs(cls)
    assert [name for name in cls.__dataclass_fields__ if len(docs.get(name, "")) < 5] == []


def test_code_is_shown_as_it_is_typed():
    """Markdown keeps a backslash within backquotes."""
    page = hooks.command_line() + hooks.config_fields()
    code = [part for line in page.splitlines() for part in line.split("`")[1::2]]
    assert "--as jsonl|tsv" in code and not any("\\|" in part for part in code)
    assert "q - k &lt; window" in page and "\\<" not in page  # Markdown keeps this backslash, too


def test_no_line_of_a_page_breaks_within_a_flag():
    html = '<p>see <code>--dry_run</code>, --dry-run, a--b <h2 id="a--seeds"> <!-- x -->'
    kept = html.replace("--dry_run", '<span class="flag">--dry_run</span>')
    kept = kept.replace("--dry-run", '<span class="flag">--dry-run</span>')
    assert hooks.on_page_content(html, page=None) == kept


def test_examples_of_docstrings_are_fenced():
    text = "What it does.\n\n    >>> f(x.__doc__)  # doctest: +ELLIPSIS\n    2\n\n    Else."
    fenced = "What it does.\n\n    ```pycon\n    >>> f(x.__doc__)\n    2\n    ```\n\n    Else."
    assert hooks.fence_examples(text) == fenced
    assert hooks.fence_examples("a >>> b, a/__init__.py\n") == "a >>> b, `a/__init__.py`\n"
    assert hooks.fence_examples('so p["a"]["b"], `q["c"]`') == 'so `p["a"]["b"]`, `q["c"]`'


def test_what_the_api_page_shows_exists():
    page = (REFERENCE / "api.md").read_text()
    shown = re.findall(r"^::: (\S+)\n(?:    options:\n(?:      .*\n)*)?", page, re.M)
    members = re.findall(r"^::: (\S+)\n(?:    .*\n)*?      members: \[(.*)\]", page, re.M)
    assert len(shown) > 15 and len(members) > 5
    for module in shown:
        assert hooks.source(module)
    for module, names in members:
        missing = [
            name
            for name in names.split(", ")
            if not re.search(rf"^(def|class) {name}\b|^{name} = ", hooks.source(module), re.M)
        ]
        assert missing == [], module
