"""Matrix products of 8-bit floating-point numbers in training, by Qwix."""

from typing import Any

# The products of layers with their weights; not attention's scores, the routers of experts and the
# logits, which Micikevicius et al. (2209.05433) also leave in more bits.
PRODUCTS = r".*/(qkv|out|up|gate|down)(/.*)?"


def quantize(model: Any) -> Any:
    """Returns a GPT of which `apply` rounds what layers multiply with their weights to 8 bits, in
    both passes: activations and weights to e4m3, gradients to e5m2 (Micikevicius et al.,
    2209.05433), each scaled by its largest element in every step. Parameters and outputs keep their
    types. ValueError if Qwix is not installed."""
    try:
        import qwix
    except ImportError:
        raise ValueError(
            "compute.matmul_dtype=float8 needs Qwix: pip install -r requirements-float8.txt"
        ) from None
    rule = qwix.QtRule(
        module_path=PRODUCTS,
        weight_qtype="float8_e4m3fn",
        act_qtype="float8_e4m3fn",
        bwd_qtype="float8_e5m2",
    )
    return qwix.quantize_model(model, qwix.QtProvider([rule]))
