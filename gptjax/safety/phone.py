"""Telephone numbers: by their form, by the word before, or since a region has such numbers
(libphonenumber's metadata, through the package phonenumbers)."""

import functools
import re
from collections.abc import Callable, Iterator

from gptjax.safety.detector import Match, Pattern
from gptjax.safety.personal_data import AFTER_ESCAPE, before

NO_NUMBER_BEFORE = rf"(?:(?<![A-Za-z0-9+])|{AFTER_ESCAPE})(?<!\d[./-])"
DIGIT = r"[ ./()-]{0,3}\d"
EXTENSION = r"(?: ?(?:x|ext\.?) ?\d{1,6})?"
HINT = re.compile(rf"\d(?:{DIGIT}){{6}}")
RUN = re.compile(rf"{NO_NUMBER_BEFORE}(?:\+|\((?=\d{{1,5}}\)))?\d(?:{DIGIT}){{6,18}}{EXTENSION}")
BEGINNING = re.compile(
    rf"{NO_NUMBER_BEFORE}[(+]?(?:\d(?:{DIGIT}){{0,18}}"
    r"(?:[ ./()-]{0,3}| ?e?x?t?\.? ?\d{0,6}[./-]?))?\Z"
)
INTERNATIONAL = re.compile(
    r"\+[1-9]\d{0,3}\)?(?: ?\(\d{1,5}\) ?)?"  # +49 (0)30 1234-567
    rf"(?:(?:[ ./-]|(?<=\d)\)?-)?\d){{5,14}}{EXTENSION}"
)
NATIONAL = re.compile(
    r"(?:00[1-9]\d{0,2}(?:[ ./()-]{1,3}\d{2,8}){2,5}"  # 0044 20 7946 0958
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ /-])[2-9]\d\d[ .-]\d{4}"  # (212) 555-0123
    r"|(?:1\.)?[2-9]\d\d\.[2-9]\d\d\.\d{4}"
    rf"|0[1-9](?:\.\d\d){{4}}){EXTENSION}"
)
TRUNK = re.compile(
    r"(?:\(0[1-9]\d{0,4}\)[ /-]?|0[1-9]\d{0,4}(?: ?[/-] ?| ))\d{2,8}(?:[ -]\d{2,6}){0,4}"
    rf"{EXTENSION}"
)
BARE = re.compile(r"\(?\d(?:[ ./()-]{0,2}\d){6,14}")
END = re.compile(r"(?![A-Za-z0-9]|[./-]\d)")
# Numbers with spaces between are a row, as of a table, unless the first is as long as a card's.
ROW_BEFORE = re.compile(r"(?<!\d{11})\d $")
ROW_AFTER = re.compile(r" \d")
PAIRS = re.compile(r"\d\d(?: \d\d)+")
SHORT_GROUPS = re.compile(r"\d{1,2}(?:\D+\d{1,2})+")  # as people count: 40 42 44 46 48
SINGLE_DIGITS = re.compile(r"\d(?:\D+\d)+")  # no region's groups; only to look up less
WORD_BEFORE = re.compile(
    r"(?<![A-Za-z])(?:tel|tele?phone|phone|fax|mobile|mob|cell)(?:\.? ?(?:no|number))?"
    r"[\s.:#]{0,3}$",
    re.IGNORECASE,
)
NO_PHONE = re.compile(  # a date; a ZIP code; decimal numbers; years; an address of the internet
    r"\d\d[./-]\d\d[./-](?:19|20)\d\d.*|\d{5}-\d{4}|\+\d+\.\d+ [\d ]+\..*"
    r"|\(?(?:1\d|20)\d\d-(?:1\d|20)\d\d|\d{1,3}(?:\.\d{1,3}){3}"
)


@functools.cache
def detector(region: str | None = None) -> Pattern:
    """Returns the detector. region: two letters, as GB: its numbers are found in any form that
    people write them in there, and those of all regions in rows of numbers, too; None: neither.
    Raises ValueError for a region that is none."""
    if region is not None:
        import phonenumbers

        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(
                f"region={region!r}: give a country's two letters (ISO 3166), such as US, or None"
            )
    return Pattern(
        "phone",
        "a telephone number",
        hint=HINT,
        pattern=RUN,
        beginning=BEGINNING,
        longest=3 + 18 * 4 + 15,
        find_end=functools.partial(_find_end, region),
    )


def _find_end(region: str | None, match: Match) -> int | None:
    """Where the longest number ends that begins with the run of digits, by the surest sign."""
    numbers = [match.string[match.start() : end] for end in _number_ends(match)]
    numbers = [number for number in numbers if not NO_PHONE.fullmatch(number)]
    signs: list[Callable[[Match, str], bool]] = [functools.partial(_is_national, region)]
    if region is not None:
        signs.insert(0, functools.partial(_is_valid, region))
    if match[0].startswith("+"):
        signs.insert(-1, _is_international)
    if WORD_BEFORE.search(before(match)):
        signs.append(_is_called_phone)
    for is_phone in signs:
        for number in numbers:
            if is_phone(match, number):
                return match.start() + len(number)
    return None


def _number_ends(match: Match) -> Iterator[int]:
    """Yields the ends of the run and of all groups of digits in it after the sixth digit, the last
    first."""
    text, start = match.string, match.start()
    yield match.end()
    places = [place for place in range(start, match.end()) if text[place].isdigit()]
    for place in reversed(places[6:]):
        if place + 1 < match.end() and not text[place + 1].isdigit():
            yield place + 1


def _count_digits(number: str) -> int:
    return sum(map(str.isdigit, re.split("[ex]", number)[0]))  # without an extension


def _is_valid(region: str, match: Match, number: str) -> bool:
    if not 7 <= _count_digits(number) <= 15 or SINGLE_DIGITS.fullmatch(number):
        return False
    forms = (number, f"+{number[2:]}") if number.startswith("00") else (number,)
    if len(forms) == 1 and number[0] != "+":
        digits = re.sub(r"\D", "", re.split("[ex]", number)[0])
        if not _national_numbers(region).fullmatch(digits):
            return False
    import phonenumbers

    leniency = phonenumbers.Leniency
    lenient = leniency.STRICT_GROUPING if SHORT_GROUPS.fullmatch(number) else leniency.VALID
    return any(
        (part.start, part.end) == (0, len(form))
        for form in forms
        for part in phonenumbers.PhoneNumberMatcher(form, region, lenient)
    )


@functools.cache
def _national_numbers(region: str) -> re.Pattern[str]:
    """The digits of a region's numbers, which are quicker to match than to parse, with or without
    its country's code and prefix; anything where prefixes rewrite the number."""
    import phonenumbers

    metadata = phonenumbers.PhoneMetadata.metadata_for_region(region)
    assert metadata and metadata.general_desc
    if metadata.national_prefix_transform_rule:
        return re.compile(r"\d+")
    prefix, number = metadata.national_prefix_for_parsing, metadata.general_desc
    return re.compile(
        f"(?:{metadata.country_code})?(?:{prefix or ''})?(?:{number.national_number_pattern})"
    )


def _is_international(match: Match, number: str) -> bool:
    return 9 <= _count_digits(number) <= 15 and bool(INTERNATIONAL.fullmatch(number))


def _is_national(region: str | None, match: Match, number: str) -> bool:
    text, end, n_digits = match.string, match.start() + len(number), _count_digits(number)
    is_trunk = bool(TRUNK.fullmatch(number))
    if not (9 <= n_digits <= 15 and (is_trunk or NATIONAL.fullmatch(number))):
        return False
    is_row = ROW_BEFORE.search(before(match)) or is_trunk and ROW_AFTER.match(text, end)
    is_in_row = is_row and (region is None or PAIRS.fullmatch(number))
    return not is_in_row and bool(END.match(text, end))


def _is_called_phone(match: Match, number: str) -> bool:
    is_end = END.match(match.string, match.start() + len(number))
    return bool(is_end and BARE.fullmatch(number))
