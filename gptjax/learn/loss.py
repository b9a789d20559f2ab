"""Next-token cross-entropy, in nats: plainly, and in chunks of the sequence so that the (B, T, V) logits never exist at once."""

import functools

import jax
import jax.numpy as jnp

from gptjax.arrays.shapes import shaped
from gptjax.model import gpt

CHUNK_BYTES = 128 * 2**20  # of float32 logits held at a time


@shaped
def plain(x_BTD, token_VD, targets_BT, weights_BT, n_vocab: int) -> jax.Array:
    """The reference: sum over tokens of weight * -log p(target), a float32 scalar, from logits held in full."""
    y_BTV = gpt.logits(x_BTD, token_VD, n_vocab)
    target_BT = jnp.take_along_axis(y_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(weights_BT * (jax.nn.logsumexp(y_BTV, axis=-1) - target_BT))


@shaped
def cross_entropy(x_BTD, token_VD, targets_BT, weights_BT, n_vocab: int) -> jax.Array:
    """`plain` in chunks along T, sized so that a chunk's logits take at most CHUNK_BYTES. The batch dimension is not cut: it is sharded.

    Differentiable in x_BTD and token_VD. The gradients are formed with the logits, in the forward pass (three matmuls in all, not four):
    they are exact because the result is a plain sum that later factors only scale."""
    B, T, _ = x_BTD.shape
    n_chunks = min(T, -(-B * T * token_VD.shape[0] * 4 // CHUNK_BYTES))
    pad = -T % n_chunks  # rows of weight 0
    padded = (jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2)) for a in (x_BTD, targets_BT, weights_BT))
    x_BTD, targets_BT, weights_BT = padded
    return _chunked(n_vocab, n_chunks, x_BTD, token_VD, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(n_vocab, n_chunks, x_BTD, token_VD, targets_BT, weights_BT):
    def chunk(x_BTD, targets_BT, weights_BT):
        return plain(x_BTD, token_VD, targets_BT, weights_BT, n_vocab), None

    return _over_chunks(n_chunks, jnp.float32(0), (x_BTD, targets_BT, weights_BT), chunk)[0]


def _chunked_fwd(n_vocab, n_chunks, x_BTD, token_VD, targets_BT, weights_BT):
    def chunk(x_BTD, targets_BT, weights_BT):
        y_BTV = gpt.logits(x_BTD, token_VD, n_vocab)
        norm_BT = jax.nn.logsumexp(y_BTV, axis=-1)
        target_BT = jnp.take_along_axis(y_BTV, targets_BT[..., None], axis=-1)[..., 0]
        hot_BTV = (jnp.arange(token_VD.shape[0])[None, None] == targets_BT[..., None]).astype(jnp.float32)
        dy_BTV = ((jnp.exp(y_BTV - norm_BT[..., None]) - hot_BTV) * weights_BT[..., None]).astype(x_BTD.dtype)
        dx_BTD = jnp.einsum("BTV,VD->BTD", dy_BTV, token_VD.astype(x_BTD.dtype))
        dtoken_VD = jnp.einsum("BTV,BTD->VD", dy_BTV, x_BTD, preferred_element_type=jnp.float32)
        return (jnp.sum(weights_BT * (norm_BT - target_BT)), dtoken_VD), dx_BTD

    zeros = (jnp.float32(0), jnp.zeros(token_VD.shape, jnp.float32))
    (total, dtoken_VD), dx_BTD = _over_chunks(n_chunks, zeros, (x_BTD, targets_BT, weights_BT), chunk)
    return total, (dx_BTD, dtoken_VD)


def _chunked_bwd(n_vocab, n_chunks, gradients, scale):
    dx_BTD, dtoken_VD = gradients
    return (dx_BTD * scale.astype(dx_BTD.dtype), dtoken_VD * scale, None, None)


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


def _over_chunks(n_chunks, total, arrays, chunk):
    """Run `chunk` on n_chunks slices of `arrays` along T: the first results summed into `total`, the second joined along T again."""
    if n_chunks == 1:
        return chunk(*arrays)
    cut = [jnp.moveaxis(a.reshape(a.shape[0], n_chunks, -1, *a.shape[2:]), 1, 0) for a in arrays]

    def body(total, parts):
        add, out = chunk(*parts)
        return jax.tree.map(jnp.add, total, add), out

    total, outs = jax.lax.scan(body, total, tuple(cut))
    return total, None if outs is None else jnp.moveaxis(outs, 0, 1).reshape(arrays[0].shape)
