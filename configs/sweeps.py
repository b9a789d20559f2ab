"""Named sweeps: a question each, over a small recipe. SWEEPS maps a name to a function that returns a Sweep."""

from gptjax.config.sweep import Sweep, each, grid, seeds


def smoke_peak() -> Sweep:
    """Seconds long, for tests."""
    return Sweep(
        about="which peak learning rate is best for the smallest model?",
        recipe="smoke",
        points=grid(each("train.schedule.peak", 1e-3, 3e-3), seeds(2)),
    )


def sparse_window() -> Sweep:
    """GPT-3's banded layers at several windows, against dense layers alone, on the default recipe."""
    banded = (f"(Banded(window={window}), Dense())" for window in (8, 16, 32, 64))
    return Sweep(
        about="what does a narrower band cost, in every other layer?",
        recipe="nano",
        points=grid(each("model.attention", "Dense()", *banded), seeds(3)),
    )


SWEEPS = {"smoke_peak": smoke_peak, "sparse_window": sparse_window}
