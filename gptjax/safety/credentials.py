"""API keys of well-known forms, and private keys. Passwords, and keys without a prefix of their
own, cannot be seen."""

import re

from gptjax.safety.detector import Match, Pattern, beginnings
from gptjax.safety.personal_data import NO_WORD_BEFORE

API_KEYS = {  # prefix -> fewest characters after it
    "sk-": 20,  # OpenAI, Anthropic, DeepSeek, OpenRouter
    "sk_live_": 16, "sk_test_": 16, "rk_live_": 16, "rk_test_": 16,  # Stripe
    "ghp_": 30, "gho_": 30, "ghu_": 30, "ghs_": 30, "ghr_": 30, "github_pat_": 22,  # GitHub
    "glpat-": 20,  # GitLab
    "AKIA": 16, "ASIA": 16,  # AWS's ids; its secret keys have no prefix
    "AIza": 35,  # Google
    "xoxb-": 10, "xoxp-": 10, "xoxa-": 10, "xoxr-": 10, "xoxs-": 10, "xapp-": 10,  # Slack
    "hf_": 30,  # Hugging Face
    "npm_": 36,
    "SG.": 30,  # SendGrid
    "eyJ": 40,  # JSON Web Tokens
}  # fmt: skip
PREFIX = f"(?:{'|'.join(map(re.escape, API_KEYS))})"
MAX_KEY = 4096  # characters after the prefix


def _find_key_end(match: Match) -> int | None:
    """Where a key ends that is long enough and has a digit."""
    prefix, rest = match.groups()
    return match.end() if len(rest) >= API_KEYS[prefix] and re.search(r"\d", rest) else None


API_KEY = Pattern(
    "api_key",
    "an API key or access token",
    hint=re.compile(PREFIX),
    pattern=re.compile(
        rf"{NO_WORD_BEFORE}({PREFIX})((?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9_-])){{10,{MAX_KEY}}})"
    ),
    beginning=re.compile(
        rf"{NO_WORD_BEFORE}(?:{beginnings(tuple(API_KEYS))}"
        rf"|{PREFIX}[A-Za-z0-9_.-]{{0,{MAX_KEY + 1}}}\Z)"
    ),
    longest=11 + MAX_KEY + 2,
    find_end=_find_key_end,
)

# PEM (RFC 7468, RFC 1421) and OpenPGP's armor (RFC 9580), also within a string of JSON.
BREAK = r"(?:\s|\\[nrt])"
BEGIN = r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
HEADER = r"[A-Za-z-]{2,20}: [^\n\\]{0,100}"
HEADERS = rf"(?:{BREAK}{{1,4}}{HEADER}){{0,4}}"
# Possessive (++), since a line can be cut in many ways.
BODY = rf"(?:{BREAK}{{0,4}}+[A-Za-z0-9+/=]{{20,512}}+){{0,64}}+"
PRIVATE_KEY = Pattern(
    "private_key",
    "a private key",
    hint=re.compile("PRIVATE KEY"),
    # What follows the line BEGIN is part of the key even if the text ends amid it.
    pattern=re.compile(
        rf"{BEGIN}{HEADERS}{BODY}(?:{BREAK}{{0,4}}[A-Za-z0-9+/=]{{1,19}})?"
        rf"(?:{BREAK}{{0,4}}-----END [A-Z0-9 ]{{0,48}}-----)?"
    ),
    beginning=re.compile(
        beginnings(("-----BEGIN ",))
        + r"|-----BEGIN [A-Z0-9 ]{0,48}-{0,5}\Z"
        + rf"|{BEGIN}{HEADERS}{BREAK}{{0,4}}(?:[A-Za-z-]{{0,20}}:?|{HEADER})\\?\Z"
        + rf"|{BEGIN}{HEADERS}{BODY}{BREAK}{{0,4}}(?:[A-Za-z0-9+/=]{{1,19}}{BREAK}{{0,4}})?"
        r"(?:-----END [A-Z0-9 ]{0,48}-{0,5}|-{0,5}|-----E|-----EN|-----END|\\)\Z"
    ),
    longest=40_000,
)
