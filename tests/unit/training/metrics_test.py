from types import SimpleNamespace

import pytest

from gptjax.training import metrics


def test_mfu_is_of_the_peak_of_all_devices():
    chips = [SimpleNamespace(device_kind="TPU v4")] * 4
    assert metrics.mfu(1e9, 1.1e5, chips) == pytest.approx(1e9 * 1.1e5 / (4 * 275e12))
    assert metrics.mfu(1e9, 1.1e5, [SimpleNamespace(device_kind="cpu")]) is None
