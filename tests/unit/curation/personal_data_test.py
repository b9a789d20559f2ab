"""Personal data, planted in a sentence, are replaced; numbers that are none are left."""

import random
import re
import string

import pytest

from gptjax.config import safety
from gptjax.config.curation import MaskPersonalData
from gptjax.curation import personal_data
from gptjax.curation.page import Page
from gptjax.safety import detector, phone, stream_filter

ALL = MaskPersonalData().kinds


def mask(text, kinds):
    """What the stage makes of a page with this text."""
    rule = MaskPersonalData(kinds=kinds)
    return personal_data.mask_personal_data(rule)(Page(0, "", "", text)).text


PERSONAL = {
    "email": [
        "jane.doe+x@mail.example.co.uk",
        "a_b%c@d-e.museum",
        "m\u00fcller@b\u00fccher.de",
        f"{'a' * 64}@example.com",
        "o'brien@example.ie",
        "o\u2019brien@example.ie",
        "r&d@example.com",
        "\u0438\u0432\u0430\u043d2@\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444",
        "jane@example.xn--p1ai",
        "jane@m\u00fcller.verm\u00f6gensberatung",
    ],
    "phone": [
        "+49 (0)30 1234-567",
        "+1 (212) 555-0123",
        "+1.212.555.0123",
        "+442079460958",
        "+33 1 23 45 67 89",
        "0044 20 7946 0958",
        "(212) 555-0123",
        "(212) 555.0123",
        "(212)555-0123x123",
        "1-800-555-0199",
        "212.555.0123",
        "212/555-0123 ext. 77",
        "020 7946 0958",
        "(020) 7946 0958",
        "(0962)-618063",
        "07700 900123",
        "01 23 45 67 89",
        "01.23.45.67.89",
        "030/12345678",
        "030 / 123 45 67",
        "0161-496-0000",
        "02 123 45 67",
    ],
    "card": [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "4222222222222",
        "5500000000000004",
        "2223003122003222",
        "3782 822463 10005",
        "30569309025904",
        "6011000990139424",
        "3530111333300000",
    ],
    "iban": [
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00",
        "DE 89 37040044 0532013000",
        "NL91-ABNA-0417-1643-00",
        "NO93 8601 1117 947",
        "FR14 2004 1010 0505 0001 3M02 606",
        "MT84 MALT 0110 0001 2345 MTLC AST0 01S",
        "GB82 WEST 1234 5698\n7654 32",
    ],
    "ip": [
        "93.184.216.34",
        "8.8.4.44",
        "2606:2800:220:1:248:1893:25c8:1946",
        "2a00:1450:4001:81B::200e",
        "2a00:1450::",
    ],
}


@pytest.mark.parametrize("kind", PERSONAL)
def test_personal_data_are_replaced(kind):
    for one in PERSONAL[kind]:
        for form in ("{}", "It is {}, he said.", "({})", "<{}>: ", "a: {}\nb: {}", '"{}"'):
            wanted = form.replace("{}", f"<{kind}>")
            assert mask(form.replace("{}", one), ALL) == wanted, one
        others = tuple(other for other in ALL if other != kind)
        assert f"<{kind}>" not in mask(f"It is {one}.", others)


@pytest.mark.parametrize(
    "content",
    [
        # versions, sections, identifiers; addresses that are private or reserved
        "1.2.3.4, version 10.15.7.30, v21.4.13.10, Section 12.1.14.10, OID 1.3.101.110",
        "1.3.6.1.4.1.311, 12.34.56.78.90, 256.1.1.1, 10.0.0.1, 192.168.1.1, 192.0.2.1",
        "2001:db8::1, fe80::1, abc::def, std::vector, 12:34:56, 2023:10:11 12:00:00",
        # books, dates, amounts, years, tables, lists
        "ISBN 978-0-306-40615-7, ISBN 0-306-40615-2, 9780306406157, ISSN 0317-8471",
        "2023-10-11 12:34:56, 01/02/2003-04/05, 01-02-2003 1234, 02134-1234, 1939-1945",
        "1,234,567,890, 1 234 567 890, 3.14159265358979, 0.123 0.456 0.789, 100-200-3000",
        "01 02 03 04 05 06 07 08, +1.25 3.40 5.60 7.80, 3+45678901234, 1609459200000",
        "120 130 1400, 12345678901234, 0x12345678, 550e8400-e29b-41d4-a716-446655440000",
        # wrong check digits, issuers and lengths
        "4111 1111 1111 1112, 9111111111111111, 411111111111116, DE89 3704 0044 0532 0130 01",
        "DE8937040044053201300, XX89 3704 0044 0532 0130 00, user@host, @user, foo@, a@b.c",
        "He wrote of the telephone (1847-1922) and of 1234567 whales.",
    ],
)
def test_other_numbers_are_left(content):
    page = Page(1, "a#1", "", content)
    assert personal_data.mask_personal_data(MaskPersonalData())(page) == page


CHINESE = "\u8bf7\u8054\u7cfb" * 30  # without spaces, and longer than any part of an address


@pytest.mark.parametrize(
    "text, expected",
    [
        # e-mail addresses, whatever is beside them
        ("at john@example.com--or call", "at <email>--or call"),
        ("first.last@example.com-mail", "<email>-mail"),
        ("john@example.com- john@example.com_", "<email>- <email>_"),
        ("_john@example.com_ 'john@example.com'", "_<email>_ '<email>'"),
        ("john@example.com's, x=john@example.com&y", "<email>'s, x=<email>&y"),
        ("john@example.com555-1234", "<email>555-1234"),
        ("Jane" + 80 * "." + "jane.doe@example.com", "Jane" + 80 * "." + "<email>"),
        (80 * "_-" + "jane@example.com" + 80 * "-", 80 * "_-" + "<email>" + 80 * "-"),
        (f"{CHINESE}john@example.com{CHINESE}", f"{CHINESE}<email>{CHINESE}"),
        (f"john@example.com{30 * 'x'}", f"<email>{9 * 'x'}"),
        # addresses of the internet
        ("93.184.216.34-93.184.216.40", "<ip>-<ip>"),
        ("93.184.216.34-40, 93.184.216.34--or", "<ip>-40, <ip>--or"),
        ("93.184.216.34- and 93.184.216.34-", "<ip>- and <ip>-"),
        ("2a00:1450::1-2a00:1450::5", "<ip>-<ip>"),
        ("http://93.184.216.34/ ipinfo.io/93.184.216.34", "http://<ip>/ ipinfo.io/<ip>"),
        (f"whois/{'a' * 90}/93.184.216.34", f"whois/{'a' * 90}/<ip>"),
        # numbers in script without spaces
        (f"{CHINESE}93.184.216.34{CHINESE}", f"{CHINESE}<ip>{CHINESE}"),
        (f"{CHINESE}2a00:1450::1{CHINESE}", f"{CHINESE}<ip>{CHINESE}"),
        (f"{CHINESE}010-1234-5678\ub85c", f"{CHINESE}<phone>\ub85c"),
        ("Tel 010 1234\ub85c", "Tel <phone>\ub85c"),
        (f"{CHINESE}4111111111111111{CHINESE}", f"{CHINESE}<card>{CHINESE}"),
        ("4111 1111 1111 1111--or", "<card>--or"),
        (f"{CHINESE}DE89370400440532013000{CHINESE}", f"{CHINESE}<iban>{CHINESE}"),
        ("Telephone number: 5550123", "Telephone number: <phone>"),
    ],
)
def test_what_follows_or_precedes_hides_nothing(text, expected):
    assert mask(text, ALL) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Mozilla/5.0 (Chrome/93.0.45.77) Chrome/93.0.45.77",
        "Edg/93.0.96.38",
        "2.19.0.14-1ubuntu3, 12.4.33.7-rc1, 12.4.33.7-beta, 12.4.33.7-5, 12.4.33.7-300",
        "4111111111111111-2222-4000-8000-123456789012, chrome_93.0.45.77_amd64.deb",
        "\u7248\u672c93.0.45.77, \u30d0\u30fc\u30b8\u30e7\u30f393.0.45.77, \ubc84\uc804 93.0.45.77",
        "lodash@4.17.21, a@b, @john, john@, john@example.c, john@-example.com",
    ],
)
def test_versions_and_names_of_files_stay(text):
    assert mask(text, ALL) == text


def test_a_word_before_makes_digits_a_telephone_number():
    for before in ("Tel. ", "phone: ", "Fax: ", "Mobile no. ", "TELEPHONE\n"):
        for number in ("912 345 678", "5550123", "555-0123", "98765 43210"):
            assert mask(f"{before}{number}.", ALL) == f"{before}<phone>."
    assert mask("hotel 5550123", ALL) == "hotel 5550123"


def test_what_is_near_is_found_too():
    content = "DE89 3704 0044 0532 0130 00 NO93 8601 1117 947 4111111111111111 212-555-0123"
    assert mask(content, ALL) == "<iban> <iban> <card> <phone>"
    assert mask("a@b.com,c@d.org;8.8.4.44:80", ALL) == "<email>,<email>;<ip>:80"


def test_check_digits_decide():
    chance = random.Random(0)
    for _ in range(200):
        digits = "4" + "".join(chance.choice(string.digits) for _ in range(14))
        cards = [f"{digits}{last}" for last in range(10)]
        assert sum(mask(card, ("card",)) == "<card>" for card in cards) == 1
        account = "".join(chance.choice(string.digits) for _ in range(18))
        ibans = [f"DE{check:02}{account}" for check in range(2, 99)]
        assert sum(mask(iban, ("iban",)) == "<iban>" for iban in ibans) == 1


def test_every_match_has_its_hint():
    rules = stream_filter.rules([safety.PersonalData(region=None)])
    for rule in rules:
        assert isinstance(rule.detector, detector.Pattern)
        for one in PERSONAL.get(rule.detector.kind, ()):
            assert rule.detector.hint.search(one)
    assert re.search(phone.HINT, "Tel 5550123")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Call +49 30 1234567. 24 people came.", "Call <phone>. 24 people came."),
        ("Call +1 212 555 0123 - 3 rooms", "Call <phone> - 3 rooms"),
        ("at +1 (212) 555-0123 (2 lines)", "at <phone> (2 lines)"),
        ("at +49 (0)30 1234-567, or +33 1 42 34 56 78", "at <phone>, or <phone>"),
    ],
)
def test_numbers_after_a_telephone_number_stay(text, expected):
    kinds = MaskPersonalData().kinds
    assert mask(text, kinds) == expected
