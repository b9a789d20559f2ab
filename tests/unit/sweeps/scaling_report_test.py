"""Which laws a sweep's arms are enough for, and what is predicted; the fits themselves are in
laws_test.py."""

import pytest

from gptjax.config import count
from gptjax.sweeps import scaling_fit, scaling_report
from tests.outcomes import make_result

WIDTHS, TOKENS = (16, 32, 48, 64, 96), (25_600, 51_200, 102_400)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(scaling_fit, "N_DRAWS", 8)


def loss(n, d):
    return 1.5 + 40 / n**0.4 + 30 / d**0.35


def arm(width, tokens, check=False, trained=True, worse=0.0):
    edits = (f"model.d_model={width}", f"train.total_tokens={tokens}")
    n = count.non_embedding_parameters(make_result(*edits).config.model)
    return make_result(
        *edits,
        losses=(loss(n, tokens) + worse,) if trained else (),
        curve=[(256, 5.5)],
        check=check,
    )


def arms(widths=WIDTHS, tokens=TOKENS):
    return [arm(width, n) for width in widths for n in tokens]


def cells(section, law):
    return next(row for row in section.rows if row[0].startswith(law))


def test_a_larger_model_is_predicted_and_then_found(tmp_path):
    section = scaling_report.scaling_section(
        [*arms(), arm(128, TOKENS[-1], check=True)], tmp_path / "laws.png"
    )
    truth = loss(count.non_embedding_parameters(arm(128, TOKENS[-1]).config.model), TOKENS[-1])
    row = cells(section, "L(N, D), Hoffmann")
    assert float(row[5].split()[0]) == pytest.approx(truth, rel=2e-3)
    assert row[6].startswith(f"{truth:.3f} (") and row[4] == "102k"
    assert [row[0][:4] for row in section.rows] == ["L(N)", "L(D)", "L(C)", "L(N,", "L(N,", "GPT-"]
    assert cells(section, "L(D)")[3:] == ("", "", "", "")  # it speaks of another size
    assert section.picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_not_trained_yet_is_predicted_all_the_same(tmp_path):
    waiting = scaling_report.scaling_section(
        [*arms(), arm(128, TOKENS[-1], check=True, trained=False)], tmp_path / "laws.png"
    )
    assert {row[6] for row in waiting.rows if row[3]} == {"not trained", ""}
    alone = scaling_report.scaling_section(
        arms(), tmp_path / "laws.png"
    )  # nothing to check: a model twice as large
    largest = count.non_embedding_parameters(arm(96, TOKENS[-1]).config.model)
    assert cells(alone, "L(N, D), Kaplan")[3] == f"{2 * largest / 1e3:.0f}k"


def test_a_check_is_not_fitted(tmp_path):
    far = arm(128, TOKENS[-1], check=True, worse=1.0)
    rows = [
        cells(scaling_report.scaling_section([*arms(), *more], tmp_path / "laws.png"), "L(N)")
        for more in ([], [far])
    ]
    assert rows[0][1] == rows[1][1] and rows[1][6].endswith("%)") and "+" in rows[1][6]


def test_laws_are_those_that_the_arms_are_enough_for(tmp_path):
    assert scaling_report.scaling_section(arms(widths=(16, 32)), tmp_path / "laws.png") is None
    names = [
        law.name[:4]
        for law in scaling_report.fit_all(scaling_report.scale_points(arms(tokens=TOKENS[-1:])))
    ]
    assert names == ["L(N)", "L(C)"]


def test_of_arms_of_equal_size_and_length_the_best_counts():
    found = scaling_report.scale_points(
        [arm(16, TOKENS[0], worse=0.5), arm(16, TOKENS[0]), arm(32, TOKENS[0], trained=False)]
    )
    assert len(found) == 1 and found[0].mean_loss == pytest.approx(loss(found[0].N, TOKENS[0]))
    assert found[0].C == pytest.approx(6 * found[0].N * TOKENS[0] / 8.64e19)
