"""Personal data that have a form of their own: e-mail addresses, payment cards, IBANs, addresses of
the internet and social security numbers; telephone numbers are in phone.py. Names and postal
addresses have none.

Checksums, ranges and the words before decide where there are any. Every expression begins at the
beginning of a word or number and repeats a bounded number of times, so that time is linear in the
length of any text. Texts are folded, so that \\d is 0 to 9.
"""

import ipaddress
import re

from gptjax.safety.detector import CONTEXT, Match, Pattern

ESCAPE = r"(?:[bfnrt]|u[0-9A-Fa-f]{4})"  # of JSON, after the backslash
AFTER_ESCAPE = r"(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4})"
# Letters of other scripts are written without a space.
NO_WORD_BEFORE = rf"(?:(?<![A-Za-z0-9])|{AFTER_ESCAPE})"
AFTER_LIST_NUMBER = r"(?:(?<=(?<![\d.,])\d\.)|(?<=(?<![\d.,])\d\d\.))"

# --- e-mail addresses -----------------------------------------------------------------------------

# Scripts that have spaces between words; where another begins, name and last label end.
LETTER = r"A-Za-z\xc0-\u0dff\u10a0-\u177f\u1800-\u1fff\u2c00-\u2dff"
LOCAL = (
    rf"(?:(?:(?<![{LETTER}\d])(?!(?<=\\){ESCAPE})|{AFTER_ESCAPE})"
    rf"[{LETTER}\d][{LETTER}\d_.%+'&~-]{{0,63}}"
    rf"|(?<![^\W\d_{LETTER}])[^\W\d_{LETTER}](?:[^\W\d_{LETTER}]|[.%+-]){{0,63}})"
)
EMAIL = Pattern(
    "email",
    "an e-mail address",
    hint=re.compile("@"),
    pattern=re.compile(
        rf"{LOCAL}@(?:[^\W_][\w-]{{0,62}}\.){{1,8}}"
        rf"(?:xn--[A-Za-z0-9-]{{1,59}}|[{LETTER}]{{2,24}}|[^\W\d_{LETTER}]{{2,24}})"
    ),
    beginning=re.compile(rf"{LOCAL}(?:@[\w.-]{{0,600}})?\Z"),
    longest=64 + 1 + 8 * 64 + 63,
)

# --- IBANs ----------------------------------------------------------------------------------------

IBAN_LENGTHS = {  # of ISO 13616's registry
    15: "NO", 16: "BE", 18: "DK FK FO FI GL NL SD", 19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
    26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
GAP = r"[\s-]{0,3}"
COUNTRY = f"(?:{'|'.join('|'.join(names.split()) for names in IBAN_LENGTHS.values())})"
NO_PROSE = rf"(?!(?:{GAP}[A-Za-z]){{7}})"  # "at 20 people": no bank's code has so many letters


def _find_iban_end(match: Match) -> int | None:
    """Where an IBAN ends, if there are digits enough, and the check digits are right: ISO 7064, mod
    97-10."""
    iban = re.sub(r"[\s-]", "", match[0])
    is_iban = int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1
    return match.end() if is_iban and sum(map(str.isdigit, iban)) >= 10 else None


IBAN = Pattern(
    "iban",
    "an IBAN with right check digits",
    hint=re.compile(rf"\d{GAP}\d{NO_PROSE}(?:{GAP}[A-Za-z0-9]){{11}}"),
    pattern=re.compile(
        rf"{NO_WORD_BEFORE}(?=[A-Z]{{2}}{GAP}\d)(?:"
        + "|".join(
            rf"(?:{countries.replace(' ', '|')})(?:{GAP}\d){{2}}{NO_PROSE}"
            rf"(?:{GAP}[A-Z0-9]){{{length - 4}}}"
            for length, countries in IBAN_LENGTHS.items()
        )
        + r")(?![A-Za-z0-9])",
        re.IGNORECASE,
    ),
    beginning=re.compile(
        rf"{NO_WORD_BEFORE}(?:[A-Z]|{COUNTRY}(?:{GAP}\d){{0,2}}{GAP}"
        rf"|{COUNTRY}(?:{GAP}\d){{2}}{NO_PROSE}(?:{GAP}[A-Z0-9]){{1,29}}{GAP})\Z",
        re.IGNORECASE,
    ),
    longest=2 + 31 * 4 + 1,
    find_end=_find_iban_end,
)

# --- payment cards --------------------------------------------------------------------------------

CARD_GAP = r"(?:[\s./_*\xb7\u2022-]|\\[nrt]){0,5}"
CARD_DIGIT = rf"{CARD_GAP}\d"
# Sixteen digits after a point are a decimal number; in groups they are not.
CARD_START = (
    rf"(?:(?<!\d)(?:(?<!\d\.)|{AFTER_LIST_NUMBER}(?=\d{{4}}\D|\d{{1,4}}\Z))|{AFTER_ESCAPE})"
)
CARD_RUN = re.compile(rf"\d(?:{CARD_DIGIT}){{12,18}}")
CARD_NUMBER = re.compile(  # beginnings and lengths of the issuers
    r"4\d{12}(?:\d{3}){0,2}|(?:2[2-7]|35|5\d)\d{14}|3[47]\d{13}|3[0689]\d{12}|6\d{15,18}"
)
CARD_GROUPS = re.compile(  # of digits, with a space between them
    r"(?:\d{4} ?){3}\d{1,4}(?: ?\d{3})?|\d{4} ?\d{6} ?\d{4,5}|\d(?: \d)+"
)
IDENTIFIER_AFTER = re.compile(r"-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-")  # what goes on like a UUID


def _find_card_end(match: Match) -> int | None:
    """Where the longest card number ends that begins with the match."""
    text, start = match.string, match.start()
    run = CARD_RUN.match(text, start)
    assert run
    places = [place for place in range(start, run.end()) if text[place].isdigit()]
    for place in reversed(places[12:]):
        end = place + 1
        is_whole = not (text[end : end + 1].isdigit() or IDENTIFIER_AFTER.match(text, end))
        if is_whole and _is_card(text[start:end]):
            return end
    return None


def _is_card(text: str) -> bool:
    """Whether an issuer has such numbers, in such groups, and the check digit is right: Luhn's, ISO
    7812-1."""
    number = re.sub(r"\D", "", text)
    digits = [int(digit) for digit in reversed(number)]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    is_grouped = CARD_GROUPS.fullmatch(re.sub(r"\D+", " ", text))
    is_issued = CARD_NUMBER.fullmatch(number) and is_grouped
    return bool(is_issued) and (sum(digits[::2]) + doubled) % 10 == 0


CARD = Pattern(
    "card",
    "a payment card number with an issuer's prefix and a right check digit",
    hint=re.compile(rf"\d(?:{CARD_DIGIT}){{12}}"),
    pattern=re.compile(rf"{CARD_START}\d(?:{CARD_DIGIT}){{12}}"),
    beginning=re.compile(
        rf"{CARD_START}\d(?:{CARD_DIGIT}){{0,18}}"
        rf"(?:{CARD_GAP}\\?" + r"|-[0-9A-Fa-f]{1,4}(?:-[0-9A-Fa-f]{0,4})?)\Z"
    ),
    longest=1 + 18 * 11 + 11,
    find_end=_find_card_end,
)

# --- addresses of the internet --------------------------------------------------------------------

VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|versions?|release|revision|rev|build|update|section|sec|chapter|clause|table|OID)"
    r"\.?|§|版本|バージョン|버전)[\s:=]{0,2}$"
    r"|(?:^|[\s(\[,;\"'])[A-Za-z][\w+-]{0,30}/$",  # the product's name
    re.IGNORECASE,
)
# A dash and what is not the last address of a range: 93.184.216.34-93.184.216.40, or -40.
VERSION_AFTER = re.compile(r"-(?!(?:\d{1,3}\.){3}\d)(?:(\d{1,3})(?![A-Za-z0-9_.-])|[A-Za-z0-9_])")
NO_IPV4_BEFORE = rf"{NO_WORD_BEFORE}(?<![A-Za-z0-9]_)(?<!\d\.)"
NO_IPV6_BEFORE = rf"{NO_WORD_BEFORE}(?<!\d\.)(?<![0-9A-Fa-f]:)(?<!::)"


def _find_ip_end(match: Match) -> int | None:
    """Where a public address ends that is no number of a version or section: the words before say
    so, as in "version 12.4.33.7" and Chrome/93.0.45.77, or what follows, as in 2.19.0.14-1ubuntu3;
    or its four numbers are single digits (as of 1.1.1.1, a public service). Other versions of four
    numbers below 256, as in "Opera 12.16.18.60", are taken for addresses."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return None
    if not address.is_global or address.version == 4 and _is_version(match):
        return None
    return match.end()


def _is_version(match: Match) -> bool:
    after = VERSION_AFTER.match(match.string, match.end())
    if after and not (after[1] and int(match[0].rpartition(".")[2]) < int(after[1]) < 256):
        return True
    return len(match[0]) == 7 or bool(VERSION_BEFORE.search(before(match)))


def before(match: Match) -> str:
    """Returns the characters before a match that may decide."""
    return match.string[max(0, match.start() - CONTEXT) : match.start()]


IP = Pattern(
    "ip",
    "a public address of the internet",
    hint=re.compile(r"\d(?:\.\d{1,3}\.\d|[0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:)"),
    pattern=re.compile(
        rf"{NO_IPV4_BEFORE}(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?!_?[A-Za-z0-9]|\.\d)"
        rf"|{NO_IPV6_BEFORE}[23][0-9A-Fa-f]{{3}}:[0-9A-Fa-f:]{{1,34}}(?:[0-9A-Fa-f]|::)"
        r"(?![A-Za-z0-9]|:[A-Za-z0-9:])"
    ),
    beginning=re.compile(
        rf"{NO_IPV4_BEFORE}\d{{1,3}}(?:\.\d{{0,3}}){{0,4}}"
        r"(?:_|-(?:\d{1,3}(?:\.\d{0,3}){0,3})?)?\Z"
        rf"|{NO_IPV6_BEFORE}[23][0-9A-Fa-f]{{0,3}}(?::[0-9A-Fa-f:]{{0,38}})?\Z"
    ),
    longest=5 + 38,
    find_end=_find_ip_end,
)

# --- social security numbers ----------------------------------------------------------------------

SSN_START = rf"(?:(?<!\d)(?:(?<!\d[.-])|{AFTER_LIST_NUMBER})|{AFTER_ESCAPE})"
SSN = Pattern(
    "ssn",
    "a social security number of the USA",
    hint=re.compile(r"\d{3}[\s-]{1,2}\d\d[\s-]{1,2}\d{4}"),
    pattern=re.compile(  # numbers that are given out, of the Social Security Administration
        rf"{SSN_START}(?!000|666|9)\d{{3}}[\s-]{{1,2}}(?!00)\d\d[\s-]{{1,2}}(?!0000)\d{{4}}"
        r"(?!\d|[.-]\d)"
    ),
    beginning=re.compile(
        SSN_START + r"\d{1,3}(?:[\s-]{1,2}(?:\d{1,2}(?:[\s-]{1,2}\d{0,4}[.-]?)?)?)?\Z"
    ),
    longest=3 + 2 + 2 + 2 + 4 + 2,
)
