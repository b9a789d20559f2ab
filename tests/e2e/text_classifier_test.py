"""A fine-tuned run as a classifier of texts of any length: in programs, in the server's flags."""

import concurrent.futures
import json
import random

import numpy as np
import pytest

from gptjax import classify, finetune, serve, train, word_examples
from gptjax.config import safety
from gptjax.safety import stream_filter, word_classifier
from gptjax.training.classification import refusal_reward, text_classifier

pytestmark = pytest.mark.usefixtures("lean")


def harm(scores):
    return [score["harmful"] for score in scores]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier, of a made-up task: texts of at most 14 bytes are harmful that hold RRR."""
    folder, draw = tmp_path_factory.mktemp("classifier"), random.Random(0)
    for split, n in (("train", 960), ("dev", 40)):
        rows = []
        for _ in range(n):
            label, word = draw.choice([("harmful", "RRR"), ("harmless", "SSS")])
            text = f"{draw.choice(['up', 'do'])} {word} {draw.choice(['it', 'a'])}"
            rows.append(json.dumps({"text": text, "label": label}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
    sets = ["model.n_ctx=64", "train.batch_tokens=512", "train.steps=3", "loop.every_sample=None"]
    flags = [f"--set={text}" for text in sets]
    assert train.main(["--config=smoke", f"--run_dir={folder / 'pre'}", *flags]) == 0
    sets = [f"task.{split}={folder / split}.jsonl" for split in ("train", "dev")]
    sets += ["task.peak_lr=1e-2", "task.batch_examples=16", "task.epochs=1"]
    flags = [f"--init={folder / 'pre'}", f"--run_dir={folder / 'refusal'}"]
    assert finetune.main(["--config=own", *flags, *[f"--set={text}" for text in sets]]) == 0
    return folder / "refusal"


@pytest.fixture(scope="module")
def classifier(run):
    return text_classifier.load(str(run), pytest.fail)


def test_probabilities_are_those_of_classify(run, classifier, tmp_path, capsys):
    texts = ["up RRR it", " do SSS a ", *[f"do RRR {i}" for i in range(16)], "\ud800x"]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts))
    capsys.readouterr()
    assert classify.main([f"--model={run}", f"--text={tmp_path / 'new.jsonl'}"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = classifier(texts)
    assert [list(scores) for scores in found] == [["harmful", "harmless"]] * len(texts)
    np.testing.assert_allclose(
        [list(scores.values()) for scores in found],
        [list(line["probabilities"].values()) for line in lines],
        atol=2e-6,
    )
    assert harm(found)[0] > 0.6 > 0.4 > harm(found)[1]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(classifier, [texts] * 8)) == [found] * 8


def test_no_part_of_a_long_text_is_lost(classifier):
    """Wherever the harmful part stands, its window is read; what is harmless stays so."""
    n = 40
    places = [" ".join(["SSS"] * i + ["RRR"] * 3 + ["SSS"] * (n - i)) for i in range(n + 1)]
    *found, base = harm(classifier([*places, " ".join(["SSS"] * n)]))
    assert min(found) > 0.6 > 0.4 > base
    assert len(classifier([""])) == 1


def test_work_that_is_not_wanted_any_more_ends_between_batches(run, classifier):
    n_left = 1

    def check():
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise KeyboardInterrupt

    ended = text_classifier.load(str(run), pytest.fail, check)  # which scores one text
    n_left = 2
    with pytest.raises(KeyboardInterrupt):
        ended(["RRR " * 2000])
    assert n_left == -1
    n_left = 1000
    assert ended(["do RRR a"]) == classifier(["do RRR a"])


@pytest.mark.parametrize("limit", [1, 2, 7, 14])
def test_windows_cover_a_text_and_its_parts(limit):
    for n in range(40):
        ids = list(range(n))
        found = list(text_classifier.windows(ids, limit))
        assert all(len(part) == min(n, limit) for part in found)
        size = max(1, limit // 2)
        for start in range(n - size + 1):
            part = ids[start : start + size]
            assert any(part == w[i : i + len(part)] for w in found for i in range(len(w)))
        assert found[-1] == ids[max(0, n - limit) :]


def test_the_flag_of_the_server(run, classifier, tmp_path):
    loaded = []

    def load(path):
        loaded.append(path)
        return classifier

    assert serve.open_moderation(None, load) is None
    model = serve.open_moderation(f"{run}:harmful", load)
    assert (model.name, model.labels, loaded) == ("refusal", ("harmful",), [str(run)])
    assert model.tokenize("ab") == list(b"ab")
    with pytest.raises(ValueError, match="has no label 'bad': its labels are harmful, harmless"):
        serve.open_moderation(f"{run}:harmful,bad", load)
    for flag in ("runs", "runs:", ":harmful", "runs:a,,b", "gs://bucket/run"):
        with pytest.raises(ValueError, match="names no label: give DIR:LABEL"):
            serve.open_moderation(flag, load)


def test_what_is_no_classifier_of_texts(run, tmp_path):
    for other in (tmp_path, run.parent / "pre"):
        with pytest.raises(ValueError) as caught:
            text_classifier.load(str(other), pytest.fail)
        assert "\n" not in str(caught.value) and str(other) in str(caught.value)


@pytest.fixture(scope="module")
def words(run):
    """A classifier of words, of a made-up task: RRR is a person, SSS is none."""
    folder, draw = run.parent / "words", random.Random(0)
    folder.mkdir()
    sets = [f"task.{split}={folder / split}.jsonl" for split in ("train", "dev")]
    for split, n in (("train", 960), ("dev", 40)):
        rows = []
        for _ in range(n):
            word, spans = draw.choice([("RRR", [[2, 5, "person"]]), ("SSS", [])])
            rows.append(json.dumps({"text": f"a {word} up.", "spans": spans}) + "\n")
        (folder / f"{split}.spans").write_text("".join(rows))
        flags = [f"--text={folder / split}.spans", f"--out={folder / split}.jsonl"]
        assert word_examples.main(flags) == 0
    sets += ["task.kind=entailment", "task.fields=('left','right')", "task.peak_lr=1e-2"]
    sets += ["task.batch_examples=16", "task.epochs=1", "task.lm_weight=0"]
    flags = [f"--init={run.parent / 'pre'}", f"--run_dir={folder / 'run'}"]
    assert finetune.main(["--config=own", *flags, *[f"--set={text}" for text in sets]]) == 0
    return folder / "run"


def test_a_classifier_of_words(run, words, tmp_path, capsys):
    def load(path):
        return text_classifier.load_pairs(path, word_classifier.FIELDS, pytest.fail)

    text = "a RRR up.\na SSS up.\n" * 12
    rules = stream_filter.rules([safety.WordClassifier(model=str(words))], load)
    assert stream_filter.filter_text(text, rules, b"")[0] == "a <person> up.\na SSS up.\n" * 12
    scorer = load(str(words))
    pairs = [("a RRR", "RRR up."), ("a SSS", "SSS up."), ("\ud800 ", "x")] * 9
    found = scorer(pairs)
    np.testing.assert_allclose(
        [score["person"] for score in found],
        [scorer([pair])[0]["person"] for pair in pairs],
        atol=1e-5,
    )
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(scorer, [pairs] * 8)) == [found] * 8
    for other in (run, run.parent / "pre", tmp_path):
        with pytest.raises(ValueError) as caught:
            load(str(other))
        assert "\n" not in str(caught.value) and str(other) in str(caught.value)
    with pytest.raises(ValueError, match="of kind entailment and metric accuracy"):
        text_classifier.load(str(words), pytest.fail)
    (tmp_path / "texts").write_text('{"text": "in lower case", "spans": []}\n')
    with pytest.raises(ValueError, match="texts has no word with a capital letter"):
        word_examples.main([f"--text={tmp_path / 'texts'}", f"--out={tmp_path / 'out'}"])


def test_a_reward_by_it(run):
    reward = refusal_reward.make(str(run), "harmful", user=None)
    answers = ["I cannot help with that.", "Here it is."]
    assert reward(["up RRR it", "up RRR it"], answers) == [1.0, -1.0]
    with pytest.raises(ValueError, match="has no label 'bad'"):
        refusal_reward.make(str(run), "bad")
