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

    The norm after the last layer (unless norms are post) comes with Everything only. ValueError
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
    for table in ("token_VD", "output_VD"):
        if table in new:
            params[table] = new[table].at[:n_vocab].set(old[table][:n_vocab])
    if "position_TD" in new:
        params["position_TD"] = old["position_TD"][: model.n_ctx]
    if "norm" in new and isinstance(transfer, Everything):
        params["norm"] = old["norm"]
    period = len(model.attention)
    for part, n_parts in (("periods", model.n_periods), ("remainder", 1)):
        if part not in new:
            continue
        first = 0 if part == "periods" else model.n_periods * period
        params[part] = {}
        for name, block in new[part].items():  # block_i: layer i of each period
            number = first + int(name.rpartition("_")[2])
            use_old = number + jnp.arange(n_parts) * period < n
            flags = use_old if part == "periods" else use_old[0]
            params[part][name] = jax.tree.map(
                lambda a, b: jnp.where(_broadcast_like(flags, a), b, a),  # noqa: B023
                block,
                old[part][name],
            )
    return params


def _broadcast_like(flags, x):
    return flags.reshape(*flags.shape, *(1,) * (x.ndim - flags.ndim))
