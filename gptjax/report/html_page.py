"""HTML pages of a single file: tables, and pictures inside."""

import base64
import html
from collections.abc import Iterable, Sequence

from gptjax.data import unicode

CSS = """body{font:16px/1.5 system-ui,sans-serif;color:#1F2937;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-size:14px}
td,th{padding:.35rem .7rem;border-bottom:1px solid #E5E7EB;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;font-family:ui-monospace,monospace}img{max-width:100%;margin:1rem 0}p{color:#4B5563}
blockquote{margin:.5rem 0;padding-left:1rem;border-left:3px solid #E5E7EB;white-space:pre-wrap;overflow-wrap:anywhere}"""  # noqa: E501


def escape(text: str) -> str:
    """Makes any text safe for HTML."""
    return html.escape(unicode.replace_surrogates(text))


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Returns a table that scrolls where the window is too narrow."""
    lines = "\n".join([_row(head, "th"), *(_row(cells, "td") for cells in body)])
    return f'<div style="overflow-x:auto"><table>{lines}</table></div>'


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def image(png: bytes, name: str) -> str:
    """Returns a picture, which the page then contains."""
    return (
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )


def page(title: str, blocks: Iterable[str]) -> str:
    """Returns the page. title: plain text. blocks: HTML."""
    start = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    return "\n".join([f"{start}<style>{CSS}</style>", *blocks, "</html>", ""])
