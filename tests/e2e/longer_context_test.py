"""A short-context run goes on at a longer one: train --init with another model.n_ctx."""

import numpy as np
import pytest

from gptjax import api, language_model
from tests import short_run

MORE = ("model.n_ctx=64", "train.batch_tokens=512", "train.total_tokens=1024", "loop.every_save=1")


def start(text, finished, directory, *changes):
    return short_run.go(text, directory, *MORE, *changes, flags=[f"--init={finished}"])


@pytest.mark.usefixtures("implicit_transfers")
@pytest.mark.parametrize("rule", ["repeat", pytest.param("interpolate", marks=pytest.mark.slow)])
def test_learned_positions_become_more(brief, text, finished, tmp_path, capsys, rule):
    """The rule is kept, up to the two steps of training, whose learning rate is near 0."""
    changes = (f"model.init.longer_positions={rule}", "train.schedule.peak_lr=1e-12")
    assert start(text, finished, tmp_path / "long", *changes) == 0
    output = capsys.readouterr().out
    assert "beginning with the weights of" in output
    assert "  model.n_ctx: 32 -> 64\n" in output
    assert "  learned positions: the 32 rows" in output
    short, long = (api.load(path).params for path in (finished, tmp_path / "long"))
    short_TD, long_TD = (np.asarray(params["position_TD"]) for params in (short, long))
    every = slice(None, 32) if rule == "repeat" else slice(None, None, 2)
    np.testing.assert_allclose(long_TD[every], short_TD, atol=1e-6)
    if rule == "repeat":
        np.testing.assert_allclose(long_TD[32:], short_TD, atol=1e-6)
    np.testing.assert_allclose(long["token_VD"], short["token_VD"], atol=1e-6)


def test_without_a_rule_they_do_not(brief, text, finished, tmp_path):
    with pytest.raises(ValueError, match="have learned 32 positions, but model.n_ctx=64: say how"):
        start(text, finished, tmp_path / "long")


@pytest.mark.slow
def test_rotary_positions_are_scaled(brief, text, tmp_path, capsys):
    short = ("model.positions=Rotary()", "train.total_tokens=512")
    assert short_run.go(text, tmp_path / "short", *short) == 0
    scaled = "model.positions=Rotary(scaling=Yarn(factor=2,original_context=32))"
    capsys.readouterr()
    assert start(text, tmp_path / "short", tmp_path / "long", scaled) == 0
    output = capsys.readouterr().out
    assert "  model.n_ctx: 32 -> 64\n" in output
    assert "  model.positions: (Rotary(" in output
    assert isinstance(api.load(tmp_path / "long"), language_model.LanguageModel)
