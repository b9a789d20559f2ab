"""However a text is split, what leaves the filter is the same, and no character of a secret is in
it."""

import itertools
import random
import re

import pytest

from gptjax.config import safety
from gptjax.safety import stream_filter
from tests import planted

RULES = stream_filter.rules(
    [safety.PersonalData(), safety.Credentials(), safety.Secrets(texts=planted.TEXTS)]
)
FORMS = ("{}", "It is {}, he said.", "({})", "a: {}\nb: {}", "{} {}", "...{}...", "\u8bf7{}\u8bf7")
FORMS += (r'{"a": "b\n{}\n", "c": "\t{}"}', r'"\u00fc{}"')  # strings of JSON


def stream(parts, rules=RULES, before=""):
    """(what left after each part and at the end, the filter)"""
    used = stream_filter.StreamFilter(rules, b"key", before)
    return [*(used.add(part) for part in parts), used.end()], used


def check_splits(text, expected, rules=RULES):
    """Every split in two, and single characters."""
    found = stream([text], rules)[1].interventions
    for cut in range(len(text) + 1):
        left, used = stream([text[:cut], text[cut:]], rules)
        assert expected.startswith(left[0]) and "".join(left) == expected, (text[:cut], left)
        assert used.interventions == found
    left, used = stream(text, rules)
    assert "".join(left) == expected and used.interventions == found


def is_left_of(text, frame):
    """Whether a text without its labels is what is left of the frame of a secret."""
    rest = iter(frame)
    return all(char in rest for char in re.sub(r"<\w+>", "", text))


@pytest.mark.parametrize("kind", planted.SECRETS)
def test_no_character_of_a_secret_leaves_at_any_split(kind):
    for secret, form in itertools.product(planted.SECRETS[kind], FORMS):
        text, frame = form.replace("{}", secret), form.replace("{}", "")
        expected = "".join(stream([text])[0])
        assert f"<{kind}>" in expected and is_left_of(expected, frame), (text, expected)
        check_splits(text, expected)


@pytest.mark.parametrize("before", ["1.", "a\n31."])
def test_a_number_right_after_that_of_its_place_in_a_list(before):
    for kind in ("card", "ssn"):
        secret = planted.SECRETS[kind][0]
        check_splits(f"{before}{secret}.", f"{before}<{kind}>.")
    check_splits(f"{before}4111111111111111", f"{before}4111111111111111")  # a decimal number


@pytest.mark.parametrize("kind", planted.SECRETS)
def test_two_splits(kind):
    secret = min(planted.SECRETS[kind], key=len)
    text, expected = f"a {secret}.", f"a <{kind}>."
    places = random.Random(0).sample(range(len(text) + 1), min(len(text) + 1, 70))
    for first, second in itertools.combinations(sorted(places), 2):
        left, _ = stream([text[:first], text[first:second], text[second:]])
        assert expected.startswith(left[0] + left[1]) and "".join(left) == expected


@pytest.mark.parametrize("kind", planted.SECRETS)
def test_of_a_secret_that_begins_before_the_text_no_character_leaves(kind):
    for secret in planted.SECRETS[kind]:
        # A long text before it in every tenth case.
        for n_more, cut in [(600 * (n % 10 == 0), n) for n in range(1, len(secret))]:
            before, text = "a " * n_more + secret[:cut], secret[cut:] + ", he said."
            left, used = stream([text] if n_more else text, before=before)
            assert "".join(left) == f"<{kind}>, he said.", (secret, cut)
            assert used.interventions[0].position == -cut


def test_what_is_whole_before_the_text_is_none_of_it():
    rules = stream_filter.rules([safety.PersonalData(action="refuse")])
    left, used = stream("of 12, version 93.184.216.34", rules, "4111 1111 1111 1111 of a@b.co ")
    assert "".join(left) == "of 12, version 93.184.216.34" and not used.interventions
    for text in (" is here", " <email> it is"):
        left, _ = stream([text.replace("<email>", "a@b.co")], before="of jane")
        assert "".join(left) == text
    left, used = stream("93.184.216.34", rules, "version ")
    assert "".join(left) == "93.184.216.34" and used.n_held == 0


def test_adjacent_secrets():
    secrets = [s for kind in planted.SECRETS.values() for s in kind if "PRIVATE KEY" not in s]
    for (a, b), between in itertools.product(itertools.permutations(secrets, 2), (" ", ",", "\n")):
        left = "".join(stream([a + between + b])[0])
        assert not re.sub(r"<\w+>", "", left).strip(" ,\n"), (a, b, left)


def test_splits_of_adjacent_secrets():
    chance = random.Random(0)
    secrets = [s for kind in planted.SECRETS.values() for s in kind]
    for _ in range(12):
        text = "".join(chance.choice((" ", ", ", "\n", "")) + s for s in chance.sample(secrets, 3))
        check_splits(text, "".join(stream([text])[0]))


PIECES = ["jane", "@", "x.com", ".", " ", "-", "+", "(", ")", "4111", "1111", "020", "7946", "DE89"]
PIECES += ["3704 0044 0532 0130 00", "0", "12", "\n", "\u200b", "sk-", "ghp_", "a1B2" * 5, "::"]
PIECES += ["2606:", "Tel. ", "555", "0123", " ext. ", "x", "open", " sesame", " oil", "v1."]
PIECES += ["93.184", "-----BEGIN ", "PRIVATE KEY", "-----", "END ", "\\n", "A: b", "\u8bf7", "_"]
PIECES += ["at 20 peop", ".216.34", "93.184.216.34", "-40", "--", "-rc1", "Chrome/", "/", "'", "&"]
PIECES += ["\\", "\\u00", "fc", "\\t", "1.", "   ", "**", "\u00b7", "123-45-", "6789", "sesame"]
PIECES += ["xn--p1ai", "\u0438\u0432\u0430\u043d", "\u7248\u672c", "-2222-4000-8", "\ub85c", "@a."]


def test_splits_of_any_text():
    chance = random.Random(1)
    for _ in range(400):
        text = "".join(chance.choices(PIECES, k=chance.randint(2, 10)))
        check_splits(text, "".join(stream([text])[0]))


@pytest.mark.parametrize(
    "text",
    [
        "93.184.216.34-93.184.216.40, 93.184.216.34-40, 12.4.33.7-5, 12.4.33.7-rc1, 8.8.4.44--or",
        "Chrome/93.0.45.77 http://93.184.216.34/ a_93.0.45.77_b _93.184.216.34_ 93.184.216.34-9",
        "4111111111111111-2222-4000-8000-123456789012, 4111111111111111-2222-123",
        "john@example.com-mail _john@example.com_ john@example.com555-1234 a@b.xn--p1ai-x",
        "\u8bf7\u8054\u7cfbjohn@example.com\u8bf7 \u738b@example.com " + "x@y." + 30 * "z",
    ],
)
def test_what_follows_decides_the_same_at_any_split(text):
    check_splits(text, "".join(stream([text])[0]))


@pytest.mark.parametrize(
    "text",
    [
        "write to jane.doe@mail",
        "at 4111 1111 1111 111",
        "NO93 8601 1117 94",
        "-----BEGIN PRIVATE K",
        "sk-proj-abc",
        "\\u00f",
        "+49 30 12",
        "open  sesam",
        "93.184.216.",
        "\u200b\u200b",
    ],
)
def test_a_beginning_that_is_never_completed_leaves_at_the_end(text):
    check_splits(text, text)


def test_an_address_that_grows():
    assert stream(["jane@x.co", "m.au", " y"])[0] == ["", "", "<email> ", "y"]
    assert stream(["jane@x.com", ".", " Bye"])[0] == ["", "", "<email>. ", "Bye"]


@pytest.mark.parametrize(
    "action, expected", [("log", "a 4111111111111111 b c d"), ("refuse", "a ")]
)
def test_actions(action, expected):
    rules = stream_filter.rules([safety.PersonalData(action=action), safety.Credentials()])
    text = "a 4111111111111111 b c d"
    check_splits(text, expected, rules)
    _, used = stream(text, rules)
    assert used.is_refused == (action == "refuse")
    assert [(i.kind, i.action, i.position) for i in used.interventions][0] == ("card", action, 2)


def test_what_is_only_recorded_is_not_held_back():
    rules = stream_filter.rules([safety.PersonalData(action="log")])
    text = "card 4111111111111111 of a@b.co"
    left, used = stream(text, rules)
    assert left == [*text, ""] and [i.kind for i in used.interventions] == ["card", "email"]
