"""A tiny model asked by each method, against sums made one token at a time."""

import dataclasses
import json
import math
import random
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import reproduce_gpt2
from gptjax.config import data, evaluation
from gptjax.data.tokenizers import build
from gptjax.evals import detokenizers, eval_model, prompts, registry, runner, task_data
from gptjax.evals.loglikelihood import LogLikelihood
from gptjax.evals.task import Item, Task
from gptjax.model import gpt, inference
from gptjax.weights import export_hf, open_model
from tests import tokenizers
from tests.unit.weights import load_test as tools

TEXT = build.ByteTokenizer()
WIKI = (
    ' \n = Robert @-@ Boulter = \n \n It cost 1 @,@ 000 ( about 3 @.@ 5 ) ; he \'s " an actor " . '
    "It rains . \n"
)
N_CTX = 12


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """(folder of weights, EvalModel, the plain model's log-probabilities of the token after a
    context)."""
    place, c = tmp_path_factory.mktemp("theirs"), tools.config("gpt2")
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, n_layers=1))
    assert c.model.n_ctx == N_CTX
    params = jax.tree.map(lambda x: 0.3 * x, tools.random(c.model))
    export_hf.save(place, c, params, TEXT)
    opened = open_model.open_model(place, [], lambda said: None)
    about = {"name": "gpt2_124m", "parameters": 1, "n_ctx": N_CTX, "digest": opened.digest}
    model = eval_model.EvalModel(
        inference.prepare(opened.train_step.model, opened.params),
        TEXT,
        opened.train_step.model.sharding,
        about,
    )
    plain = tools.step.build(
        c, "cpu", tools.device_mesh.make_mesh(c.mesh, jax.devices()[:1]), None
    ).model

    @jax.jit
    def log_probabilities(tokens_BT):
        logits = gpt.logits(
            cast(jax.Array, plain.apply({"params": params}, tokens_BT)),
            params["token_VD"],
            c.model.n_vocab,
        )
        return jax.nn.log_softmax(logits[0])

    def after(context):
        padded = jnp.asarray([[*context, *[0] * (N_CTX - len(context))]], jnp.int32)
        return np.asarray(log_probabilities(padded))[len(context) - 1].astype(np.float64)

    return place, model, after


def likely(after, context, completion):
    """Nats of the completion's tokens after the context, each by itself."""
    x = [*context, *completion]
    return sum(after(x[:at])[x[at]] for at in range(len(context), len(x)))


def outcomes(model, method, *items, metric: evaluation.Metric = "accuracy", example=None, put=None):
    how = evaluation.Protocol(shots=0, method=method, metric=metric)
    task = Task(
        name="t",
        summary="",
        protocol=how,
        items=put or (lambda *row: []),
        schema={},
        example=example or {},
    )
    exam = runner.TaskRun("t", task, how, 0, 0, None)
    made = exam.build_prompts(list(items), [], model, silent)
    return {
        outcome["id"]: outcome for outcome in eval_model.generate_outcomes(method, 0, model, made)
    }


def silent(said):
    pass


def test_choices_are_compared_after_their_context(there):
    _, model, after = there
    items = [
        Item(id=str(n), contexts=("ab",), completions=(" c", " de", " def")[: n + 1])
        for n in range(3)
    ]
    found = outcomes(model, evaluation.PerToken(), *items)
    for item in items:
        expected = [likely(after, b"ab", text.encode()) for text in item.completions]
        assert found[item.id]["log_probabilities"] == pytest.approx(expected, abs=1e-4)
        assert found[item.id]["tokens"] == [len(text) for text in item.completions]


def test_an_ending_is_compared_after_each_context(there):
    _, model, after = there
    item = Item(id="w", contexts=("the cat", "the mat"), completions=(" was",))
    found = outcomes(model, evaluation.Total(), item)["w"]["log_probabilities"]
    assert found == pytest.approx(
        [likely(after, context.encode(), b" was") for context in item.contexts], abs=1e-4
    )


def test_unconditional_divides_by_the_answers_own(there):
    _, model, after = there
    item = Item(id="u", contexts=("Q: x",), completions=(" yes", " no"))
    found = outcomes(model, evaluation.Unconditional(answer_context="A:"), item)["u"]
    assert found["log_probabilities"] == pytest.approx(
        [likely(after, b"Q: x", text) for text in (b" yes", b" no")], abs=1e-4
    )
    assert found["before"] == pytest.approx(
        [likely(after, b"A:", text) for text in (b" yes", b" no")], abs=1e-4
    )


def test_unconditional_of_an_ending_is_the_same_after_each_context(there):
    _, model, after = there
    item = Item(id="w", contexts=("the cat", "the mat"), completions=(" was",))
    found = outcomes(model, evaluation.Unconditional(answer_context="A:"), item)["w"]
    assert found["before"] == pytest.approx([likely(after, b"A:", b" was")] * 2, abs=1e-4)


def test_calibrated_divides_by_the_mean_after_items_without_content(there):
    _, model, after = there

    def put(row, how, shots):
        return [Item(id="c", contexts=(f"Q: {row['text']}",), completions=(" yes", " no"))]

    (item,) = put({"text": "x"}, None, 0)
    found = outcomes(
        model, evaluation.Calibrated(content_free=("N/A", "")), item, example={"text": "x"}, put=put
    )["c"]
    for before, text in zip(found["before"], (b" yes", b" no"), strict=True):
        mean = (
            math.exp(likely(after, b"Q: N/A", text)) + math.exp(likely(after, b"Q:", b" " + text))
        ) / 2
        assert before == pytest.approx(math.log(mean), abs=1e-3)


def test_calibration_keeps_the_demonstrations(there, monkeypatch):
    """What is asked without the item has the description and the demonstrations that the item
    has."""
    asked = []
    monkeypatch.setattr(
        eval_model.loglikelihood,
        "loglikelihood",
        lambda model, questions, *more: asked.extend(questions) or iter(()),
    )

    def put(row, how, shots):
        return [Item(id=row["text"], contexts=(f"{row['text']}:",), completions=(" y", " n"))]

    how = evaluation.Protocol(
        shots=1,
        method=evaluation.Calibrated(content_free=("N/A",)),
        metric="accuracy",
        description="D",
        separator="\n",
    )
    task = Task(name="t", summary="", protocol=how, items=put, schema={}, example={"text": "x"})
    (item,), (shown,) = put({"text": "q"}, how, 1), put({"text": "s"}, how, 1)
    exam = runner.TaskRun("t", task, how, 1, 0, None)
    list(
        eval_model.generate_outcomes(
            how.method, 0, there[1], exam.build_prompts([item], [shown], there[1], silent)
        )
    )
    assert {TEXT.decode(question.context) for question in asked} == {"D\ns: y\nq:", "D\ns: y\nN/A:"}


def test_items_demonstrations_and_a_sample_of_them():
    """Demonstrations are drawn from their own split, and from all of it where it is the one that
    is asked."""
    how = evaluation.Protocol(shots=1, method=evaluation.Total(), metric="accuracy")

    def drawn(splits, examples, shots=1, seed=0):
        task = Task(
            name="t", summary="", protocol=how, items=put, schema={}, example={}, splits=splits
        )
        found = runner.TaskRun("t", task, how, shots, seed, examples).load_items(read)
        return tuple([item.id for item in part] for part in found)

    def put(row, how, shots):
        return [Item(id=row["id"], contexts=("c",), completions=(" a",))]

    def read(split):
        return task_data.Rows(split, tuple({"id": f"{split} {n}"} for n in range(20)))

    all_of = {split: [f"{split} {n}" for n in range(20)] for split in ("test", "train")}
    assert drawn(("test", "train"), None) == (all_of["test"], all_of["train"])
    asked, pool = drawn(("test", "test"), 5)
    assert len(set(asked)) == 5 and set(asked) < set(all_of["test"]) and pool == all_of["test"]
    assert (
        asked != all_of["test"][:5]
        and asked != drawn(("test", "test"), 5, seed=1)[0]
        and asked == drawn(("test", "test"), 5)[0]
    )


def test_the_digest_tells_protocol_seed_model_and_prompts(there):
    how = evaluation.Protocol(shots=0, method=evaluation.Total(), metric="accuracy")
    item = Item(id="a", contexts=("c",), completions=(" a", " b"))

    def digest(how=how, seed=0, model=there[1], item=item):
        task = Task(
            name="t", summary="", protocol=how, items=lambda *row: [], schema={}, example={}
        )
        return runner.TaskRun("t", task, how, 0, seed, None).digest(
            model, [prompts.fit_context(item, [], how, TEXT, N_CTX)]
        )

    others = [
        digest(how=dataclasses.replace(how, method=evaluation.PerToken())),
        digest(seed=1),
        digest(
            model=dataclasses.replace(there[1], metadata=there[1].metadata | {"digest": "another"})
        ),
        digest(item=dataclasses.replace(item, completions=(" a", " c"))),
    ]
    assert digest() == digest() and len({digest(), *others}) == 5


@pytest.mark.parametrize(
    ("fields", "of_version_69b0a80"),
    [
        (
            {
                "shots": 15,
                "method": evaluation.LastWord(stop_words=True),
                "metric": "accuracy",
                "description": 'it\'s "Word(a=1)"\n\u00e9',
                "description_min_shots": 1,
                "prompt_variant": "plain",
            },
            "6a72eb649632f5a1",
        ),
        (
            {"shots": 0, "method": evaluation.Beam(n_tokens=12, alpha=1e-5), "metric": "f1"},
            "e1d9ab04a262d6c9",
        ),
    ],
)
def test_the_digest_is_that_of_earlier_versions(there, fields, of_version_69b0a80):
    item = Item(id="1", contexts=("a",), completions=(" b",))
    model = dataclasses.replace(there[1], metadata={"name": "m"})
    protocol = evaluation.Protocol(**fields)
    task = Task(
        name="t", summary="", protocol=protocol, items=lambda *row: [], schema={}, example={}
    )
    prompt = prompts.Prompt(
        item=item, contexts=("a",), demonstration_ids=(), context_tokens=(), completion_tokens=()
    )
    task_run = runner.TaskRun("t", task, protocol, 0, 3, None)
    assert task_run.digest(model, [prompt]) == of_version_69b0a80


def test_a_models_digest_tells_its_parameters_and_its_tokenizer():
    def digest(params, text):
        nothing = {field.name: None for field in dataclasses.fields(open_model.LoadedModel)}
        return open_model.LoadedModel(**nothing | {"tokenizer": text, "params": params}).digest

    one, other = {"gain_D": jnp.ones(3)}, {"gain_D": jnp.ones(3).at[1].set(2)}
    words = dataclasses.make_dataclass("Words", [("digest", str)])("w")
    assert (
        digest(one, TEXT) == digest(one, TEXT)
        and len({digest(one, TEXT), digest(other, TEXT), digest(one, words)}) == 3
    )


def test_the_last_word_is_predicted_or_not(there):
    _, model, after = there
    context, best = next(
        (text, best)
        for text in "abcdefghijklmnop"
        if 33 <= (best := int(after(text.encode()).argmax())) < 127
    )
    items = [
        Item(id=name, contexts=(context,), completions=(chr(code),))
        for name, code in (("said", best), ("not", best - 1))
    ]
    found = outcomes(model, evaluation.LastWord(), *items)
    assert [found[item.id]["greedy"] for item in items] == [[True], [False]]


def test_stop_words_are_banned_tokens():
    words = build.build(data.Gpt2Bpe())
    banned = eval_model._banned_tokens(evaluation.LastWord(stop_words=True), words)
    assert {words.decode([token]) for token in banned} >= {" the", " and", " it"} and len(
        banned
    ) > 100
    assert (
        eval_model._banned_tokens(evaluation.LastWord(), words)
        == ()
        == eval_model._banned_tokens(evaluation.Total(), words)
    )


@pytest.mark.parametrize("stride", [None, 5])
def test_every_token_of_a_text_is_read_once_after_what_its_window_holds(there, stride):
    _, model, after = there
    x, step = [256, *WIKI.encode()], stride or N_CTX
    expected, total = [], 0.0
    for start in range(1, len(x), step):
        stop = min(start + step, len(x))
        expected.append(
            sum(after(x[max(0, stop - 1 - N_CTX) : at])[x[at]] for at in range(start, stop))
        )
        total += stop - start
    found = outcomes(
        model,
        evaluation.Windows(stride=stride),
        Item(id="t", contexts=("",), completions=(WIKI,)),
        metric="perplexity",
    )["t"]
    assert found["log_probabilities"] == pytest.approx(expected, abs=1e-4) and sum(
        found["tokens"]
    ) == total == len(WIKI)


def test_a_stride_beyond_the_context_is_refused(there):
    with pytest.raises(ValueError, match="stride=13: give 1 to 12, the model's context"):
        outcomes(
            there[1],
            evaluation.Windows(stride=13),
            Item(id="t", contexts=("",), completions=("a",)),
            metric="perplexity",
        )


class Answers:
    """Stands for the model: chance for likelihoods, and for what is written always the same."""

    @staticmethod
    def loglikelihood(model, questions, sharding, banned=()):
        draw = random.Random(0)
        for number, question in enumerate(questions):
            told = [
                LogLikelihood(-draw.random(), len(tokens), draw.random() < 0.5, draw.random() < 0.5)
                for tokens in question.completions
            ]
            yield number, tuple(told)

    @staticmethod
    def generate_until(model, asked, method, text, key):
        yield from ((number, " a lamp") for number in range(len(asked)))


WAYS = [
    (name, how) for name, task in registry.all_tasks().items() for how in (None, *task.conventions)
]


@pytest.mark.parametrize("name,convention", WAYS)
def test_every_task_runs_by_each_of_its_conventions(there, tmp_path, monkeypatch, name, convention):
    """From a row to a record; what a second reading makes of the outcomes on disk is the same."""
    task = registry.get_task(f"{name}:{convention}" if convention else name)
    monkeypatch.setattr(eval_model.loglikelihood, "loglikelihood", Answers.loglikelihood)
    monkeypatch.setattr(eval_model.generation, "generate_until", Answers.generate_until)
    monkeypatch.setattr(runner.metrics, "N_RESAMPLES", 20)
    model = there[1]
    long = model.inference_model.model.clone(
        config=dataclasses.replace(model.inference_model.model.config, n_ctx=4096)
    )
    model = dataclasses.replace(model, inference_model=model.inference_model.replace(model=long))
    rows_of = task_data.Rows("here", tuple({**task.example, "id": str(n)} for n in range(3)))

    def numbered(
        row, how, shots
    ):  # or each would be the same item as the others, and none of them a demonstration
        for item in task.items(row, how, shots):
            texts = tuple(f"{row['id']}. {context}" for context in item.contexts)
            yield dataclasses.replace(
                item,
                contexts=texts,
                demonstration=item.demonstration and f"{row['id']}. {item.demonstration}",
            )

    for shots in (0, 1):
        exam = runner.TaskRun(
            name, dataclasses.replace(task, items=numbered), task.protocol, shots, 0, None
        )
        made = exam.build_prompts(*exam.load_items(lambda split: rows_of), model, silent)
        assert made and all(
            len(prompt.demonstration_ids)
            == (0 if isinstance(task.protocol.method, evaluation.Windows) else shots)
            for prompt in made
        )
        record = runner.run_task(exam, made, model, tmp_path, silent, pytest.fail)
        assert record["scores"][task.protocol.metric]["n"] > 0
        assert (record["cut"], record["cut_at"]) == (
            0,
            "end" if name == "cnn_dailymail" else "beginning",
        )
        assert record == runner.run_task(exam, made, model, tmp_path, silent, pytest.fail)


# --- reproduce_gpt2 -------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path):
    for name in ("wikitext2", "wikitext103", "text8", "enwik8"):
        (tmp_path / f"{name}.txt").write_text(WIKI)
    (tmp_path / "lambada_test.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a b c", "one two"))
    )
    return tmp_path


def test_reproduce_gpt2_shows_what_is_there_and_names_what_is_not(there, texts, capsys):
    place, _, after = there
    assert (
        reproduce_gpt2.main([f"--model={place}", f"--task_data={texts}", f"--out={texts / 'out'}"])
        == 0
    )  # nothing is published of this model
    said = capsys.readouterr().out
    assert "ptb: no ptb_test.jsonl or ptb.jsonl" in said.replace("\n", " ")
    rows = {
        tuple(line.split()[:2]): line.split()
        for line in said.splitlines()
        if line.startswith(("wiki", "text8", "enwik8", "lambada"))
    }
    assert set(rows) == {
        ("wikitext2", "perplexity"),
        ("wikitext103", "perplexity"),
        ("text8", "bits_per_character"),
        ("enwik8", "bits_per_byte"),
        ("lambada", "accuracy"),
        ("lambada", "perplexity"),
        ("lambada:gpt2", "accuracy"),
        ("lambada:gpt2", "perplexity"),
    }
    x = [256, *WIKI.encode()]
    nats = -sum(
        after(x[max(0, stop - 1 - N_CTX) : at])[x[at]]
        for start in range(1, len(x), N_CTX)
        for stop in [min(start + N_CTX, len(x))]
        for at in range(start, stop)
    )
    assert float(rows["wikitext2", "perplexity"][2].replace(",", "")) == pytest.approx(
        math.exp(nats / len(WIKI)), rel=1e-3
    )
    assert float(rows["text8", "bits_per_character"][2]) == pytest.approx(
        nats / len(WIKI) / math.log(2), abs=6e-3
    )
    whole = registry.get_task("wikitext103").items(
        {"id": "0", "text": WIKI}, registry.get_task("wikitext103").protocol, 0
    )
    (item,) = whole
    assert item.units == len(WIKI.split()) and item.completions == (
        detokenizers.apply(WIKI, detokenizers.WIKITEXT),
    )


def test_a_tokenizer_without_end_of_text_that_drops_lone_line_ends_is_measured_too(
    there, texts, monkeypatch, capsys
):
    """As GPT-1's: every text begins with its newline."""
    place, model, after = there
    words = tokenizers.WordTokenizer()
    monkeypatch.setattr(
        reproduce_gpt2.evaluate,
        "load_model",
        lambda path, out: dataclasses.replace(model, tokenizer=words),
    )
    (texts / "ptb.txt").write_text(WIKI)
    assert reproduce_gpt2.main(
        [f"--model={place}", f"--task_data={texts}", f"--out={texts / 'out'}"]
    ) in (0, 1)
    said = capsys.readouterr().out
    table = [line for line in said.splitlines() if not line.startswith(("*", "of "))]
    rows = [line.split()[0] for line in table[1:]]
    assert rows == [
        "wikitext2",
        "wikitext103",
        "ptb",
        "text8",
        "enwik8",
        "lambada",
        "lambada",
        "lambada:gpt2",
        "lambada:gpt2",
    ]
    assert max(map(len, table)) <= 80
    x = [0, *words.encode(WIKI)]
    nats = -sum(
        after(x[max(0, stop - 1 - N_CTX) : at])[x[at]]
        for start in range(1, len(x), N_CTX)
        for stop in [min(start + N_CTX, len(x))]
        for at in range(start, stop)
    )
    (kept,) = (json.loads(path.read_text()) for path in (texts / "out").glob("wikitext2-0-*.json"))
    assert kept["scores"]["perplexity"]["value"] == pytest.approx(
        math.exp(nats / (len(x) - 1)), rel=1e-3
    )


def test_a_figure_that_differs_is_the_exit_status(there, texts, monkeypatch):
    place, *_ = there
    monkeypatch.setattr(
        reproduce_gpt2.evaluate, "load_model", lambda path, out: there[1]
    )  # it calls itself gpt2_124m
    for name in ("text8.txt", "enwik8.txt", "lambada_test.jsonl", "wikitext103.txt"):
        (texts / name).unlink()
    arguments = [f"--model={place}", f"--task_data={texts}", f"--out={texts / 'out'}"]
    assert reproduce_gpt2.main(arguments) == 1
    assert reproduce_gpt2.main([*arguments, "--stride=4"]) == 0


def test_bad_input_of_reproduce_gpt2_is_one_line(there, tmp_path):
    place, *_ = there
    with pytest.raises(ValueError, match="has none of the texts that --help names"):
        reproduce_gpt2.main(
            [f"--model={place}", f"--task_data={tmp_path}", f"--out={tmp_path / 'out'}"]
        )
    with pytest.raises(ValueError, match="is not a directory"):
        reproduce_gpt2.main([f"--model={place}", f"--task_data={tmp_path / 'none'}"])
