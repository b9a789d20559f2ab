"""Axes and their combinations."""

import pytest

from gptjax.config import sweep


def test_axes_combine():
    a, b = sweep.each("seed", 0, 1), sweep.each("model.n_layers", 2, 4)
    assert sweep.grid(a, b) == (
        ("seed=0", "model.n_layers=2"),
        ("seed=0", "model.n_layers=4"),
        ("seed=1", "model.n_layers=2"),
        ("seed=1", "model.n_layers=4"),
    )
    assert sweep.zip_axes(a, b) == (("seed=0", "model.n_layers=2"), ("seed=1", "model.n_layers=4"))
    assert sweep.chain(a, b) == (*a, *b) and sweep.seeds(2) == a
    with pytest.raises(ValueError, match="axes that vary together have 2, 3 points"):
        sweep.zip_axes(a, sweep.seeds(3))
