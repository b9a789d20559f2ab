"""lm-evaluation-harness gets the same from gptjax and from its own Hugging Face model, on a task
and weights that are made here."""

import contextlib
import importlib
import json
import re
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import gptjax
from gptjax.config import data, schema
from gptjax.data.tokenizers import build, chat_template
from gptjax.evals import generation
from gptjax.generate import sampling
from gptjax.sharding import device_mesh
from gptjax.training import state, step
from gptjax.weights import export_hf
from tests import tiny

NEEDED = (
    "needs lm_eval, torch and transformers: pip install -r requirements-eval.txt -r "
    "requirements-dev.txt, Python 3.11"
)
pytest.importorskip("torch", reason=NEEDED)
pytest.importorskip("transformers", reason=NEEDED)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports deprecates this and that
    lm_eval = pytest.importorskip("lm_eval", reason=NEEDED)

WORDS = "the cat sat on a mat and said that one two three dogs were not at home".split()
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "num_fewshot": 2,
    },
    "whole": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12},
    },
}
METRICS = {
    "choices": [{"metric": "acc"}, {"metric": "acc_norm"}],
    "whole": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    "writing": [{"metric": "exact_match"}],
}


def save_weights(place, tokenizer, n_vocab):
    """Writes random weights for transformers."""
    c = tiny.config(
        n_vocab=n_vocab,
        n_ctx=64,
        n_layers=2,
        d_model=16,
        attention=(schema.Dense(),),
        init=schema.Init(),
    )
    c = tiny.replace_parts(c, data={"tokenizer": tokenizer})
    mesh = device_mesh.make_mesh(c.mesh, jax.devices()[:1])
    built = step.build(c, "cpu", mesh, None)
    with jax.set_mesh(mesh):
        params = state.init_sharded(c, built.model, built.tx, mesh).params
    place.mkdir()
    export_hf.save(place, c, jax.tree.map(lambda x: 4 * x, params), build.build(c.data.tokenizer))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of weights for transformers, random, and the tasks' files."""
    place = tmp_path_factory.mktemp("harness")
    save_weights(place / "weights", data.Gpt2Bpe(), 50257)
    rng = np.random.default_rng(0)

    def text(n):
        return " ".join(rng.choice(WORDS, n).tolist())

    rows = [  # the first question is longer than the context
        {
            "question": text(3 + i if i else 90),
            "choices": [text(1 + (i + j) % 4) for j in range(3)],
            "right": i % 3,
            "text": text(5 + 9 * i),
        }
        for i in range(8)
    ]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        files = {split: str(place / "rows.jsonl") for split in ("train", "test")}
        whole = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": files},
            "test_split": "test",
        }
        whole |= {"fewshot_split": "train", "metric_list": METRICS[name]} | task
        (place / f"{name}.yaml").write_text(json.dumps(whole))
    return place


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory):
    """What both answered: {model: {task: [(arguments, answers) of each item]}}."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        importlib.import_module("gptjax.lm_eval")
        tasks = importlib.import_module("lm_eval.tasks").TaskManager(
            include_path=str(folder), include_defaults=False
        )
        found = {}
        models = {
            "gptjax": {"pretrained": str(folder / "weights"), "mesh.fsdp": 8},
            "hf": {"pretrained": str(folder / "weights"), "device": "cpu"},
        }
        for name, arguments in models.items():
            names = [f"local_{task}" for task in TASKS]
            result = lm_eval.simple_evaluate(
                name,
                model_args=arguments,
                tasks=names,
                task_manager=tasks,
                batch_size=4,
                bootstrap_iters=0,
                log_samples=True,
            )
            samples = result["samples"]
            found[name] = {
                task: [(x["arguments"], x["resps"]) for x in samples[f"local_{task}"]]
                for task in TASKS
            }
        return found


@pytest.fixture(scope="module")
def ours(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("gptjax.lm_eval").GptJaxLM(
            str(folder / "weights"), **{"mesh.fsdp": 8}
        )


@contextlib.contextmanager
def serve(weights):
    """Yields where python -m gptjax.serve answers with the weights."""
    command = [sys.executable, "-m", "gptjax.serve", f"--model={weights}", "--port=0"]
    command += ["--served_model_name=tiny", "--slots=3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "http://" in line)
        yield re.search(r"http://\S+", line)[0]  # type: ignore[index]
        server.terminate()
        server.communicate(timeout=60)
        assert server.returncode == 0


def evaluate(place, models, tasks, patch, **settings):
    """(of each model, {task: samples}) by the harness without examples. place: with the tasks."""
    patch.setenv("HF_DATASETS_OFFLINE", "1")
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_DATASETS_CACHE", str(place / "datasets"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("gptjax.lm_eval")
        manager = importlib.import_module("lm_eval.tasks").TaskManager(
            include_path=str(place), include_defaults=False
        )
        for name, arguments in models.items():
            yield lm_eval.simple_evaluate(
                name,
                model_args=arguments,
                tasks=tasks,
                num_fewshot=0,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=True,
                **settings,
            )["samples"]


def test_over_http_the_harness_gets_the_same(folder, monkeypatch):
    """Of texts that fit into the context with the token that is asked for: longer ones the harness
    cuts in another way."""
    weights = str(folder / "weights")
    with serve(weights) as url:
        http = {"model": "tiny", "base_url": f"{url}/completions", "tokenizer": weights}
        models = {
            "gptjax": {"pretrained": weights},
            "local-completions": http | {"max_length": 64, "num_concurrent": 4},
        }
        tasks = ["local_choices", "local_writing"]
        found = [
            [[x["resps"] for x in samples[task] if x["doc_id"]] for task in tasks]
            for samples in evaluate(folder, models, tasks, monkeypatch)
        ]
    (ours, written), (over_http, written_over_http) = found
    assert written_over_http == written and len(written) == len(ours) == 7
    for mine, other in zip(ours, over_http, strict=True):
        for (x, x_greedy), (y, y_greedy) in zip(*([r[0] for r in m] for m in (mine, other))):  # noqa: B905
            assert float(x) == pytest.approx(float(y), abs=1e-4)
            assert str(x_greedy) == str(y_greedy)


def test_over_http_the_harness_chats(folder, monkeypatch, tmp_path):
    """As messages; the same is generated here after what the chat template makes of them."""
    tokenizer = data.ChatTokens(base=data.Gpt2Bpe())
    save_weights(tmp_path / "weights", tokenizer, build.build(tokenizer).n_vocab)
    rows = (folder / "rows.jsonl").read_text().splitlines()[1:]  # the first one is too long
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    task = json.loads((folder / "writing.yaml").read_text().replace(str(folder), str(tmp_path)))
    (tmp_path / "writing.yaml").write_text(json.dumps(task))
    with serve(tmp_path / "weights") as url:
        http = {"model": "tiny", "base_url": f"{url}/chat/completions", "num_concurrent": 4}
        models = {"local-chat-completions": http}
        (samples,) = evaluate(
            tmp_path, models, ["local_writing"], monkeypatch, apply_chat_template=True
        )
    samples = samples["local_writing"]
    model = gptjax.load(str(tmp_path / "weights"))
    template = chat_template.of(model.tokenizer)
    questions = [[{"role": "user", "content": json.loads(row)["question"]}] for row in rows]
    expected = dict(
        generation.sample_until(
            model.inference_model,
            [template.encode(messages) for messages in questions],
            12,
            sampling.SamplingParams(temperature=0),
            ["\n", ".", template.end_of_turn],
            model.tokenizer,
            jax.random.key(0),
        )
    )
    written = {x["doc_id"]: x["resps"][0][0] for x in samples}
    assert written == expected and len(set(written.values())) == 7


def request(kind: str, *arguments):
    return importlib.import_module("lm_eval.api.instance").Instance(
        request_type=kind, doc={}, arguments=arguments, idx=0
    )


@pytest.mark.parametrize("settings", [{"run": "runs/nano"}, {"device": "cpu"}, {}])
def test_a_model_that_is_not_named_is_one_line(settings):
    """lm_eval shows a TypeError of a missing argument with its trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapper = importlib.import_module("gptjax.lm_eval").GptJaxLM
    with pytest.raises(
        ValueError, match="^model_args names no model: give pretrained=DIR, [^\\n]*$"
    ):
        wrapper(**settings)


def test_settings_that_change_nothing_end_nothing(ours):
    plain = {"until": ["\n"], "max_gen_toks": 5}
    more = [
        {"num_beams": 1},
        {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False},
        {"repetition_penalty": 1.0},
        {"top_k": 0},
    ]
    more += [
        {"do_sample": True, "temperature": 1e-38},
        {"do_sample": True, "temperature": 1.0, "top_k": 1},
    ]
    said = ours.generate_until(
        [request("generate_until", "the cat", plain | settings) for settings in [{}, *more]], True
    )
    assert len(set(said)) == 1
    assert isinstance(
        ours.generate_until(
            [request("generate_until", "the cat", plain | {"do_sample": True, "top_k": -1})], True
        )[0],
        str,
    )
    for settings in ({"num_beams": 4}, {"repetition_penalty": 1.2}, {"best_of": 2}):
        with pytest.raises(
            ValueError, match=f"generation_kwargs {next(iter(settings))}=.*: gptjax knows until"
        ):
            ours.generate_until([request("generate_until", "the cat", plain | settings)], True)
    with pytest.raises(ValueError, match="SamplingParams.temperature"):
        ours.generate_until(
            [request("generate_until", "a", plain | {"do_sample": True, "temperature": 1e305})],
            True,
        )


def test_a_text_without_tokens_begins_with_end_of_text(ours):
    end = ours.eot_token_id
    (empty,) = ours.generate_until(
        [request("generate_until", "", {"until": [], "max_gen_toks": 5})], True
    )
    key = jax.random.key(0)
    expected = dict(
        generation.sample_until(
            ours.inference_model,
            [[end]],
            5,
            sampling.SamplingParams(temperature=0),
            [],
            ours._tokenizer,
            key,
        )
    )[0]
    assert empty == expected
    alone, spaced = ours.loglikelihood(
        [request("loglikelihood", context, "hello") for context in ("", "\n")], True
    )
    assert np.isfinite(alone[0]) and np.isfinite(spaced[0])


@pytest.mark.parametrize(
    "context, continuation",
    [("ques", "tion marks"), ("Ans", "wer"), ("\u65e5\u672c\u306e", "\u9b54\u6cd5"), ("a ", "b")],
)
def test_a_token_over_the_join_is_scored_as_both_texts(ours, context, continuation):
    before, after = ours._encode_pair(context, continuation)
    assert after and ours._tokenizer.decode([*before, *after]) == context + continuation
    ((log_likelihood, _),) = ours.loglikelihood(
        [request("loglikelihood", context, continuation)], True
    )
    assert -1000 < log_likelihood < 0


def test_a_stop_that_the_tokenizer_cannot_write_leaves_the_others(ours, caplog):
    plain = {"max_gen_toks": 8}
    stopped, free = ours.generate_until(
        [request("generate_until", "a", plain | {"until": until}) for until in (["\ud800"], [])],
        True,
    )
    assert stopped == free and "tokenizer cannot write the stop string" in caplog.text


def pairs(asked, task):
    ours, theirs = asked["gptjax"][task], asked["hf"][task]
    assert [x for x, _ in ours] == [x for x, _ in theirs] and len(ours) == 8
    return [
        pair for (_, a), (_, b) in zip(ours, theirs, strict=True) for pair in zip(a, b, strict=True)
    ]


def test_choices(asked):
    both = pairs(asked, "choices")
    assert len(both) == 24
    for (ours,), (theirs,) in both:
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]


def test_whole_texts_longer_than_the_context_too(asked):
    for (ours,), (theirs,) in pairs(asked, "whole"):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-6)


def test_what_is_written(asked):
    both = pairs(asked, "writing")
    assert [ours for ours, _ in both] == [theirs for _, theirs in both]
    assert len({ours[0] for ours, _ in both}) > 1
