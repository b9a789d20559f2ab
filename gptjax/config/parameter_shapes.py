"""The shape tree of a model's parameters, from its config alone: the names and shapes that
model/gpt.py creates, of which count.py makes its sums. A test compares the two."""

import math

from gptjax.config.layer import GELU, Experts, LayerNorm
from gptjax.config.positions import Learned
from gptjax.config.schema import Model

Shapes = dict[str, tuple[int, ...]]


def tables(model: Model) -> Shapes:
    """Token, position and output tables; rows of the vocabulary's padding are left out."""
    shapes = {"token_VD": (model.n_vocab, model.d_model)}
    if not model.tied_output:
        shapes["output_VD"] = (model.n_vocab, model.d_model)
    if model.positions == (Learned(),):
        shapes["position_TD"] = (model.n_ctx, model.d_model)
    return shapes


def final_norm(model: Model) -> Shapes:
    """The norm after the last layer."""
    return {} if model.norm == "post" else _norm(model, "norm")


def layer_shapes(model: Model) -> Shapes:
    """The parameters of one layer, by the names that they have in its subtree: all layers have the
    same."""
    return attention_shapes(model) | mlp_shapes(model) | _layer_norms(model)


def attention_shapes(model: Model) -> Shapes:
    """The parameters of one layer's attention."""
    d, n, k, h = model.d_model, model.n_heads, model.n_kv_heads, model.d_head
    if n == k:
        projections = {"attention/qkv": ("DQNH", (d, 3, n, h))}
    else:
        projections = {
            "attention/qkv/query": ("DNH", (d, n, h)),
            "attention/qkv/key": ("DKH", (d, k, h)),
            "attention/qkv/value": ("DKH", (d, k, h)),
        }
    shapes: Shapes = {}
    for name, (letters, shape) in projections.items():
        shapes[f"{name}/weight_{letters}"] = shape
        if model.biases != "none":
            shapes[f"{name}/bias_{letters[1:]}"] = shape[1:]
    if model.heads.qk_norm:
        shapes |= {f"attention/norm_{x}/gain_H": (h,) for x in "qk"}
    if model.heads.sinks:
        shapes["attention/sink_N"] = (n,)
    shapes["attention/out/weight_DNH"] = (d, n, h)
    if model.biases == "all":
        shapes["attention/out/bias_D"] = (d,)
    return shapes


def mlp_shapes(model: Model) -> Shapes:
    """The parameters of one layer's MLP, or of its router and experts."""
    d, f = model.d_model, model.d_ff
    first = ("up",) if isinstance(model.expert, GELU) else ("gate", "up")
    has_bias, shapes = model.biases == "all", {}
    if isinstance(model.mlp, Experts):
        n = model.mlp.n_experts
        shapes |= {"mlp/router/weight_DX": (d, n)}
        shapes |= {f"mlp/{name}/weight_EDG": (n, d, f) for name in first}
        shapes |= {"mlp/down/weight_EGD": (n, f, d)}
        if has_bias:
            shapes |= {"mlp/router/bias_X": (n,), "mlp/down/bias_ED": (n, d)}
            shapes |= {f"mlp/{name}/bias_EG": (n, f) for name in first}
        return shapes
    shapes |= {f"mlp/{name}/weight_DF": (d, f) for name in (*first, "down")}
    if has_bias:
        shapes |= {f"mlp/{name}/bias_F": (f,) for name in first} | {"mlp/down/bias_D": (d,)}
    return shapes


def _layer_norms(model: Model) -> Shapes:
    names = ["norm_1", "norm_2"] + ["norm_1_out", "norm_2_out"] * (model.norm == "both")
    return {path: shape for name in names for path, shape in _norm(model, name).items()}


def _norm(model: Model, name: str) -> Shapes:
    shapes: Shapes = {f"{name}/gain_D": (model.d_model,)}
    if isinstance(model.norm_type, LayerNorm) and model.biases == "all":
        shapes[f"{name}/bias_D"] = (model.d_model,)
    return shapes


def total(shapes: Shapes) -> int:
    """Number of parameters."""
    return sum(map(math.prod, shapes.values()))


def matmul_weights(shapes: Shapes) -> int:
    """Number of parameters of the matmuls among these, without biases and gains."""
    return total({n: shape for n, shape in shapes.items() if "/weight_" in n})


def active(model: Model, shapes: Shapes) -> Shapes:
    """The parameters among these that one token passes through: of experts, the top_k."""
    if not isinstance(model.mlp, Experts):
        return shapes
    return {
        n: (model.mlp.top_k, *shape[1:]) if n.rpartition("_")[2].startswith("E") else shape
        for n, shape in shapes.items()
    }
