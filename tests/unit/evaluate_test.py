from types import SimpleNamespace

import pytest

from gptjax import evaluate
from gptjax.config import evaluation
from gptjax.data.tokenizers import build
from gptjax.evals import perplexity, score_table
from gptjax.evals.task import gpt3_scores


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--text=a.txt", "--model=a", "--limit=3"], "--limit: nothing for --text"),
        (
            ["--text=a.txt", "--model=a", "--task_data=x", "--tfds_dir=x"],
            ("--task_data, --tfds_dir: nothing for --text"),
        ),
        (["--text=a.txt", "--model=a", "--set=all.shots=1"], "--set: nothing for --text"),
        (
            ["--text=a.txt", "--model=a", "--num_fewshot=1", "--seed=0"],
            "--num_fewshot, --seed: nothing for --text",
        ),
        (["--curve=a.png", "run", "--model=a"], "--model: nothing for --curve"),
        (
            ["--curve=a.png", "--out=x", "--tasks=lambada", "--stride=1"],
            ("--tasks, --stride: nothing for --curve"),
        ),
    ],
)
def test_no_flag_is_ignored(flags, line):
    with pytest.raises(ValueError, match=f"^{line}; leave it out$"):
        evaluate.main(flags)


def test_a_picture_is_of_the_runs_and_of_what_lies_in_out(monkeypatch, tmp_path):
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    drawn = []
    monkeypatch.setattr(
        "gptjax.evals.icl_plot.draw", lambda folders, path, warn: drawn.extend(map(str, folders))
    )
    evaluate.main(["--curve=a.png", f"{tmp_path}/a", f"{tmp_path}/weights", "--out=y"])
    assert drawn == [f"{tmp_path}/a/evaluations", "runs/weights/evaluations", "y"]


def test_an_empty_text_among_others_is_skipped(tmp_path, monkeypatch):
    for name, content in (("a.txt", "ab"), ("b.txt", ""), ("c.txt", "")):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(
        perplexity.loglikelihood,
        "loglikelihood_rolling",
        lambda inference_model, tokens, *_: [(n, -1.0) for n in range(len(tokens))],
    )
    model, said = (
        SimpleNamespace(
            inference_model=None, tokenizer=build.ByteTokenizer(), sharding=None, metadata={}
        ),
        [],
    )
    found = list(perplexity.predict(model, sorted(tmp_path.iterdir()), 4, str, said.append))
    assert (
        [(record["tokens"], record["nats"]) for record in found] == [(2, 1.0)]
        and len(said) == 2
        and "b.txt is empty" in said[0]
    )
    with pytest.raises(ValueError, match="c.txt is empty"):
        list(
            perplexity.predict(model, [tmp_path / "b.txt", tmp_path / "c.txt"], 4, str, said.append)
        )


@pytest.mark.parametrize(
    "shots, parameters, said",
    [
        (0, 1.25e8, "1 (gpt3_small)"),
        (1, 1.25e8, "11 (gpt3_small)"),
        (50, 1.25e8, "21 (gpt3_small)"),
        (3, 1.25e8, ""),  # of no such number of demonstrations
        (
            0,
            2.3e8,
            "2 (gpt3_medium)",
        ),  # 1.55 times larger, though 1.84 times smaller is nearer by difference
        (0, 1e13, "8 (gpt3_175b)"),
    ],
)
def test_a_papers_score_is_of_as_many_demonstrations_and_the_nearest_size(shots, parameters, said):
    published = gpt3_scores(
        "accuracy", "1/2/3/4/5/6/7/8", "11/12/13/14/15/16/17/18", "21/22/23/24/25/26/27/28"
    )
    how = evaluation.Protocol(shots=50, method=evaluation.Total(), metric="accuracy")
    exam = SimpleNamespace(shots=shots, protocol=how, task=SimpleNamespace(paper_scores=published))
    assert score_table.paper_score(exam, "accuracy", {"parameters": parameters}) == said
    assert score_table.paper_score(exam, "perplexity", {"parameters": parameters}) == ""


@pytest.mark.parametrize(
    "method, record, told",
    [
        (evaluation.Total(), {}, []),
        (
            evaluation.Total(),
            {"cut": 3, "cut_at": "beginning"},
            ["3 items were longer than the context of 64: their beginning was left out"],
        ),
        (
            evaluation.TopK(n_tokens=9),
            {"cut": 3, "cut_at": "end"},
            ["3 items were longer than the context of 64: their end was left out"],
        ),
        (
            evaluation.Total(),
            {"scores": {}, "examples": 4},
            ["x, 0 shots: no right answer of its 4 items is known, so there is no score"],
        ),
        (
            evaluation.LastToken(),
            {},
            ["its accuracy is of the last token of the word, its perplexity of the whole word"],
        ),
    ],
)
def test_remarks_are_printed_with_the_scores(method, record, told):
    said = []
    exam = SimpleNamespace(protocol=SimpleNamespace(method=method), label="x", shots=0)
    record = {
        "scores": {"accuracy": {}},
        "refused": {},
        "unwritable": [],
        "fewer_shots": 0,
        "cut": 0,
    } | record
    score_table.print_remarks(
        exam,
        record,
        64,
        SimpleNamespace(print=lambda text, style="": said.append(text.strip()), warn=said.append),
    )
    assert said == told
