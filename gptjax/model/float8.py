"""Matrix products of 8-bit floating-point numbers in training, by Qwix."""

import importlib.util
from typing import Any

from gptjax.config import schema

# The products of layers with their weights; not attention's scores, the routers of experts and the
# logits, which Micikevicius et al. (2209.05433) also leave in more bits.
PRODUCTS = r".*/(qkv|out|up|gate|down)(/.*)?"


def training_model(model: Any, compute: schema.Compute) -> Any:
    """Returns the model whose `apply` is trained: with compute.matmul_dtype=float8 one that rounds
    what layers multiply with their weights to 8 bits, in both passes: activations and weights to
    e4m3, gradients to e5m2, the formats of Micikevicius et al. (2209.05433). Each token of the
    activations and each column of the weights is scaled by its largest element in every step, where
    they have a scale for each tensor. Parameters and outputs keep their types; generation and
    `evaluate` are not rounded, but the validation losses of a run are. ValueError if Qwix is not
    installed."""
    if compute.matmul_dtype == "auto":
        return model
    check(compute)
    import qwix

    rule = qwix.QtRule(
        module_path=PRODUCTS,
        weight_qtype="float8_e4m3fn",
        act_qtype="float8_e4m3fn",
        bwd_qtype="float8_e5m2",
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]))


def check(compute: schema.Compute) -> None:
    """Raises ValueError if products have 8 bits and Qwix is not installed."""
    if compute.matmul_dtype == "float8" and importlib.util.find_spec("qwix") is None:
        raise ValueError(
            "compute.matmul_dtype=float8 needs Qwix: pip install -r requirements-float8.txt"
        )
