"""A mixture gives each source its weight in every prefix, and any row at any time."""

import numpy as np
import pytest

from gptjax.data import mixture

WEIGHTS = [
    [60, 22, 8, 8, 3],
    [0.6, 0.4],
    [1.0],
    [1, 1, 1],
    [5, 1, 1, 1, 1, 1, 1],
    [1 / 3, 2 / 3],
    [0.001, 1],
    [0.123, 0.456, 0.421, 7.9],
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_prefix_has_the_weights_to_within_one_row(weights):
    mixed = mixture.Mixture(weights)
    n = min(2 * mixed.n_rows + 3, 20_000)
    drawn = [mixed(row) for row in range(n)]
    counts = np.cumsum(np.eye(len(weights))[[source for source, _ in drawn]], axis=0)
    shares = np.outer(np.arange(1, n + 1), np.array(weights) / sum(weights))
    assert np.abs(counts - shares).max() < 1
    for source in range(len(weights)):
        assert [row for s, row in drawn if s == source] == list(range(int(counts[-1, source])))


def test_far_rows_need_nothing_before_them():
    mixed = mixture.Mixture([60, 22, 8, 8, 3])
    far = 101 * 10**9
    assert [mixed(far + i)[0] for i in range(101)] == [mixed(i)[0] for i in range(101)]
    assert mixed(far) == (mixed(0)[0], mixed(0)[1] + 10**9 * [60, 22, 8, 8, 3][mixed(0)[0]])


def test_awkward_weights_are_rounded_and_nobody_starves():
    assert mixture.integer_weights([0.123456789, 0.7, 1e-9]) == [
        9825,
        55711,
        1,
    ] and mixture.integer_weights([0.2, 0.3]) == [2, 3]


def test_rounded_weights_are_reported_and_a_different_mixture_is_refused():
    assert (
        mixture.check([60, 22, 8, 8, 3], "abcde") == []
        and mixture.check([1 / 3, 2 / 3], "ab") == []
    )
    (said,) = mixture.check([1.0, 3.73e-5], "ab")
    assert said == "b: its weight of 3.73e-05 is rounded to 1 row in 32,768, 0.818 times as much"
    with pytest.raises(
        ValueError,
        match=(
            r"b: its weight is 1e-06 of all weights, .* 15.3 times as much: raise its weight, or "
            r"leave"
        ),
    ):
        mixture.check([0.999999, 0.000001], "ab")
    mixed = mixture.Mixture([1.0, 3.73e-5])
    assert (
        mixed.shares
        == [32767 / 32768, 1 / 32768]
        == [np.mean([mixed(n)[0] == s for n in range(mixed.n_rows)]) for s in (0, 1)]
    )


def test_gpt3s_table():
    # Table 2.2's weights sum to 101. Its own column of epochs (0.44, 2.9, 1.9, 0.43, 3.4) is not
    # what weights and tokens come to, which is expected here.
    weights, tokens = [60, 22, 8, 8, 3], [410, 19, 12, 55, 3]
    assert np.allclose(
        np.array(mixture.epochs(weights, tokens, 300)) * 1.01,
        [0.44, 3.47, 2.00, 0.44, 3.00],
        atol=0.005,
    )
