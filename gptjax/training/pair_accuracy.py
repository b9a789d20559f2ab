"""How often a reward model scores the better of two completions higher, with an interval, and how
well its probabilities are calibrated."""

import dataclasses

import numpy as np

Z = 1.959964  # two-sided 95% of a normal distribution


@dataclasses.dataclass(frozen=True)
class Pairs:
    """All pairs of completions of different ranks. prompt: index of each pair's prompt. margin:
    score of the better completion minus that of the worse one."""

    prompt: np.ndarray
    margin: np.ndarray


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of right pairs, from `low` to `high` with a confidence of 95%."""

    share: float
    low: float
    high: float
    n_pairs: int
    n_prompts: int

    def __str__(self) -> str:
        return (
            f"accuracy {self.share:.1%} ({100 * self.low:.1f} to {100 * self.high:.1f}, 95%) of "
            f"{self.n_pairs:,} pairs"
        )


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Pairs in bins of the predicted probability that the completion with the higher score is the
    better one, from 0.5 to 1. predicted: its mean in each bin; observed: the share in which it was
    better, from low to high; n_pairs: in each bin. error: mean of |predicted - observed| over
    pairs."""

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_pairs: np.ndarray
    error: float


def find_pairs(scores_BK: np.ndarray, ranks_BK: np.ndarray) -> Pairs:
    """Returns the pairs of the completions of each prompt. ranks_BK: 0 is the best, -1 is none."""
    scores, ranks = np.asarray(scores_BK, np.float64), np.asarray(ranks_BK)
    is_better = (ranks[:, :, None] < ranks[:, None, :]) & (ranks[:, :, None] >= 0)
    prompt, i, j = np.nonzero(is_better)
    return Pairs(prompt, scores[prompt, i] - scores[prompt, j])


def wilson(share: float, n: float) -> tuple[float, float]:
    """Returns the interval of Wilson (1927) for a share of n independent trials."""
    center = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


def measure(pairs: Pairs) -> Accuracy:
    """Returns the accuracy over all pairs; equal scores are wrong.

    The pairs of one prompt share completions, so they are not independent: the interval is Wilson's
    for the number of independent pairs whose share would vary as this one does between prompts
    (Kish's design effect), and never for more than there are pairs. ValueError without pairs."""
    if not pairs.margin.size:
        raise ValueError("there are no pairs to measure")
    _, prompt = np.unique(pairs.prompt, return_inverse=True)
    is_right = (pairs.margin > 0).astype(np.float64)
    n_pairs, n_prompts = is_right.size, int(prompt.max()) + 1
    share = float(is_right.mean())
    n_right, n_each = np.bincount(prompt, is_right), np.bincount(prompt)
    n_independent = float(n_prompts)
    if n_prompts > 1 and 0 < share < 1:
        between = np.sum((n_right - share * n_each) ** 2) * n_prompts / (n_prompts - 1)
        if between > 0:
            n_independent = min(n_pairs, share * (1 - share) * n_pairs**2 / between)
    return Accuracy(share, *wilson(share, n_independent), n_pairs, n_prompts)


def calibrate(pairs: Pairs, n_bins: int = 10) -> Calibration:
    """Returns how the probabilities sigmoid(|margin|) compare with what was observed, in bins of
    equal width; empty bins are left out."""
    probability = 1 / (1 + np.exp(-np.minimum(np.abs(pairs.margin), 700)))
    is_right = pairs.margin > 0
    place = np.minimum(((probability - 0.5) * 2 * n_bins).astype(int), n_bins - 1)
    rows = []
    for n in range(n_bins):
        chosen = place == n
        if chosen.any():
            share, count = float(is_right[chosen].mean()), int(chosen.sum())
            rows.append((probability[chosen].mean(), share, *wilson(share, count), count))
    predicted, observed, low, high, count = (np.array(column) for column in zip(*rows, strict=True))
    error = float(np.sum(count * np.abs(predicted - observed)) / np.sum(count))
    return Calibration(predicted, observed, low, high, count, error)


def losses(loss: str, scores_BK: np.ndarray, ranks_BK: np.ndarray) -> np.ndarray:
    """Returns training.reward.ranking_loss (B,) in float64. loss: of config.chat.Rankings."""
    scores, ranks = np.asarray(scores_BK, np.float64), np.asarray(ranks_BK)
    if loss == "best_of":
        scores = np.where(ranks >= 0, scores, -np.inf)
        return np.logaddexp.reduce(scores, axis=1) - np.max(
            np.where(ranks == 0, scores, -np.inf), axis=1
        )
    pairs, n_prompts = find_pairs(scores, ranks), len(ranks)
    total = np.bincount(pairs.prompt, np.logaddexp(0, -pairs.margin), minlength=n_prompts)
    return total / np.bincount(pairs.prompt, minlength=n_prompts)
