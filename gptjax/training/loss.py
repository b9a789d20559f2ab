"""Next-token cross-entropy, in nats: plainly, and in chunks of the sequence so that the (B, T, V) logits never exist at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gptjax.config import count
from gptjax.model import gpt
from gptjax.sharding import rules
from gptjax.sharding.shapes import shaped

CHUNK_BYTES = count.LOSS_CHUNK_BYTES  # of float32 logits that a device holds at a time


@shaped
def plain(x_BTD, token_VD, targets_BT, weights_BT, n_vocab: int) -> jax.Array:
    """The reference: sum over tokens of weight * -log p(target), a float32 scalar, from logits held in full."""
    y_BTV = gpt.logits(x_BTD, token_VD, n_vocab)
    target_BT = jnp.take_along_axis(y_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(weights_BT * (jax.nn.logsumexp(y_BTV, axis=-1) - target_BT))


@shaped
def cross_entropy(x_BTD, token_VD, targets_BT, weights_BT, n_vocab: int, place: rules.Placement = rules.NOWHERE) -> jax.Array:
    """`plain` in chunks along T, sized so that a chunk's logits take at most CHUNK_BYTES of a device.

    Differentiable in x_BTD and token_VD. The gradients are formed with the logits, in the forward pass (three matmuls in all, not four):
    they are exact because the result is a plain sum that later factors only scale.
    On a mesh each device has the whole sequence of its rows (its part of it over context) and its part of the vocabulary. The table is
    gathered along D only, and its gradient leaves the devices once, when all chunks are summed."""
    return _chunked(n_vocab, place, x_BTD, token_VD, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(n_vocab, place, x_BTD, token_VD, targets_BT, weights_BT):
    def local(x_BTD, token_VD, targets_BT, weights_BT):
        vocabulary = Vocabulary(n_vocab, place.axes("V"), token_VD)

        def chunk(x_BTD, targets_BT, weights_BT):
            y_BTV = vocabulary.logits(x_BTD)
            return jnp.sum(weights_BT * (vocabulary.norm(y_BTV) - vocabulary.at(y_BTV, targets_BT))), None

        total, _ = _over_chunks(token_VD.shape[0], jnp.float32(0), (x_BTD, targets_BT, weights_BT), chunk)
        return jax.lax.psum(total, rows)

    rows = (*place.axes("B"), *place.axes("T"))
    arrays = (x_BTD, token_VD.astype(x_BTD.dtype), targets_BT, weights_BT)
    return place.mapped(local, _in_specs(place, *arrays), PartitionSpec())(*arrays)


def _chunked_fwd(n_vocab, place, x_BTD, token_VD, targets_BT, weights_BT):
    def local(x_BTD, token_VD, targets_BT, weights_BT):
        vocabulary = Vocabulary(n_vocab, place.axes("V"), token_VD)

        def chunk(x_BTD, targets_BT, weights_BT):
            y_BTV = vocabulary.logits(x_BTD)
            norm_BT = vocabulary.norm(y_BTV)
            dy_BTV = (jnp.exp(y_BTV - norm_BT[..., None]) - vocabulary.hot(targets_BT)) * weights_BT[..., None]
            dy_BTV = dy_BTV.astype(x_BTD.dtype)
            dx_BTD = jnp.einsum("BTV,VD->BTD", dy_BTV, token_VD)
            dtoken_VD = jnp.einsum("BTV,BTD->VD", dy_BTV, x_BTD, preferred_element_type=jnp.float32)
            return (jnp.sum(weights_BT * (norm_BT - vocabulary.at(y_BTV, targets_BT))), dtoken_VD), dx_BTD

        zeros = (jnp.float32(0), jnp.zeros(token_VD.shape, jnp.float32))
        (total, dtoken_VD), dx_BTD = _over_chunks(token_VD.shape[0], zeros, (x_BTD, targets_BT, weights_BT), chunk)
        if place.axes("V"):  # summed over the parts of the vocabulary, in pieces of the sequence
            dx_BTD = jax.lax.psum_scatter(dx_BTD, place.axes("V"), scatter_dimension=1, tiled=True)
        return jax.lax.psum(total, rows), dx_BTD, place.reduced(dtoken_VD, "VD")

    rows = (*place.axes("B"), *place.axes("T"))
    arrays = (x_BTD, token_VD.astype(x_BTD.dtype), targets_BT, weights_BT)
    outs = PartitionSpec(), place.spec("BPD", x_BTD.shape), place.spec("VD", token_VD.shape, place.rules.params)
    total, *gradients = place.mapped(local, _in_specs(place, *arrays), outs)(*arrays)
    return total, gradients


def _in_specs(place, x_BTD, token_VD, targets_BT, weights_BT):
    rows = place.spec("BT", targets_BT.shape)
    return place.spec("BTD", x_BTD.shape), place.spec("V1", token_VD.shape), rows, rows


def _chunked_bwd(n_vocab, place, gradients, scale):
    dx_BTD, dtoken_VD = gradients
    return (dx_BTD * scale.astype(dx_BTD.dtype), dtoken_VD * scale, None, None)


_chunked.defvjp(_chunked_fwd, _chunked_bwd)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The part of the vocabulary that a device has: of n_vocab ids over the mesh axes `cut`, those of its rows token_VD."""

    n_vocab: int
    cut: tuple[str, ...]
    token_VD: jax.Array

    def first(self):
        return jax.lax.axis_index(self.cut) * self.token_VD.shape[0] if self.cut else 0

    def logits(self, x_BTD):
        return gpt.logits(x_BTD, self.token_VD, self.n_vocab, self.first())

    def hot(self, targets_BT):
        """float32 (B, T, V): 1 at the target."""
        return (self.first() + jnp.arange(self.token_VD.shape[0])[None, None] == targets_BT[..., None]).astype(jnp.float32)

    def at(self, y_BTV, targets_BT):
        """The logit of the target."""
        y_BT = jnp.sum(jnp.where(self.hot(targets_BT) > 0, y_BTV, 0), axis=-1)
        return jax.lax.psum(y_BT, self.cut)

    def norm(self, y_BTV):
        """logsumexp over the whole vocabulary."""
        top_BT = jax.lax.pmax(jnp.max(y_BTV, axis=-1), self.cut)
        return jnp.log(jax.lax.psum(jnp.sum(jnp.exp(y_BTV - top_BT[..., None]), axis=-1), self.cut)) + top_BT


def _over_chunks(n_vocab, total, arrays, chunk):
    """Run `chunk` on slices of `arrays` along T: the first results summed into `total`, the second joined along T again."""
    x = arrays[0]
    B, T, _ = x.shape
    n_chunks = min(T, -(-B * T * n_vocab * 4 // CHUNK_BYTES))
    # Rather a few more that are equal, whose length is then likely what fits a TPU's tiles, than a last one of padding.
    n_chunks = next((n for n in range(n_chunks, 2 * n_chunks) if T % n == 0), n_chunks)
    if n_chunks == 1:
        return chunk(*arrays)
    pad = -T % n_chunks  # positions of weight 0
    padded = (jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2)) for a in arrays)
    cut = tuple(jnp.moveaxis(a.reshape(B, n_chunks, -1, *a.shape[2:]), 1, 0) for a in padded)

    def body(total, parts):
        add, out = chunk(*parts)
        return jax.tree.map(jnp.add, total, add), out

    total, outs = jax.lax.scan(body, total, cut)
    return total, None if outs is None else jnp.moveaxis(outs, 0, 1).reshape(B, T + pad, -1)[:, :T]
