"""Words of a label in a text that comes in parts, by a scorer that knows some names: what leaves
does not depend on how the text was split, and holds no character of a name."""

import concurrent.futures
import random
import zlib

import pytest

from gptjax.config import safety
from gptjax.safety import stream_filter, word_classifier

NAMES = ("Jane", "Doe", "J", "R", "McDonald", "Ada", "Lovelace", "O", "Brien", "\u738b\u5c0f\u660e")
SPEC = safety.WordClassifier(model="runs/words", labels=("person",))
LONG = "a" * 40


class Scorer:
    """A name is a person, but not where "street" is near; other words are none. windows: those that
    were scored."""

    labels: tuple[str, ...] = ("none", "person")

    def __init__(self):
        self.windows = []

    def __call__(self, pairs):
        self.windows += pairs
        return [dict(zip(self.labels, self.score(*pair), strict=True)) for pair in pairs]

    def score(self, left, right):
        assert "\n" not in left + right
        word = first_word(right)
        assert left.endswith(word)
        p = 0.9 * (word in NAMES and "street" not in left + right) + 0.05 * (word == "Maybe") * 11
        return 1 - p, p


class Chance(Scorer):
    """Any two windows differ: half of them are of a person."""

    def score(self, left, right):
        p = zlib.crc32(f"{left}|{right}".encode()) % 2
        return 1 - p, p


def first_word(text):
    return word_classifier.WORD.findall(text)[0]


def make_rules(scorer=None, **changes):
    spec = safety.WordClassifier(**{"model": "runs/words", "labels": ("person",)} | changes)
    return stream_filter.rules([spec], lambda path: scorer or Scorer())


def stream(parts, rules):
    """(what left after each part and at the end, the filter)"""
    used = stream_filter.StreamFilter(rules, b"key")
    return [*(used.add(part) for part in parts), used.end()], used


def check_splits(text, expected, rules=None):
    rules = rules or make_rules()
    found = stream([text], rules)[1].interventions
    for parts in [[text[:cut], text[cut:]] for cut in range(len(text) + 1)] + [list(text)]:
        left, used = stream(parts, rules)
        assert "".join(left) == expected, parts
        assert expected.startswith(left[0]) and used.interventions == found
    return found


@pytest.mark.parametrize(
    "text, expected",
    [
        ("I met Jane.", "I met <person>."),
        ("I met Jane", "I met <person>"),
        ("Jane Doe", "<person>"),
        ("Ask Jane Doe, or Ada-Lovelace, now", "Ask <person>, or <person>, now"),
        ("by J. R. Doe", "by <person>"),
        ("of O'Brien's, not O\u2019Brien", "of <person>'s, not <person>"),
        ("Jane\nDoe\n- Ada", "<person>\n<person>\n- <person>"),
        ("It was Jane. Doe said no", "It was <person>. <person> said no"),
        ("in Jane street, in street Jane", "in Jane street, in street Jane"),
        ("at Jane or Doe or the old street", "at <person> or Doe or the old street"),
        ("street\nJane", "street\n<person>"),
        ("Jane\nstreet", "<person>\nstreet"),
        ("jane and mcDonald and McDonald", "jane and mcDonald and <person>"),
        ("Jane Xerxes Doe Paris", "<person> Xerxes <person> Paris"),
        ("Jane Doe " * 5, "<person> <person> "),
        (f"Jane {LONG}B Doe", f"<person> {LONG}B <person>"),
        (f"Jane {LONG} Doe", f"<person> {LONG} <person>"),
        ("\u738b\u5c0f\u660e, Jan\u200be", "<person>, <person>"),
        ("1960 Jane 1960", "1960 <person> 1960"),
        ("J\u0430ne", "<person>"),
    ],
)  # fmt: skip
def test_what_leaves_is_the_same_at_any_split(text, expected):
    check_splits(text, expected)


def test_any_text_at_any_split():
    pieces = [*NAMES, " ", " ", " ", ". ", "-", "'", "\n", ", ", "street", "the", "mc", "X", LONG]
    pieces += ["Xerxes", "of ", "7", "\u200b", "\u0301", "a" * 24, " is a long way from here "]
    chance, rules = random.Random(0), make_rules(Chance())
    for _ in range(200):
        text = "".join(chance.choices(pieces, k=chance.randint(2, 25)))
        check_splits(text, "".join(stream([text], rules)[0]), rules)


def test_a_long_text_of_which_the_beginning_is_dropped():
    text = (
        "and Jane was seen in no street at all, " * 3
        + "as was said many, many times, but Ada is her name\n"
    ) * 40
    whole, _ = stream([text], make_rules())
    assert "".join(stream(text, make_rules())[0]) == "".join(whole)
    assert "".join(whole).count("<person>") == 40


def test_what_is_held_is_bounded_and_a_line_break_ends_it():
    detector = make_rules()[0].detector
    for text in ("Jane Doe " * 200, "J" * 500, "x" * 500, f"Jane {LONG}"):
        used = stream_filter.StreamFilter(make_rules(), b"")
        for char in text:
            used.add(char)
            assert used.n_held <= detector.longest
    used = stream_filter.StreamFilter(make_rules(), b"")
    assert used.add("Jane") == "" and used.add("\n") == "<person>\n"
    assert used.add("all in lower case") == "all in lower "


def test_a_name_is_one_intervention_and_each_word_is_scored_once():
    scorer = Scorer()
    cached = word_classifier.opener(lambda path: scorer)
    rules = stream_filter.rules([SPEC], cached)
    text = "Jane Doe is here, and Xerxes too, and Ada is not here."
    _, used = stream(text, rules)
    assert [(x.kind, x.position) for x in used.interventions] == [("person", 0), ("person", 38)]
    assert used.interventions[0].reason == "words that a classifier takes for person"
    windows = list(scorer.windows)
    assert [first_word(right) for _, right in windows] == [
        "Jane", "Doe", "Xerxes", "Ada"
    ]  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda _: stream([text], rules)[0], range(40)))
    assert results == [results[0]] * 40 and scorer.windows == windows


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(word_classifier, "MAX_CACHE", 3)
    scorer = Scorer()
    cached = word_classifier.CachedScorer(scorer)
    pairs = [(name, name) for name in NAMES]
    for _ in range(2):
        assert [p["person"] for p in cached(pairs)] == [0.9] * len(NAMES)
    assert len(scorer.windows) == 2 * len(NAMES) - 3
    assert len(cached._scores) == 3


def test_a_name_that_begins_before_the_text():
    scorer = Scorer()
    used = stream_filter.StreamFilter(make_rules(scorer), b"", "Ada is here, " * 200 + "of Jane D")
    assert (
        used.add("oe and Ada, ") + used.end("who is here") == "<person> and <person>, who is here"
    )
    assert [x.position for x in used.interventions] == [-6, 7]
    assert len(scorer.windows) < 30  # not all of the prompt


def test_threshold_and_actions():
    def left(**changes):
        return "".join(stream(["a Jane b Maybe c"], make_rules(**changes))[0])

    assert left(threshold=0.55) == left() == "a <person> b <person> c"
    assert left(threshold=0.56) == left(threshold=0.9) == "a <person> b Maybe c"
    assert left(threshold=0.91) == left(action="log") == "a Jane b Maybe c"
    assert left(action="refuse") == "a "


def test_a_label_that_the_run_lacks():
    with pytest.raises(ValueError, match="labels=..: name the labels"):
        make_rules(labels=())
    with pytest.raises(ValueError, match="runs/words has no label 'place': its labels are none, p"):
        make_rules(labels=("person", "place"))


def test_examples_have_the_windows_of_use():
    text = "On\u200b street 7 a Ja\u0301ne McDonald lived;\nso O'Brien said"
    parts = {"Ja\u0301ne McDonald": "person", "O'Brien": "person", "7": "number"}
    spans = [[text.index(part), text.index(part) + len(part), parts[part]] for part in parts]
    rows = list(word_classifier.examples({"text": text, "spans": spans}, "a.jsonl, line 1"))
    assert [(first_word(row["right"]), row["label"]) for row in rows] == [
        ("On", "none"), ("7", "number"), ("Jane", "person"), ("McDonald", "person"),
        ("O", "person"), ("Brien", "person"),
    ]  # fmt: skip
    scorer = Scorer()
    stream(text, make_rules(scorer))
    assert scorer.windows == [(row["left"], row["right"]) for row in rows]


@pytest.mark.parametrize(
    "spans, words",
    [
        ([[0, 5, "person"]], r"give \[start, end, label\] with positions from 0 to 4"),
        ([[2, 2, "person"]], "give .start"),
        ([[0, 4]], "give .start"),
        ([["0", 4, "person"]], "give .start"),
        (["Jane"], "give .start"),
        ([[0, 4, "none"]], "has the label 'none', which is that of all other words"),
        ({}, "'spans' is {}"),
    ],
)
def test_spans_that_are_refused(spans, words):
    with pytest.raises(ValueError, match=f"a.jsonl, line 3.*{words}") as caught:
        list(word_classifier.examples({"text": "Jane", "spans": spans}, "a.jsonl, line 3"))
    assert "\n" not in str(caught.value)
