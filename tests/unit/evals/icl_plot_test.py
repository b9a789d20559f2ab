"""The picture of in-context learning: what is compared in it, what is left out, and that all of
it can be seen."""

import pytest

from gptjax.evals import icl_plot, outcomes
from gptjax.report import loss_plot

SMALL, LARGE = (
    {"digest": "a" * 16, "name": "small", "parameters": 1000},
    {"digest": "b" * 16, "name": "large", "parameters": 50_000},
)


def record(
    task, shots, value, model=SMALL, metric="accuracy", error=1.0, described=False, examples=10
):
    score = {"metric": metric, "value": value, "error": error, "n": examples}
    return {
        "task": task,
        "shots": shots,
        "mean_shots": float(shots),
        "model": model,
        "described": described,
        "examples": examples,
        "scores": {metric: score},
    }


ALIKE = [
    record(task, shots, value)
    for task, value in (("hard", 10.0), ("easy", 30.0))
    for shots in (0, 1, 8)
]


def test_the_mean_is_of_one_set_of_tasks_for_all_numbers_of_demonstrations():
    found, inside, left_out = icl_plot.mean_scores(
        [*ALIKE, record("zero", 0, 2.0), record("zero", 1, 2.0)]
    )
    assert {kind: of_model[SMALL["digest"]] for kind, of_model in found.items()} == dict.fromkeys(
        icl_plot.SHOT_KINDS, 20.0
    )
    assert inside == ["hard", "easy"] and left_out == ["zero"]


def test_the_mean_has_only_percentages_of_tasks_that_every_model_has():
    more = [record("bits", k, 2.7, metric="bits_per_byte") for k in (0, 1, 8)]
    found, inside, left_out = icl_plot.mean_scores(
        [*ALIKE, *more, *(record("easy", k, 50.0, LARGE) for k in (0, 1, 8))]
    )
    assert (inside, left_out) == (["easy"], ["hard", "bits"])
    assert found["few-shot"] == {SMALL["digest"]: 30.0, LARGE["digest"]: 50.0}


def test_a_shot_kind_that_a_model_lacks_is_not_drawn():
    found, inside, left_out = icl_plot.mean_scores(
        [*ALIKE, *(record(task, 0, 50.0, LARGE) for task in ("easy", "hard"))]
    )
    assert list(found) == ["zero-shot"] and inside == ["hard", "easy"] and left_out == []
    assert icl_plot.mean_scores([record("bits", 0, 2.7, metric="bits_per_byte")]) == (
        {},
        [],
        ["bits"],
    )
    assert icl_plot.mean_scores([record("x", 0, 2.0), record("y", 0, 2.0, LARGE)]) == (
        {},
        [],
        ["x", "y"],
    )


def test_the_description_counts_where_there_are_both():
    both = [
        record("x", k, value, described=described)
        for k in (0, 1)
        for value, described in ((9.0, True), (5.0, False))
    ]
    assert icl_plot.scores_by_kind([*both, record("x", 4, 7.0)]) == {
        "zero-shot": 9.0,
        "one-shot": 9.0,
        "few-shot": 7.0,
    }


def test_runs_are_distinguished_by_their_digest():
    copy, other = SMALL | {"digest": "c" * 16}, SMALL | {"digest": "d" * 16, "name": "other"}
    told = icl_plot.labels([record("x", 0, 1.0, model) for model in (LARGE, SMALL, copy, other)])
    assert list(told.values()) == [
        "1k parameters, other",
        "1k parameters, small aaaaaa",
        "1k parameters, small cccccc",
        "50k parameters",
    ]
    axes = drawn(
        [
            record("x", k, value, model)
            for k in (0, 1, 8)
            for model, value in ((SMALL, 10.0), (copy, 30.0))
        ]
    )
    assert [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 3][:1] == [
        [10.0] * 3
    ]
    assert len(axes.containers) == 2  # a line each


def drawn(records):
    axes = loss_plot.new_figure(4, 3).subplots()
    icl_plot.plot_by_shots(axes, records, icl_plot.labels(records))
    return axes


def test_error_bars_are_whole():
    axes = drawn([record("x", 0, 98.0, error=9.0), record("x", 1, 2.0, error=9.0)])
    low, high = axes.get_ylim()
    assert low < -7 and high > 107
    assert drawn([record("x", 0, 0.5, error=None)]).get_ylim() == (0, 5)


def test_of_several_results_of_one_kind_the_one_of_most_items_is_drawn():
    said = []
    both = [record("x", 0, 1.0, examples=5), record("x", 0, 2.0, examples=50), record("y", 0, 3.0)]
    assert [one["scores"]["accuracy"]["value"] for one in icl_plot.select(both, said.append)] == [
        2.0,
        3.0,
    ]
    assert said == [
        "x, 0 shots: 2 results of one model, with different seeds or protocols; the one with the "
        "most items is drawn"
    ]


def test_what_was_changed_is_named_and_left_out_and_odd_names_are_drawn(tmp_path):
    odd = "$x^{$ \ud800 _y"
    for number, one in enumerate(
        [
            record(odd, 0, 5.0),
            record(odd, 1, 6.0, LARGE | {"name": "$\\frac"}),
            record("x", 0, 7.0, SMALL),
        ]
    ):
        outcomes.save_record(tmp_path / f"{number}.json", one, pytest.fail)
    changed = tmp_path / "2.json"
    changed.write_text(changed.read_text().replace("7.0", "8.0"))
    (tmp_path / "3.json").write_bytes(b"\xff")
    (tmp_path / "4.json").write_text("{}")
    said = []
    assert [one["task"] for one in icl_plot.read_records([tmp_path], said.append)] == [odd, odd]
    assert len(said) == 3 and all(
        f"{number}.json" in line for number, line in zip((2, 3, 4), said, strict=True)
    )
    icl_plot.draw([tmp_path], tmp_path / "all.png", said.append)
    assert (tmp_path / "all.png").stat().st_size > 5000
    for name in ("x.nope", "x", "x.jpg.txt"):
        with pytest.raises(ValueError, match=r"a picture's name ends with .png, .pdf, .svg"):
            icl_plot.draw([tmp_path], tmp_path / name, said.append)
