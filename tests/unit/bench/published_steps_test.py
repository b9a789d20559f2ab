"""The constants of gptjax.plan are those that published steps give."""

import json
from pathlib import Path

import pytest

from bench import published_steps
from gptjax.aot import step_time
from gptjax.config import count, overrides
from gptjax.configs import registry

FILE = Path(__file__).parents[3] / "docs/results/step-times.json"
ROWS = [row for row in json.loads(FILE.read_text()) if "reason" not in row]


def test_constants_and_interval_are_those_of_the_file():
    learned, held_out = published_steps.halves(ROWS)
    constants = published_steps.fit(learned)
    assert constants == (step_time.CYCLE_SHARE, step_time.KERNEL_SHARE, step_time.HIDDEN_SHARE)
    ratios = published_steps.ratios(held_out, constants)
    assert step_time.RATIOS == (round(min(ratios), 2), round(max(ratios), 2))


def test_no_model_is_fitted_on_one_slice_and_tested_on_another():
    chips = ("v5e", "v5p", "v6e", "tpu7x")
    learned, held_out = (
        {(row["model"], *[c for c in chips if c in row["topology"]]) for row in half}
        for half in published_steps.halves(ROWS)
    )
    assert learned and held_out and not learned & held_out


@pytest.mark.parametrize("log_scale", range(4, 10))
def test_models_by_scale_have_their_size(log_scale):
    """MaxText's names are of powers of two."""
    config = overrides.override(registry.config("llama3_8b"), *published_steps.scaled(log_scale))
    assert 0.95 < count.parameters(config.model) / (1 << log_scale) / 1e9 < 1.15


def test_a_step_is_predicted_from_its_parts():
    row = {"compute_seconds": 9.0, "recomputed_seconds": 1.0, "kernel_peak_seconds": 1.5}
    row |= {"synchronous_seconds": 0.25, "asynchronous_seconds": 2.0}
    constants = published_steps.Constants(0.5, 0.75, 0.25)
    assert published_steps.predict(row, constants) == 4 + 2 + 0.25 + 1.5
    assert published_steps.predict(row | {"asynchronous_seconds": 30.0}, constants) == 6 + 24.25
