"""README.md and docs/: commands are parsed, links lead somewhere, pages are listed."""

import re

import pytest
import yaml

from docs import count_lines
from tests import doc_commands
from tests.doc_commands import ROOT, Block, blocks, check, inline_commands, pages

PATH = re.compile(r"`((?:gptjax|configs|launch|bench|tests|docs|examples)/[\w./-]*)`")
LINK = re.compile(r"(?<!`)\]\(([^)\s#]*)(?:#[\w-]*)?\)")


def problems(page, content: str) -> list[str]:
    """What is wrong with the commands and programs of a page, a line each."""
    found = []
    for block in blocks(page, content):
        if block.is_python:
            try:
                compile(block.text, str(block), "exec")
            except SyntaxError as error:
                found.append(f"{block}: {error}")
        for words in block.commands:
            error = check(words, content)
            if block.kind == "refused":
                is_shown = error and f"error: {error.partition(': ')[2]}" in content
                error = "" if is_shown else f"is not refused as shown, but {error or 'taken'}"
            if error:
                found.append(f"{block}: {' '.join(words)}: {error}")
    for words in inline_commands(page, content):
        if error := check(words):
            found.append(f"{page.name}: {' '.join(words)}: {error}")
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_programs_can_be_parsed(page):
    assert problems(page, page.read_text()) == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_that_is_run_serves_until_it_is_ended(page):
    for one in blocks(page):
        called = [doc_commands.program(words) for words in one.commands if one.kind != "parsed"]
        assert not any(c and c[0] == "gptjax.serve" and "--help" not in c[1] for c in called), one


def test_a_page_with_wrong_commands_is_noticed(capsys):
    page, refused = (
        ROOT / "page.md",
        "<!-- refused -->\n```console\n$ python -m gptjax.plan --x=1\n",
    )
    text = f"{refused}error: unrecognized arguments: --x=1\n```\n"
    assert len(problems(page, text)) == 1, "another message than the one shown"
    text = "<!-- not run: so -->\n```bash\npython -m gptjax.plan --x=1\n```\n`make it`, `gptjax x`"
    assert len(problems(page, text)) == 3
    assert len(problems(page, "```python\nimport gptjax\nprint(\n```\n")) == 1


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page):
    content = doc_commands.FENCE.sub("", page.read_text())
    links = [link for link in LINK.findall(content) if link and "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []
    assert [path for path in PATH.findall(content) if not (ROOT / path).exists()] == []


def test_the_readme_is_short_and_its_first_commands_set_up_run_and_test():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 150
    assert blocks(readme)[0].commands == [["make", "train"], ["make", "test"]]


def test_the_walk_counts_the_files_as_they_are():
    page = count_lines.PAGE.read_text()
    assert f"in {len(count_lines.files(page))} files" in page
    assert page == count_lines.rewrite(page), "python -m docs.count_lines writes the counts anew"


def test_lines_of_code_and_of_text():
    source = '"""A.\n\nB."""\nx = """text"""  # c\n\n# d\ndef f():\n    """E."""\n    return x\n'
    assert count_lines.count(source) == (3, 4)
    page = "9 lines of code and 9 of text\n| `docs/count_lines.py` | `x` | 1 | 2,345 |\n"
    code, text = count_lines.count((ROOT / "docs/count_lines.py").read_text())
    assert count_lines.rewrite(page) == (
        f"{code} lines of code and {text} of text\n"
        f"| `docs/count_lines.py` | `x` | {code} | {text} |\n"
    )


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert sorted(listed) == [str(page.relative_to(ROOT / "docs")) for page in pages()[1:]]


def test_the_site_loads_nothing_from_elsewhere():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & set(config)


def block(text: str) -> Block:
    return blocks(ROOT / "page.md", f"```bash\n{text}\n```\n")[0]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("python -m gptjax.train --config=nano --flag", "exit status 2"),
        ("python -m gptjax.train --config=nanoo", "no config is called"),
        ("python -m gptjax.train --config=nano --set model.n_layer=1", "n_layer"),
        ("python -m gptjax.finetune --config=gpt1_sst --init=x", "no fine-tuning recipe"),
        ("python -m gptjax.evaluate --model=x --tasks=lambda", "no task is called"),
        ("python -m gptjax.evaluate --model=x --tasks=lambada --set lambada.metod=Total", "metod"),
        ("python -m gptjax.sweep --sweep=windows", "no sweep is called"),
        ("python -m gptjax.sweep report runs/x --flag", "exit status 2"),
        ("python -m gptjax.training --config=nano", "no such program"),
        (
            "python -m gptjax.launch.slurm --nodes=2 -- --config=nanoo --run_dir=/shared/x",
            "no config is called",
        ),
        ("python -m bench.step --flag", "exit status 2"),
        ("X=1 make tests", "no target"),
        (".venv/bin/pip install -r requirements-x.txt", "no such file"),
    ],
)
def test_a_wrong_command_is_noticed(text, problem, capsys):
    (words,) = block(text).commands
    assert problem in check(words)


def test_blocks_and_their_markers():
    page = ROOT / "page.md"
    text = "<!-- not run: needs a TPU -->\n```bash\na --b | c \\\n  d # e\nf <<EOF\nx\nEOF\n```\n\n"
    text += "```console\n$ g\nprinted\n```\n"
    first, second = blocks(page, text)
    assert (first.kind, first.argument, first.commands) == (
        "parsed",
        "needs a TPU",
        [["a", "--b"], ["c", "d"], ["f"]],
    )
    assert (second.kind, second.commands) == ("run", [["g"]])
    for marker in ("<!-- not run -->", "<!-- fast -->"):
        with pytest.raises(ValueError, match="is not one of the markers"):
            blocks(page, f"{marker}\n```bash\na\n```\n")
    with pytest.raises(ValueError, match="without a language"):
        blocks(page, "```\npython -m gptjax.plan\n```\n")
    assert list(inline_commands(page, "run `python -m gptjax.plan --x=1` or `make`")) == [
        ["python", "-m", "gptjax.plan", "--x=1"]
    ]
