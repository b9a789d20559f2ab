"""The safety filter: what it records, how much it holds, how much it works, what it leaves."""

import collections
import json
import lzma

import pytest

from gptjax.config import safety
from gptjax.safety import detector, fold, literals, phone, stream_filter
from tests import planted

ALL = (safety.PersonalData(), safety.Credentials())
RULES = stream_filter.rules(ALL)


def filter_text(text, *filters, key=b"key"):
    return stream_filter.filter_text(text, stream_filter.rules(filters or ALL), key)


@pytest.mark.parametrize("kind", planted.SECRETS)
def test_interventions_say_what_and_where_and_hold_nothing_of_it(kind):
    for secret in planted.SECRETS[kind]:
        _, used = filter_text(f"It is {secret}.", *ALL, safety.Secrets(texts=planted.TEXTS))
        (found,) = (one for one in used.interventions if one.kind == kind)
        line = json.loads(found.to_json(request="r1"))
        assert (line["position"], line["action"], line["request"]) == (6, "mask", "r1")
        assert line["kind"] == kind and line["reason"] == found.reason
        digits = "".join(filter(str.isalnum, secret))
        assert secret not in str(line) and digits[-4:] not in json.dumps(line["reason"])


def test_digests_are_of_letters_and_digits_under_a_key():
    def digest(text, key=b"key"):
        return filter_text(text, key=key)[1].interventions[0].digest

    same = digest("4111 1111 1111 1111")
    assert same == digest("x 4111-1111-1111-1111") == digest("4111111111111111")
    assert len({same, digest("4111111111111111", b"other"), digest("4222222222222")}) == 3


def test_positions_count_from_the_beginning_of_a_long_text():
    used = stream_filter.StreamFilter(RULES, b"key")
    text = "No secrets here. " * 400 + "a@b.co"
    left = "".join(used.add(text[i : i + 7]) for i in range(0, len(text), 7)) + used.end()
    assert left == text[:-6] + "<email>"
    assert [found.position for found in used.interventions] == [len(text) - 6]


class Counting:
    """A detector that counts the characters it is given."""

    kind, reason, longest = "none", "none", 20

    def __init__(self):
        self.n_chars = 0

    def find(self, text, start, stop):
        self.n_chars += stop - start
        return iter(())

    def find_partial(self, text, start):
        self.n_chars += len(text) - start
        return max(start, len(text) - self.longest)


def test_work_is_linear_and_the_window_is_bounded():
    work = []
    for n in (2000, 20_000):
        counting = Counting()
        used = stream_filter.StreamFilter([stream_filter.Rule(counting, "mask")], b"")
        for _ in range(n):
            used.add("word ")
            assert used.n_held <= 20
            assert len(used._text) <= stream_filter.TRIM + 20 + detector.CONTEXT + 5
        work.append(counting.n_chars / n)
    assert work[1] == pytest.approx(work[0], rel=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 9000,
        "1 " * 5000,
        "\u200b" * 9000,
        "a.b-" * 2000,
        "4\u200b" * 4000,
        "4" + "\u200b" * 9000,
        "a@b." * 2000,
        "4" + " " * 9000,
        "open" + " " * 9000,
        "4\\n" * 3000,
    ],
)
def test_what_is_held_is_bounded_whatever_comes(text):
    rules = stream_filter.rules([safety.PersonalData(), safety.Secrets(texts=planted.TEXTS)])
    used = stream_filter.StreamFilter(rules, b"")
    longest = max(rule.detector.longest for rule in used._rules)
    held = 0
    for i in range(0, len(text), 3):
        used.add(text[i : i + 3])
        held = max(held, used.n_held)
    assert held <= (longest + 3) * (fold.MAX_HIDDEN + 1)


def test_numbers_of_a_region():
    def mask(text, region):
        return filter_text(text, safety.PersonalData(region=region))[0]

    assert mask("Ring 2125550123.", "US") == "Ring <phone>."
    assert mask("Ring 2125550123.", "GB") == "Ring 2125550123."
    assert mask("40 42 44 46 48 50, 1 2 3 4 5 6 7 8 9 10", "US").count("<phone>") == 0
    assert mask("2 1 2 5 5 5 0 1 2 3, 2-1-2-5-5-5-0-1-2-3", "US").count("<phone>") == 0
    assert mask("In 1939-1945, 2023-10-11 12:34:56, 3.14159265", "DE").count("<phone>") == 0
    assert mask("01 02 03 04 05 06 07 08", "US") == "01 02 03 04 05 06 07 08"
    with pytest.raises(ValueError, match="region='XX': give a country's two letters"):
        phone.detector("XX")


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 and 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
        "at 20 people in the room were 19 men of 35 years, no 12 of them",
        "task-force-of-something-really-long, sk-learn-contrib-something-longer",
        "ghp_short, AKIA, hf_model, -----BEGIN CERTIFICATE-----",
        "000-12-3456, 123-00-4567, 123-45-0000, 923-45-6789",
        "10.0.0.1, version 93.184.216.34, user@host",
        "0.4111111111111111, 1.4111111111111111, 4111, 1111, 1111, 1111",
    ],
)
def test_what_is_none_is_left(text):
    assert filter_text(text)[0] == text


@pytest.mark.parametrize(
    "text, expected",
    [
        (r'"Mail:\njane@example.com"', r'"Mail:\n<email>"'),
        (r'"m\u00fcller@example.com\u003e"', r'"m\u00fc<email>\u003e"'),
        (r"a\b@example.com \\njane@x.co \u00f@x.co", r"a\b@example.com \\n<email> \<email>"),
    ],
)
def test_an_escape_of_json_is_no_part_of_an_address(text, expected):
    assert filter_text(text)[0] == expected


def test_secrets_of_a_file(tmp_path):
    file = tmp_path / "secrets.txt"
    file.write_text("Blue Heron\n\nzaphod\n")
    text = "blue\nheron, BLUE HERONS and Zaphod; blueheron, blue" + 16 * " " + "heron"
    assert filter_text(text, safety.Secrets(file=str(file)))[0] == (
        "<secret>, <secret>S and <secret>; blueheron, <secret>"
    )
    text = "blue" + 17 * " " + "heron"
    assert filter_text(text, safety.Secrets(texts=("Blue  \n heron",)))[0] == text
    with pytest.raises(ValueError, match="a secret has 2 characters; give 3 to 500"):
        literals.detector(["ab"], "x")


def test_a_secret_that_begins_within_another():
    assert filter_text("xabcabcabcx", safety.Secrets(texts=("abcabc",)))[0] == "x<secret>x"


@pytest.mark.shared
def test_false_positives_on_the_brown_corpus(shared):
    text = lzma.decompress((shared / "data" / "text" / "brown.txt.xz").read_bytes()).decode()
    sentences = text.splitlines()
    counts = collections.Counter(
        kind
        for sentence in sentences
        for kind in {
            i.kind for i in stream_filter.filter_text(sentence, RULES, b"")[1].interventions
        }
    )
    assert len(sentences) == 57_839 and not counts


def test_what_is_before_is_still_there():
    """Once text was dropped, the words before a number still decide."""
    used = stream_filter.StreamFilter(RULES, b"key")
    text = "Nothing. " * 300 + "version 93.184.216.34, tel. 5550123 x"
    left = "".join(map(used.add, text)) + used.end()
    assert left == text.replace("5550123 x", "<phone> x")


def test_delay_on_prose():
    used = stream_filter.StreamFilter(RULES, b"key")
    held = []
    for char in "At 20 people in the room the talk, which was long, came to an end in 1984. " * 3:
        used.add(char)
        held.append(used.n_held)
    assert max(held) <= 20 and sum(held) / len(held) < 5
