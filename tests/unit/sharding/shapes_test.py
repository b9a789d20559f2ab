import numpy as np
import pytest

from gptjax.sharding.shapes import letters, shaped


@shaped
def mixed(x_BT, y_TD, scale, mask_11T=None):
    return x_BT @ y_TD


def test_letters():
    assert [
        letters(n) for n in ("weight_DF", "bias_QNH", "seen_11TS", "count", "mu", "Dense", "n_ctx")
    ] == ["DF", "QNH", "11TS", "", "", "", ""]


def test_agreeing_shapes_pass():
    assert mixed(np.ones((2, 3)), np.ones((3, 4)), 1, np.ones((1, 1, 3))).shape == (2, 4)


def test_disagreeing_shapes_are_named():
    with pytest.raises(ValueError, match=r"mixed: T=4 in y_TD \(4, 5\), but T=3 in x_BT"):
        mixed(np.ones((2, 3)), np.ones((4, 5)), 1)
    with pytest.raises(ValueError, match=r"mixed: x_BT has shape \(2,\), which is not of rank 2"):
        mixed(np.ones(2), np.ones((3, 4)), 1)
    with pytest.raises(ValueError, match=r"1=2 in mask_11T \(2, 1, 3\), but 1=1 in its name"):
        mixed(np.ones((2, 3)), np.ones((3, 4)), 1, np.ones((2, 1, 3)))
