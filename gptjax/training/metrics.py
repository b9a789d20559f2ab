"""What a step and an evaluation report."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gptjax.sharding import topology


def mfu(flops_per_token: float, tokens_per_s: float, devices: Any) -> float | None:
    """Model FLOPs utilisation: training FLOPs per token (config/count.py: banded layers at their
    true cost, rematerialisation not counted) times tokens per second, over the devices' peak.
    None where the peak is not known."""
    chip = topology.chip(devices[0])
    return None if chip is None else flops_per_token * tokens_per_s / (chip.flops * len(devices))


def evaluate(
    nll: Callable,
    params: Any,
    rows: np.ndarray,
    microbatch_rows: int,
    put_on_mesh: Callable,
    bytes_per_token: float,
) -> dict[str, float]:
    """Loss (nats a token), perplexity and bits per byte over `rows` (R, n_ctx + 1), every token
    once, in microbatches padded with rows of weight 0. nll: jitted (params, tokens_BT, weights_BT)
    -> sum; put_on_mesh(array, letters): places a host array on the mesh; bytes_per_token: of the
    text."""
    total = 0.0
    for first in range(0, len(rows), microbatch_rows):
        batch = rows[first : first + microbatch_rows]
        padding = ((0, microbatch_rows - len(batch)), (0, 0))
        weights = np.pad(np.ones((len(batch), rows.shape[1] - 1), np.float32), padding)
        total += float(
            jax.device_get(
                nll(params, put_on_mesh(np.pad(batch, padding), "B1"), put_on_mesh(weights, "B1"))
            )
        )
    loss = total / (len(rows) * (rows.shape[1] - 1))
    bits_per_byte = loss / math.log(2) / bytes_per_token
    return {
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "bits_per_byte": bits_per_byte,
    }
