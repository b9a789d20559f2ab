import math

import numpy as np
import pytest

from gptjax.config.curation import QualityClassifier
from gptjax.curation import classifier, features, report_page
from gptjax.curation.page import Dropped, Page

RULE = QualityClassifier(positives=("a",), negatives=("b",), corpora=("b",), documents=100)


def page(number, text):
    return Page(number, f"b/x#{number}", "", text)


# Of pyspark 4.3.0: Tokenizer, then HashingTF(numFeatures=1000).
SPARK = {
    " A b  c\u00a0d,\te \n": (
        ["", "a", "b", "", "c\u00a0d,", "e"],
        {165: 1, 316: 1, 372: 2, 467: 1, 550: 1},
    ),
    "a a B \u00c9": (["a", "a", "b", "\u00e9"], {165: 1, 467: 2, 903: 1}),
    "": ([""], {372: 1}),
    "  ": ([], {}),
    "The quick  brown \u0130STANBUL \u039f\u0394\u039f\u03a3 \U0001f600 fox": (
        "the quick  brown i\u0307stanbul \u03bf\u03b4\u03bf\u03c2 \U0001f600 fox".split(" "),
        {17: 1, 153: 1, 193: 1, 372: 1, 379: 1, 718: 1, 868: 1, 956: 1},
    ),
}


@pytest.mark.parametrize("text", SPARK, ids=range(len(SPARK)))
def test_words_and_features_are_those_of_spark(text):
    words, expected = SPARK[text]
    assert features.words(text) == words
    indices, counts = features.hashing_tf(text, 1000)
    assert dict(zip(indices.tolist(), counts.tolist(), strict=True)) == expected
    assert indices.tolist() == sorted(indices)


def test_pareto_has_the_distribution_of_numpys():
    """Quantiles of np.random.pareto(9), against its own cumulative distribution 1 - (1 + x)^-9."""
    drawn = np.random.default_rng(0).pareto(9, 200_000)
    for u in (0.1, 0.5, 0.9, 0.99):
        x = classifier.pareto(9, u)
        assert abs((drawn < x).mean() - u) < 4 * math.sqrt(u * (1 - u) / len(drawn))


@pytest.mark.parametrize("score", [0.0, 0.3, 0.8, 0.97])
def test_pages_are_kept_at_the_papers_rate(score):
    n = 20_000
    weights = np.zeros(RULE.features)
    bias = -1000.0 if score == 0 else math.log(score / (1 - score))
    stage = classifier.ScoreFilter(RULE, classifier.Classifier(weights, bias, 1.0, (1, 1)), 0)
    outcomes = [stage(page(number, "x")) for number in range(n)]
    rate = sum(not isinstance(outcome, Dropped) for outcome in outcomes) / n
    expected = (2 - score) ** -9
    assert abs(rate - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    low = math.floor(score * 20) / 20
    assert stage.notes[f"score {low:.2f}"] == n
    assert stage.notes[f"kept {low:.2f}"] == round(rate * n)
    ((mean, pages, kept),) = report_page.keep_rates(stage.notes)
    assert (pages, kept) == (n, round(rate * n)) and mean == pytest.approx(score, abs=1e-6)
    dropped = next(outcome for outcome in outcomes if isinstance(outcome, Dropped))
    assert dropped == Dropped("low quality", f"score {score:.4f}")


def test_a_pages_fate_depends_on_seed_and_id_alone():
    model = classifier.Classifier(np.zeros(RULE.features), 2.5, 1.0, (1, 1))
    pages = [page(number, f"text {number}") for number in range(300)]

    def kept(seed, order):
        stage = classifier.ScoreFilter(RULE, model, seed)
        return {p.id for p in order if stage(p) is p}

    assert kept(0, pages) == kept(0, pages[::-1])
    assert kept(0, pages) != kept(1, pages)


def samples(paragraphs, seed=0):
    """Prose, and the same words in another order with markup."""
    rng = np.random.default_rng(seed)
    noise = [f"<td> {' | '.join(rng.permutation(text.split()))}" for text in paragraphs]
    return [
        classifier.draw_sample([page(n, text) for n, text in enumerate(texts)], RULE, 0, 1.0)
        for texts in (paragraphs, noise)
    ]


def test_prose_scores_above_noise(paragraphs):
    good, bad = samples(paragraphs[:200])
    model = classifier.fit(good, bad, RULE)
    assert model.auc > 0.99 and model.documents == (200, 200)
    good, bad = samples(paragraphs[200:260], seed=1)
    scores = [
        np.array([model.score(*row) for row in classifier.rows(sample)]) for sample in (good, bad)
    ]
    assert (scores[0] > scores[1]).mean() > 0.95 and scores[1].max() < 0.5


def test_the_fit_is_a_minimum_of_the_loss(paragraphs):
    """The gradient of the loss, by differences, with scikit-learn's and Spark's definition."""
    good, bad = samples(paragraphs[:40])
    rule = QualityClassifier(
        positives=("a",), negatives=("b",), corpora=("b",), features=64, l2=0.5
    )
    shrunk = [
        classifier.make_sample(
            sample.order,
            [
                (np.unique(row % 64), np.bincount(row % 64)[np.unique(row % 64)])
                for row, _ in classifier.rows(sample)
            ],
        )
        for sample in (good, bad)
    ]
    model = classifier.fit(*shrunk, rule)
    rows = [
        (i % 5 != 4, y, np.bincount(row, counts, 64))
        for y, sample in ((1, shrunk[0]), (-1, shrunk[1]))
        for i, (row, counts) in enumerate(classifier.rows(sample))
    ]
    x = np.array([row for used, _, row in rows if used])
    y = np.array([label for used, label, _ in rows if used])
    deviation = x.std(0)

    def loss(weights, bias):
        losses = np.logaddexp(0, -y * (x @ weights + bias))
        scaled = weights * deviation
        return (losses[y > 0].mean() + losses[y < 0].mean()) / 2 + 0.25 * scaled @ scaled

    at = loss(model.weights, model.bias)
    rng = np.random.default_rng(0)
    for _ in range(50):
        step = rng.normal(size=64) * (deviation > 0) * 0.01
        assert loss(model.weights + step, model.bias + rng.normal() * 0.01) > at


def test_area_under_roc_counts_ties_as_halves():
    assert classifier.area_under_roc(np.array([3.0, 1.0]), np.array([1.0, 0.0])) == 7 / 8


def test_too_few_documents_are_refused(paragraphs):
    good, bad = samples(paragraphs[:9])
    with pytest.raises(ValueError, match="9 documents of its positives; it needs at least 10"):
        classifier.fit(good, bad, RULE)


def test_samples_and_models_are_read_as_written(paragraphs, tmp_path):
    good, bad = samples(paragraphs[:20])
    good.save(tmp_path / "sample.npy")
    again = classifier.Sample.load(tmp_path / "sample.npy")
    for name in ("order", "starts", "indices", "counts"):
        assert np.array_equal(getattr(good, name), getattr(again, name))
    model = classifier.fit(good, bad, RULE)
    model.save(tmp_path / "model.npy")
    again = classifier.Classifier.load(tmp_path / "model.npy")
    assert np.array_equal(again.weights, model.weights)
    assert (again.bias, again.auc, again.documents) == (model.bias, model.auc, model.documents)


def test_the_first_of_a_joined_sample_have_the_smallest_numbers(paragraphs):
    good, bad = samples(paragraphs[:20])
    both = classifier.join([good, bad])
    chosen = classifier.first(both, 7)
    assert chosen.order.tolist() == sorted(both.order)[:7]
    row = int(np.argmin(both.order))
    span = slice(both.starts[row], both.starts[row + 1])
    assert chosen.indices[: chosen.starts[1]].tolist() == both.indices[span].tolist()
