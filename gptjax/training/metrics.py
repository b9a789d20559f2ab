"""Metrics of a step and of an evaluation."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.sharding import chips


def mfu(flops_per_token: float, tokens_per_s: float, devices: Any) -> float | None:
    """Returns the model FLOPs utilization, 0 to 1: flops_per_token * tokens_per_s over the peak
    FLOP/s of `devices` in bfloat16, whatever they compute in; None if that is unknown.
    flops_per_token: of training, as config.count computes it (sparse layers at their true cost,
    recomputation not counted)."""
    chip = chips.from_device(devices[0])
    return None if chip is None else flops_per_token * tokens_per_s / (chip.flops * len(devices))


def mean_nll(
    nll: Callable, params: Any, rows: np.ndarray, microbatch_rows: int, put_on_mesh: Callable
) -> np.ndarray:
    """Returns the mean negative log-likelihood (nats per token) of `rows` (R, n_ctx + 1), float64,
    of the shape that `nll` returns.

    nll: jitted (params, tokens_BT, weights_BT) -> weighted sum over tokens. put_on_mesh(array,
    letters): places a host array on the mesh. Rows are read microbatch_rows at a time; the last
    microbatch is padded with rows of weight 0."""
    total = np.float64(0)
    for first in range(0, len(rows), microbatch_rows):
        batch = rows[first : first + microbatch_rows]
        padding = ((0, microbatch_rows - len(batch)), (0, 0))
        weights = np.pad(np.ones((len(batch), rows.shape[1] - 1), np.float32), padding)
        batch_sum = nll(
            params, put_on_mesh(np.pad(batch, padding), "B1"), put_on_mesh(weights, "B1")
        )
        total = total + np.asarray(jax.device_get(batch_sum), np.float64)
    return total / (len(rows) * (rows.shape[1] - 1))


def loss_metrics(loss: float, bytes_per_token: float) -> dict[str, float]:
    """Returns validation loss (nats per token), perplexity and bits per byte. bytes_per_token: of
    the validation text."""
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": loss / math.log(2) / bytes_per_token,
    }
