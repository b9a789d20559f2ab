"""The quality classifier of GPT-3 (Appendix A): logistic regression of texts of high quality
against raw pages, and the Pareto rule by which pages are kept.

"We keep a document iff np.random.pareto(alpha) > 1 - document_score", with alpha = 9. NumPy's
pareto is Lomax's distribution, which begins at 0, so that a page with score s is kept with
probability (2 - s)^-alpha. The random number of a page is a function of the seed and its id, so
that the pages kept do not depend on the order of the work.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from gptjax.config.curation import QualityClassifier
from gptjax.curation import features
from gptjax.curation.page import Dropped, Page
from gptjax.runtime import checksums

Array = np.ndarray
SCORE_BINS = 20  # of the counts of pages by score
MIN_DOCUMENTS = 10  # of a class
# Of the raw pages, at most this share is learned from: these pages score low, whatever they are.
RAW_SHARE = 0.1


def uniform(seed: int, purpose: str, page_id: str) -> float:
    """Returns a random number in [0, 1) that is a function of its arguments."""
    digest = hashlib.blake2b(f"{seed} {purpose} {page_id}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def pareto(alpha: float, u: float) -> float:
    """Returns the number of np.random.pareto's distribution whose cumulative probability is u."""
    return (1 - u) ** (-1 / alpha) - 1


def keep_probability(score: Array, alpha: float) -> Array:
    """Returns the probability with which a page of a score is kept."""
    return (2 - score) ** -alpha


# --- learning -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """Documents of one class. order: a random number of each, float64. starts: where the
    features of each begin, and the end of the last. indices, counts: of features.
    """

    order: Array
    starts: Array
    indices: Array
    counts: Array

    def save(self, path: pathlib.Path) -> None:
        """Saves the sample as one array of float64."""
        sizes = np.array([len(self.order), len(self.indices)], float)
        columns = (sizes, self.order, self.starts, self.indices, self.counts)
        checksums.save_array(path, np.concatenate([column.astype(float) for column in columns]))

    @classmethod
    def load(cls, path: pathlib.Path) -> "Sample":
        """Inverse of `save`. Raises a one-line ValueError for a damaged file."""
        content = checksums.read_array(path)
        n, n_features = content[:2].astype(int)
        order, starts, indices, counts = np.split(
            content[2:], np.cumsum([n, n + 1, n_features]).tolist()
        )
        return cls(order, starts.astype(int), indices.astype(int), counts.astype(int))


def rows(sample: Sample) -> list[tuple[Array, Array]]:
    """Returns (indices, counts) of the features of each document."""
    spans = zip(sample.starts[:-1], sample.starts[1:], strict=True)
    return [(sample.indices[start:end], sample.counts[start:end]) for start, end in spans]


def join(samples: Sequence[Sample]) -> Sample:
    """Returns the documents of several samples in sequence."""
    order = np.concatenate([sample.order for sample in samples])
    return make_sample(order, [row for sample in samples for row in rows(sample)])


def first(sample: Sample, n: int) -> Sample:
    """Returns the n documents with the smallest random numbers, by that number."""
    chosen = np.argsort(sample.order, kind="stable")[:n]
    every = rows(sample)
    return make_sample(sample.order[chosen], [every[i] for i in chosen])


def make_sample(order: Array, features_of: Sequence[tuple[Array, Array]]) -> Sample:
    """Returns a sample of documents, each with (indices, counts) of its features."""
    empty = np.zeros(0, np.int64)
    return Sample(
        order,
        np.cumsum([0, *(len(indices) for indices, _ in features_of)]),
        np.concatenate([empty, *(indices for indices, _ in features_of)]),
        np.concatenate([empty, *(counts for _, counts in features_of)]),
    )


def draw_sample(pages: Iterable[Page], rule: QualityClassifier, seed: int, share: float) -> Sample:
    """Returns the pages whose random number is below `share`."""
    order, features_of = [], []
    for page in pages:
        u = uniform(seed, "sample", page.id)
        if u < share:
            order.append(u)
            features_of.append(features.hashing_tf(page.text, rule.features))
    return make_sample(np.array(order), features_of)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A fitted classifier. weights: float64 (features,). bias: of the logit. auc: area under the
    ROC curve on held-out documents. documents: (positives, negatives) that it learned from.
    """

    weights: Array
    bias: float
    auc: float
    documents: tuple[int, int]

    def save(self, path: pathlib.Path) -> None:
        """Saves the model as one array."""
        head = [self.bias, self.auc, *self.documents]
        checksums.save_array(path, np.concatenate([head, self.weights]))

    @classmethod
    def load(cls, path: pathlib.Path) -> "Classifier":
        """Inverse of `save`. Raises a one-line ValueError for a damaged file."""
        content = checksums.read_array(path)
        return cls(content[4:], content[0], content[1], (int(content[2]), int(content[3])))

    def score(self, indices: Array, counts: Array) -> float:
        """Returns the probability of high quality of a document by its features."""
        logit = float((self.weights[indices] * counts).sum()) + self.bias
        return float(1 / (1 + np.exp(-np.clip(logit, -700, 700))))


def fit(positives: Sample, negatives: Sample, rule: QualityClassifier) -> Classifier:
    """Fits the classifier by L-BFGS. Raises ValueError if a class has too few documents.

    As in Spark's LogisticRegression features are divided by their standard deviation, and the
    penalty, rule.l2 / 2 times the sum of the weights' squares without the bias, is of weights of
    these; 100 iterations. Both classes weigh the same, however many documents they have [chosen].
    Every fifth document of a class is held out, and measures the AUC.
    """
    import scipy.optimize
    import scipy.sparse

    for name, sample in (("positives", positives), ("negatives", negatives)):
        if len(sample.order) < MIN_DOCUMENTS:
            raise ValueError(
                f"the quality classifier has {len(sample.order)} documents of its {name}; it needs "
                f"at least {MIN_DOCUMENTS}: name more data sets there, or leave the stage out with "
                "--without=quality_classifier"
            )
    both = join([positives, negatives])
    is_held_out = np.concatenate(
        [np.arange(len(sample.order)) % 5 == 4 for sample in (positives, negatives)]
    )
    is_positive = np.arange(len(both.order)) < len(positives.order)
    columns, indices = np.unique(both.indices, return_inverse=True)
    counts = scipy.sparse.csr_array(
        (both.counts.astype(float), indices, both.starts), shape=(len(both.order), len(columns))
    )
    x, y = counts[~is_held_out], np.where(is_positive, 1.0, -1.0)[~is_held_out]
    mean = x.mean(axis=0)
    deviation = np.sqrt(np.maximum((x * x).mean(axis=0) - mean * mean, 0))
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    x = (x @ scipy.sparse.diags_array(scale)).tocsr()
    share = np.where(y > 0, 0.5 / (y > 0).sum(), 0.5 / (y < 0).sum())  # of a document in the mean

    def loss(parameters: Array) -> tuple[float, Array]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = y * (x @ weights + bias)
        slope = -share * y * scipy.special.expit(-margin)
        value = share @ np.logaddexp(0, -margin) + rule.l2 / 2 * weights @ weights
        return value, np.append(x.T @ slope + rule.l2 * weights, slope.sum())

    found = scipy.optimize.minimize(
        loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 100}
    ).x
    weights = np.zeros(rule.features)
    weights[columns] = found[:-1] * scale
    logits = counts[is_held_out] @ weights[columns] + found[-1]
    auc = area_under_roc(logits[is_positive[is_held_out]], logits[~is_positive[is_held_out]])
    return Classifier(weights, float(found[-1]), auc, (len(positives.order), len(negatives.order)))


def area_under_roc(positives: Array, negatives: Array) -> float:
    """Returns the probability that a positive scores above a negative; a tie counts half."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, "left")
    not_above = np.searchsorted(ordered, positives, "right")
    return float((below + not_above).mean() / 2 / len(negatives))


# --- filtering ------------------------------------------------------------------------------------


class ScoreFilter:
    """The stage: keeps a page with the probability of its score. notes: for groups of scores how
    many pages there are, how many are kept, and the sum of their scores in millionths.
    """

    def __init__(self, rule: QualityClassifier, model: Classifier, seed: int):
        self._rule, self._model, self._seed = rule, model, seed
        self.notes: dict[str, int] = {}

    def __call__(self, page: Page) -> Page | Dropped:
        indices, counts = features.hashing_tf(page.text, self._rule.features)
        score = self._model.score(indices, counts)
        threshold = pareto(self._rule.alpha, uniform(self._seed, "pareto", page.id))
        is_kept = threshold > 1 - score
        group = f"{min(int(score * SCORE_BINS), SCORE_BINS - 1) / SCORE_BINS:.2f}"
        counts_of = {"score": 1, "kept": int(is_kept), "millionths": round(score * 1e6)}
        for name, n in counts_of.items():
            self.notes[f"{name} {group}"] = self.notes.get(f"{name} {group}", 0) + n
        return page if is_kept else Dropped("low quality", f"score {score:.4f}")
