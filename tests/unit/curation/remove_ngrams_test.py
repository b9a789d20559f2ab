"""GPT-3's filter of training text, rule by rule."""

import collections
import random

import pytest

from gptjax.config.decontamination import Filter, OverlapRule
from gptjax.curation import remove_ngrams

RULE = Filter()


def kept(text, spans, rule=RULE):
    count = collections.Counter()
    return remove_ngrams.clean_text(text, spans, rule, count), count


def test_a_document_without_a_match_stays_as_it_is():
    assert kept("short", [])[0] == ["short"]


def test_a_match_goes_with_200_characters_on_each_side():
    text = "a" * 1000 + "MATCH" + "b" * 1000
    found, count = kept(text, [(1000, 1005)])
    assert found == ["a" * 800, "b" * 800]
    assert (
        count["documents_cut"],
        count["pieces"],
        count["characters"],
        count["characters_kept"],
    ) == (1, 2, 2005, 1600)


def test_pieces_of_less_than_200_characters_go():
    assert kept("a" * 399 + "MATCH" + "b" * 400, [(399, 404)])[0] == ["b" * 200]
    found, count = kept("a" * 399 + "MATCH" + "b" * 399, [(399, 404)])
    assert found == [] and (count["documents_lost"], count["pieces_short"]) == (1, 2)


def test_documents_in_more_than_ten_pieces_go():
    def spans(n):
        return [(1000 * i, 1000 * i + 5) for i in range(1, n + 1)]

    assert len(kept("x" * 11_000, spans(9))[0]) == 10
    found, count = kept("x" * 11_000, spans(10))
    assert found == [] and count["documents_dropped"] == 1


def test_matches_that_overlap_are_one_cut():
    assert remove_ngrams.remaining_spans(
        3000, [(1500, 1560), (1505, 1570), (1700, 1710)], RULE
    ) == [(0, 1300), (1910, 3000)]
    assert remove_ngrams.remaining_spans(100, [(0, 100)], RULE) == []


def test_pieces_are_what_no_window_covers():
    chance = random.Random(0)
    for _ in range(300):
        length, rule = chance.randrange(1, 200), Filter(window=chance.randrange(20))
        starts = [chance.randrange(length) for _ in range(chance.randrange(1, 6))]
        spans = [(start, min(length, start + chance.randrange(1, 15))) for start in starts]
        covered = {
            at for start, end in spans for at in range(start - rule.window, end + rule.window)
        }
        left = [
            at
            for start, end in remove_ngrams.remaining_spans(length, spans, rule)
            for at in range(start, end)
        ]
        assert left == [at for at in range(length) if at not in covered]


def test_rules_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="window=-1: give a whole number from 0 to"):
        Filter(window=-1)
    with pytest.raises(ValueError, match="least=9 and most=8"):
        OverlapRule(least=9, most=8)
    with pytest.raises(ValueError, match="n=0"):
        Filter(n=0)
