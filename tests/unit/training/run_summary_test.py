"""The table before a training says what the model is."""

import dataclasses

from gptjax.config import schema
from gptjax.training import run_summary
from tests import tiny


def test_experts_are_part_of_the_model():
    model = tiny.config().model
    assert "experts" not in run_summary.describe_model(model)
    mlp = schema.Experts(n_experts=8, top_k=2, expert=schema.SwiGLU(d_ff=64))
    line = run_summary.describe_model(dataclasses.replace(model, mlp=mlp))
    assert "active for a token" in line and "8 experts of which a token takes 2" in line
