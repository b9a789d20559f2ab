"""The mixture of sources: which source each row of a run comes from, so that every prefix of the
rows has the sources in proportion to their weights. numpy only.

GPT-3 (section 2.2, Table 2.2) samples its sources by weight, not by size: some are read three
times, some less than once.
"""

import fractions
import math
from collections.abc import Sequence

import numpy as np

MAX_PERIOD = 65_536  # rows in one period of the mixture
# Factors by which rounding may raise or lower a source's weight before a line is printed, or
# the mixture is refused.
WARN_FACTOR, ERROR_FACTOR = 1.01, 1.5


class Mixture:
    """An endless sequence of (source, row of that source) in which each source's share of every
    prefix is its weight to within one row.

    The sequence is periodic. Weights that are decimal numbers of few digits are met exactly; where
    their common denominator exceeds 65,536 the weights are first rounded to 65,536ths.
    """

    def __init__(self, weights: Sequence[float]):
        """weights: positive, of any sum."""
        counts = integer_weights(weights)
        self.counts = np.array(counts, np.int64)  # rows of each source in a period
        self.schedule = chairman_schedule(counts)  # the source of each row in a period
        self.n_rows = len(self.schedule)  # in a period
        # Of each row in a period: how many rows of the same source precede it there.
        self.rank = np.empty(self.n_rows, np.int64)
        self.shares = [count / self.n_rows for count in counts]  # fraction of rows of each source
        for source, count in enumerate(counts):
            self.rank[self.schedule == source] = np.arange(count)

    def __call__(self, row: int) -> tuple[int, int]:
        """Returns the index of the source of row `row` of the run, and the number of rows of that
        source before it."""
        period, offset = divmod(row, self.n_rows)
        source = int(self.schedule[offset])
        return source, period * int(self.counts[source]) + int(self.rank[offset])

    def rows_before(self, row: int) -> list[int]:
        """Returns how many rows of each source precede row `row` of the run."""
        period, offset = divmod(row, self.n_rows)
        in_period = np.bincount(self.schedule[:offset], minlength=len(self.counts))
        return (period * self.counts + in_period).tolist()


def integer_weights(weights: Sequence[float]) -> list[int]:
    """Returns the number of rows that each source has in a period, in lowest terms, at least
    one."""
    exact = [fractions.Fraction(repr(float(weight))) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    counts = [int(weight * scale) for weight in exact]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    if sum(counts) <= MAX_PERIOD:
        return counts
    total = sum(exact)
    rounded = [max(1, round(weight / total * MAX_PERIOD)) for weight in exact]
    divisor = math.gcd(*rounded)
    return [count // divisor for count in rounded]


def check(weights: Sequence[float], names: Sequence[str]) -> list[str]:
    """Returns a line for each source whose share of the rows differs by more than 1% from its
    weight, because it is rounded to 65,536ths. Raises ValueError if one differs by a factor of 1.5
    or more: that would be a different mixture.
    """
    counts, lines = integer_weights(weights), []
    exact = [fractions.Fraction(repr(float(weight))) for weight in weights]
    for count, weight, name in zip(counts, exact, names, strict=True):
        share = weight / sum(exact)
        factor = float(fractions.Fraction(count, sum(counts)) / share)
        if max(factor, 1 / factor) >= ERROR_FACTOR:
            raise ValueError(
                f"{name}: its weight is {float(share):.3g} of all weights, and a mixture has no "
                f"finer share than 1 row in {MAX_PERIOD:,}, "
                f"{factor:.3g} times as much: raise its weight, or leave the source out"
            )
        if max(factor, 1 / factor) > WARN_FACTOR:
            lines.append(
                f"{name}: its weight of {float(share):.4g} is rounded to 1 row in "
                f"{sum(counts) / count:,.0f}, {factor:.3g} times as much"
            )
    return lines


def chairman_schedule(counts: Sequence[int]) -> np.ndarray:
    """Returns the source of each row of a period, an int32 array with counts[i] times i.

    In every prefix each of the n sources is off its share by at most 1 - 1 / (2 n - 2) rows:
    Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980). Each row goes to
    the source with the earliest deadline among those that are due. The arithmetic is exact, on
    integers scaled by slack * period.
    """
    n, period = len(counts), sum(counts)
    if n == 1:
        return np.zeros(1, np.int32)
    slack = 2 * n - 2
    schedule = np.empty(period, np.int32)
    owed = [0] * n  # slack * (row * counts[i] - period * rows so far)
    for row in range(period):
        best, earliest = -1, fractions.Fraction(0)
        for i, count in enumerate(counts):
            owed[i] += slack * count
            if owed[i] >= period:
                deadline = fractions.Fraction(slack * period - period - owed[i], count)
                if best < 0 or deadline < earliest:
                    best, earliest = i, deadline
        assert best >= 0, "Tijdeman's theorem: some source is always due"
        schedule[row] = best
        owed[best] -= slack * period
    return schedule


def epochs(weights: Sequence[float], tokens: Sequence[int], total_tokens: int) -> list[float]:
    """Returns how many times each source is read when total_tokens are drawn by weight, as in the
    last column of GPT-3's Table 2.2.

    weights: of any sum; with a Mixture's `shares` the result is exact. tokens: size of each source.
    """
    return [
        weight / sum(weights) * total_tokens / size
        for weight, size in zip(weights, tokens, strict=True)
    ]
