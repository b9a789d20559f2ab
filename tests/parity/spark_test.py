"""Spark keeps the documents that the local engine keeps. Needs pyspark (requirements-spark.txt) and
Java; `make test-spark` runs it."""

import contextlib
import json
import pathlib
import shutil

import pytest

from gptjax.config import curation as config
from gptjax.curation import engine, features, parts, pipeline, spark
from tests import prose

pytest.importorskip("pyspark", reason="pyspark is not installed: make test-spark")
if not shutil.which("java"):
    pytest.skip("Java is not installed: openjdk-17-jre-headless", allow_module_level=True)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    # pyspark forks to start Java; other tests have started JAX by then
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]

STAGES = (
    config.QualityClassifier(
        positives=("clean",), negatives=("raw",), corpora=("raw",), alpha=1.0, documents=50
    ),
    config.ExactDuplicates(),
    config.FuzzyDuplicates(similarity=0.5, across=(("clean", "raw"),)),
)


@pytest.fixture(scope="module")
def context():
    with spark.open_engine("local[2]", 1) as work:
        yield work.context


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """clean/ and raw/ of tests/prose.py."""
    folder = tmp_path_factory.mktemp("crawl")
    clean, raw = prose.make_crawl(prose.read_paragraphs())
    for name, texts in (("clean/a", clean), ("raw/a", raw[:150]), ("raw/b", raw[150:])):
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def run(crawl, out, work, part_bytes=8000):
    corpora = (
        config.Corpus(name="clean", path=str(crawl / "clean")),
        config.Corpus(name="raw", path=str(crawl / "raw")),
    )
    rule = config.Curation(
        name="test", corpora=corpora, stages=STAGES, part_bytes=part_bytes, tokenizer=None
    )
    totals = pipeline.Pipeline(rule, out, work, lambda line: None).run(None, lambda stage: {})
    ids = [
        sorted(page.id for part in total.outputs for page in parts.read_pages(part))
        if total is totals[-1]
        else total.ledger
        for total in totals
    ]
    return ids, totals[-1].ledger


@pytest.fixture(scope="module")
def expected(crawl, tmp_path_factory):
    work = engine.Local(1, lambda label: contextlib.nullcontext(lambda done: None))
    return run(crawl, tmp_path_factory.mktemp("local"), work)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("part_bytes", [2000, 10**6])
def test_local_workers_and_parts(crawl, tmp_path, expected, workers, part_bytes):
    work = engine.Local(workers, lambda label: contextlib.nullcontext(lambda done: None))
    assert run(crawl, tmp_path, work, part_bytes) == expected


@pytest.mark.parametrize("partitions", [1, 4, 16])
def test_spark_partitions(crawl, tmp_path, context, expected, partitions):
    assert run(crawl, tmp_path, spark.Spark(context, partitions)) == expected


def test_spark_reports_failures(context):
    def refuse(n):
        if n == 2:
            raise ValueError("two is refused")
        return n

    work = spark.Spark(context, 2)
    assert work.map(refuse, [1, 3], "x") == [1, 3]
    with pytest.raises(ValueError, match="1 of 3 failed, the others are finished: 2: two is refus"):
        work.map(refuse, [1, 2, 3], "x")


def test_features_are_those_of_spark(context):
    from pyspark.ml.feature import HashingTF, Tokenizer
    from pyspark.sql import SparkSession

    texts = [" A b  c\u00a0d,\te \n", "", "  ", "Τέλος ΟΔΟΣ \u0130 😀", "x\x1cy z"]
    topics = pathlib.Path(pathlib.__file__).read_text()
    texts += [topics[i : i + 500] for i in range(0, 5000, 500)]
    frame = SparkSession(context).createDataFrame([(text,) for text in texts], ["text"])
    words = Tokenizer(inputCol="text", outputCol="words").transform(frame)
    rows = HashingTF(inputCol="words", outputCol="tf").transform(words).collect()
    for text, row in zip(texts, rows, strict=True):
        assert features.words(text) == row.words
        indices, counts = features.hashing_tf(text, 2**18)
        assert (indices.tolist(), counts.tolist()) == (
            row.tf.indices.tolist(),
            row.tf.values.tolist(),
        )
