"""The pre-trained parameters that fine-tuning starts from (GPT-1 section 5, "Impact of number of
layers transferred")."""

from typing import Any

import jax
import jax.numpy as jnp

from gptjax.config.classification import Everything, Layers, Nothing, Transfer
from gptjax.config.schema import Model


def transfer_params(
    new: dict[str, Any], old: dict[str, Any], model: Model, n_vocab: int, transfer: Transfer
) -> dict[str, Any]:
    """The GPT's parameters `new`, with those of `old` in their place as far as `transfer` says.
    model: the new one's sizes, which differ from the old one's in vocabulary and context alone;
    n_vocab: the old one's, whose rows are taken, so that special tokens stay new.

    The layer norm after the last layer (pre-LN models) comes with Everything only. ValueError
    for more layers than there are."""
    match transfer:
        case Nothing():
            return new
        case Everything():
            n = model.n_layers
        case Layers(n=n):
            if n > model.n_layers:
                raise ValueError(
                    f"task.transfer=Layers(n={n}): the model has {model.n_layers} layers; give as "
                    "many or fewer"
                )
    params = dict(new)
    params["token_VD"] = new["token_VD"].at[:n_vocab].set(old["token_VD"][:n_vocab])
    params["position_TD"] = old["position_TD"][: model.n_ctx]
    if "norm" in new and isinstance(transfer, Everything):
        params["norm"] = old["norm"]
    period = len(model.attention)
    blocks = {}
    for name, block in new["periods"].items():  # block_i: layer i of each period
        use_old = jnp.arange(model.n_periods) * period + int(name.rpartition("_")[2]) < n
        blocks[name] = jax.tree.map(
            lambda a, b: jnp.where(_broadcast_like(use_old, a), b, a),  # noqa: B023
            block,
            old["periods"][name],
        )
    return params | {"periods": blocks}


def _broadcast_like(flags, x):
    return flags.reshape(-1, *(1,) * (x.ndim - 1))
