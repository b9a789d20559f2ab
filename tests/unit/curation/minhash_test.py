import itertools
import math

import numpy as np
import pytest

from gptjax.config.curation import FuzzyDuplicates
from gptjax.curation import minhash
from gptjax.curation.page import CORPUS_SHIFT


def words(text):
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def shingles(text, n):
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(max(1, len(found) - n + 1))} - {()}


def sets_of(texts, n):
    sets, ends = minhash.shingle_sets(texts, n)
    return np.split(sets, ends[:-1])


@pytest.mark.parametrize("n", [1, 3, 5])
def test_sets_have_the_jaccard_similarity_of_their_shingles(paragraphs, n):
    texts = [*paragraphs[:30], "", "two words", "Two, words!", "one"]
    texts += [text.replace("the", "a") for text in paragraphs[:30]]
    i, j, found = minhash.jaccard(sets_of(texts, n), sets_of(texts, n))
    similarity = {(a, b): s for a, b, s in zip(i.tolist(), j.tolist(), found, strict=True)}
    for a, b in itertools.product(range(len(texts)), repeat=2):
        x, y = shingles(texts[a], n), shingles(texts[b], n)
        expected = len(x & y) / len(x | y) if x | y else 0
        assert similarity.get((a, b), 0) == pytest.approx(expected, abs=1e-12), (texts[a], texts[b])


@pytest.mark.parametrize("least, is_pair", [(5 / 30, True), (5.01 / 30, False), (0, True)])
def test_two_sets_are_compared_as_many_are(least, is_pair):
    sets = [np.arange(10, dtype=np.uint32), np.arange(5, 30, dtype=np.uint32)]
    other = np.arange(100, 110, dtype=np.uint32)
    two = np.concatenate([*minhash.compare_group(np.array([3, 8]), sets, least)])
    three = np.concatenate([*minhash.compare_group(np.array([3, 8, 9]), [*sets, other], least)])
    assert two.tolist() == three.tolist() == [[3, 8]] * is_pair


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_a_pair_of_just_the_least_similarity_is_a_duplicate_in_a_group_of_any_size(digits):
    """...and one of a shingle less is not; with 0.55 * 100 > 55, floats alone decide otherwise."""
    n = 10**digits
    far = np.arange(10**6, 10**6 + 3, dtype=np.uint32)
    for common in range(1, n, 7 if digits == 3 else 1):
        share = float(f"{common / n:.{digits}f}")
        whole = np.arange(n, dtype=np.uint32)
        for size, found in ((common, [[3, 8]]), (common - 1, [])):
            sets = [whole, whole[:size]]
            two = np.concatenate([*minhash.compare_group(np.array([3, 8]), sets, share)])
            three = [*minhash.compare_group(np.array([3, 8, 9]), [*sets, far], share)]
            assert two.tolist() == np.concatenate(three).tolist() == found, share


def test_sets_without_a_common_shingle_are_no_pair_whatever_the_least_similarity():
    sets = [np.arange(i, i + 5, dtype=np.uint32) for i in (0, 10, 20)]
    for n in (2, 3):
        pairs = [*minhash.compare_group(np.arange(n), sets[:n], 0.0)]
        assert np.concatenate(pairs).tolist() == []


@pytest.mark.parametrize("bands, rows, similarity", [(10, 1, 0.1), (10, 1, 0.25), (8, 3, 0.5)])
def test_recall_is_the_banding_curve(bands, rows, similarity):
    rng = np.random.default_rng(3)
    n, size = 1500, 120
    common = round(2 * size * similarity / (1 + similarity))
    similarity = common / (2 * size - common)
    rule = FuzzyDuplicates(bands=bands, rows=rows)

    def keys(sets):
        return minhash.band_keys(sets.reshape(-1), size * np.arange(1, n + 1), rule)

    a = rng.integers(2**32, size=(n, size), dtype=np.uint32)
    b = a.copy()
    b[:, common:] = rng.integers(2**32, size=(n, size - common), dtype=np.uint32)
    equal = keys(a) == keys(b)
    for found, expected in (
        (equal.any(1).mean(), 1 - (1 - similarity**rows) ** bands),
        (equal.mean(), similarity**rows),
    ):
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_clusters_join_pairs_and_name_the_smallest():
    pairs = np.array([[3, 9], [1, 3], [4, 5], [9, 20]])
    assert minhash.clusters(pairs).tolist() == [[3, 1], [5, 4], [9, 1], [20, 1]]
    assert minhash.clusters(np.zeros((0, 2), np.int64)).tolist() == []


def test_across_data_sets_the_second_gives_way():
    first, second = (place << CORPUS_SHIFT for place in range(2))
    pairs = np.array(
        [
            [first + 1, first + 2],  # within
            [first + 2, second + 1],  # across, with a page that is dropped itself
            [second + 1, second + 4],
            [second + 5, second + 6],
        ]
    )
    assert minhash.duplicates(pairs, [(0, 1)]).tolist() == [
        [first + 2, first + 1],
        [second + 1, first + 2],
        [second + 4, second + 1],
        [second + 6, second + 5],
    ]
    back = np.array([[first + 1, second + 1]])
    assert minhash.duplicates(back, [(1, 0)]).tolist() == [[first + 1, second + 1]]
    assert minhash.duplicates(back, [(0, 2), (1, 2)]).tolist() == []


def test_a_band_finds_the_pairs_that_all_comparisons_find(paragraphs, tmp_path):
    rule = FuzzyDuplicates(bands=20, rows=1, similarity=0.5)
    texts = paragraphs[:60] + [f"{text} and some more" for text in paragraphs[:20]]
    texts += [paragraphs[0]] * 3  # a group of more than two
    stems = []
    for n, numbers in enumerate((range(0, 40), range(40, len(texts)))):
        stems.append(tmp_path / f"part{n}")
        found = minhash.sketch([texts[i] for i in numbers], list(numbers), rule)
        minhash.save_sketches(stems[-1], [found])
    pairs = [minhash.compare_band(minhash.BandTask(tuple(stems), band, rule)) for band in range(20)]
    sets = [shingles(text, 5) for text in texts]
    expected = [
        [a, b]
        for a, b in itertools.combinations(range(len(texts)), 2)
        if len(sets[a] & sets[b]) >= 0.5 * len(sets[a] | sets[b])
    ]
    assert len(expected) > 20
    assert np.unique(np.concatenate(pairs), axis=0).tolist() == expected


def test_sketches_of_batches_are_those_of_all_at_once(paragraphs, tmp_path):
    rule = FuzzyDuplicates()
    whole = [minhash.sketch(paragraphs[:9], list(range(9)), rule)]
    cut = [
        minhash.sketch(paragraphs[i : min(i + 4, 9)], list(range(i, min(i + 4, 9))), rule)
        for i in (0, 4, 8)
    ]
    for name, sketches in (("whole", whole), ("cut", cut)):
        minhash.save_sketches(tmp_path / name, sketches)
        assert minhash.are_intact(tmp_path / name)
    a, b = (minhash.Sketches([tmp_path / name]) for name in ("whole", "cut"))
    for row in range(9):
        assert a.shingles(row).tolist() == b.shingles(row).tolist()
        assert a.keys(row).tolist() == b.keys(row).tolist()
    (tmp_path / "cut.keys.npy").write_bytes(b"")
    assert not minhash.are_intact(tmp_path / "cut")
