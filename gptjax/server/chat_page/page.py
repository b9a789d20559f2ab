"""The HTML of the chat page, and the headers that confine it: nothing else is loaded, and only the
script and the style that are in it have an effect."""

import base64
import hashlib
import re
from pathlib import Path

FILE = Path(__file__).parent / "chat.html"


def load() -> tuple[bytes, dict[str, str]]:
    """Returns the page and its headers."""
    content = FILE.read_bytes()
    return content, {
        "Content-Security-Policy": _policy(content.decode()),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def _policy(html: str) -> str:
    scripts, styles = (_hashes(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    """The sources of a policy that allow the inline elements of that tag (CSP 3, section 2.3.1)."""
    texts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()) for text in texts)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
