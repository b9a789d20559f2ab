"""Replaces personal data that have a form of their own: e-mail addresses, telephone numbers,
payment cards, IBANs and addresses of the internet. Names and postal addresses are left.

Checksums, ranges and the words before decide where there are any. A word or number ends where Latin
letters and digits do, since many scripts have no spaces. Every expression begins at the beginning
of one and repeats a bounded number of times, so that time is linear in the length of any text.
"""

import dataclasses
import ipaddress
import re
from collections.abc import Callable

from gptjax.config.curation import MaskPersonalData
from gptjax.curation.page import Page, StageFn

Match = re.Match[str]
LATIN = r"A-Za-z\xaa\xba\xc0-\xd6\xd8-\xf6\xf8-\u024f\u1e00-\u1eff"  # letters, in a class
WORD = rf"[{LATIN}\d_]"


def mask_personal_data(rule: MaskPersonalData) -> StageFn:
    """Returns a stage that replaces personal data by <email>, <phone>, <card>, <iban> or <ip>; it
    drops nothing."""

    def stage(page: Page) -> Page:
        return dataclasses.replace(page, text=mask(page.text, rule.kinds))

    return stage


def mask(text: str, kinds: tuple[str, ...]) -> str:
    """Returns a text with the personal data of these kinds replaced."""
    for search in SEARCHES:
        if search.kind in kinds and search.hint.search(text):
            text = search.pattern.sub(
                lambda match, search=search: (
                    f"<{search.kind}>" if search.is_personal(match) else match[0]
                ),
                text,
            )
    return text


# --- e-mail addresses -----------------------------------------------------------------------------

# The name and the last label are of one script, and end where another begins.
EMAIL = re.compile(
    rf"(?:[{LATIN}\d](?<![{LATIN}\d]{{2}})[{LATIN}\d_.%+&'\u2019-]{{0,63}}+"
    rf"|[^\W{LATIN}_](?<![^\W{LATIN}_]{{2}})(?:[^\W{LATIN}]|[.%+-]){{0,63}}+)"
    r"@(?:[^\W_][\w-]{0,62}\.){1,8}"
    rf"(?:xn--[A-Za-z0-9-]{{1,59}}|[{LATIN}]{{2,24}}|[^\W\d_{LATIN}]{{2,24}})"
)


def _is_email(match: Match) -> bool:
    return True


# --- IBANs ----------------------------------------------------------------------------------------

IBAN_LENGTHS = {  # of ISO 13616's registry
    15: "NO", 16: "BE", 18: "DK FK FO FI GL NL SD", 19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
    26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    + "|".join(
        rf"(?:{countries.replace(' ', '|')})(?:[\s-]{{0,2}}\d){{2}}"
        rf"(?:[\s-]{{0,2}}[A-Z0-9]){{{length - 4}}}"
        for length, countries in IBAN_LENGTHS.items()
    )
    + r")(?![A-Za-z0-9])"
)


def _is_iban(match: Match) -> bool:
    """Whether the check digits are right: ISO 7064, mod 97-10."""
    iban = re.sub(r"[\s-]", "", match[0])
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


# --- payment cards --------------------------------------------------------------------------------

CARD = re.compile(
    rf"(?<!{WORD})(?<![.+-])"
    r"(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?|\d{4}([ -]?)\d{6}\2\d{4,5})"
    rf"(?!-?{WORD}|\.\d)"
)
CARD_NUMBER = re.compile(  # beginnings and lengths of the issuers
    r"4\d{12}(?:\d{3}){0,2}|(?:2[2-7]|35|5\d)\d{14}|3[47]\d{13}|3[0689]\d{12}|6\d{15,18}"
)


def _is_card(match: Match) -> bool:
    """Whether an issuer has such numbers, and the check digit is right: Luhn's, ISO 7812-1."""
    number = re.sub(r"\D", "", match[0])
    digits = [int(digit) for digit in reversed(number)]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return bool(CARD_NUMBER.fullmatch(number)) and (sum(digits[::2]) + doubled) % 10 == 0


# --- addresses of the internet --------------------------------------------------------------------

IP = re.compile(
    rf"(?<!{WORD})(?<!\.)(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?!{WORD}|\.\d)"
    rf"|(?<!{WORD})(?<![:.])[23][0-9A-Fa-f]{{3}}:[0-9A-Fa-f:]{{1,34}}(?:[0-9A-Fa-f]|::)"
    rf"(?!{WORD}|:(?:{WORD}|:))"
)
VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|versions?|release|revision|rev|build|update|section|sec|chapter|clause|table|OID)"
    r"\.?|§|版本|バージョン|버전)[\s:=]{0,2}$"
    r"|(?:^|[\s(\[,;\"'])[A-Za-z][\w+-]{0,30}/$",  # the product's name
    re.IGNORECASE,
)
# A dash and what is not the last address of a range: 93.184.216.34-93.184.216.40, or -40.
VERSION_AFTER = re.compile(rf"-(?!(?:\d{{1,3}}\.){{3}}\d)(?:(\d{{1,3}})(?!{WORD}|[.-])|{WORD})")


def _is_ip(match: Match) -> bool:
    """Whether it is a public address, and no number of a version or section: the words before say
    so, as in "version 12.4.33.7" and Chrome/93.0.45.77, or what follows, as in 2.19.0.14-1ubuntu3;
    or its four numbers are single digits (as of 1.1.1.1, a public service). Other versions of four
    numbers below 256, as in "Opera 12.16.18.60", are taken for addresses."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    return address.is_global and not (address.version == 4 and _is_version(match))


def _is_version(match: Match) -> bool:
    after = VERSION_AFTER.match(match.string, match.end())
    if after and not (after[1] and int(match[0].rpartition(".")[2]) < int(after[1]) < 256):
        return True
    return len(match[0]) == 7 or bool(VERSION_BEFORE.search(_before(match)))


def _before(match: Match) -> str:
    return match.string[max(0, match.start() - 40) : match.start()]


# --- telephone numbers ----------------------------------------------------------------------------

_START = rf"(?<!{WORD})(?<![.+/-])"
_END = rf"(?!{WORD}|[./-]\d)"
PHONE = re.compile(
    _START + r"(?<!\d )(?:"
    r"\+[1-9]\d{0,3}(?:[ \xa0]?\(\d{1,5}\)[ \xa0]?)?"  # +49 (0)30 1234-567
    r"(?:(?:[ \xa0./-]|(?<=\d)\)?-)?\d){5,14}"
    r"|00[1-9]\d{0,2}(?:[ \xa0./()-]{1,3}\d{2,8}){2,5}"  # 0044 20 7946 0958
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ /-])[2-9]\d\d[ .-]\d{4}"  # (212) 555-0123
    r"|(?:1\.)?[2-9]\d\d\.[2-9]\d\d\.\d{4}"
    r"|(?:\(0[1-9]\d{0,4}\)[ /-]?|0[1-9]\d{0,4}(?: ?[/-] ?| ))\d{2,8}(?:[ -]\d{2,6}){0,4}(?! \d)"
    r"|0[1-9](?:\.\d\d){4}"
    r")(?: ?(?:x|ext\.?) ?\d{1,6})?" + _END
)
BARE_PHONE = re.compile(_START + r"\(?\d(?:[ \xa0./()-]{0,2}\d){6,14}" + _END)
PHONE_WORD = re.compile(
    r"\b(?:tel|tele?phone|phone|fax|mobile|mob|cell)(?:\.? ?(?:no|number))?[\s.:#]{0,3}$",
    re.IGNORECASE,
)
NO_PHONE = re.compile(  # a date; a ZIP code; decimal numbers; years
    r"\d\d[./-]\d\d[./-](?:19|20)\d\d.*|\d{5}-\d{4}|\+\d+\.\d+ [\d ]+\..*"
    r"|\(?(?:1[5-9]|20)\d\d-(?:1[5-9]|20)\d\d"
)


def _is_phone(match: Match) -> bool:
    n_digits = sum(map(str.isdigit, re.split("[ex]", match[0])[0]))  # without an extension
    return 9 <= n_digits <= 15 and not NO_PHONE.fullmatch(match[0])


def _is_called_phone(match: Match) -> bool:
    return bool(PHONE_WORD.search(_before(match))) and not NO_PHONE.fullmatch(match[0])


@dataclasses.dataclass(frozen=True)
class Search:
    """What is searched for. hint: quick to search, and there is one in every match of `pattern`.
    is_personal: whether a match is one."""

    kind: str
    hint: re.Pattern[str]
    pattern: re.Pattern[str]
    is_personal: Callable[[Match], bool]


IP_HINT = re.compile(r"\d(?:\.\d{1,3}\.\d|[0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:)")
IBAN_HINT = re.compile(r"[A-Z]{2}(?:[\s-]{0,2}\d){2}(?:[\s-]{0,2}[A-Z0-9]){11}")
CARD_HINT = re.compile(r"\d{4}[ -]?\d{4,6}[ -]?\d{4}")
PHONE_HINT = re.compile(r"\d(?:[ \xa0./()-]{0,3}\d){6}")
# What has a checksum comes before telephone numbers, which its digits might be.
SEARCHES = (
    Search("email", re.compile("@"), EMAIL, _is_email),
    Search("ip", IP_HINT, IP, _is_ip),
    Search("iban", IBAN_HINT, IBAN, _is_iban),
    Search("card", CARD_HINT, CARD, _is_card),
    Search("phone", PHONE_HINT, PHONE, _is_phone),
    Search("phone", PHONE_HINT, BARE_PHONE, _is_called_phone),
)
