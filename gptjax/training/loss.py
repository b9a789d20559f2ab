"""Next-token cross-entropy in nats: a plain reference, and a version that works on chunks of the
sequence, so that the (B, T, V) logits never exist as a whole."""

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
def cross_entropy_reference(
    x_BTD, token_VD, targets_BT, weights_BT, n_vocab: int, softcap: float | None = None
) -> jax.Array:
    """Returns the sum over tokens of weight * -log p(target), a float32 scalar. It computes all
    logits at once and serves as the reference for `cross_entropy`."""
    y_BTV = gpt.logits(x_BTD, token_VD, n_vocab, softcap=softcap)
    target_BT = jnp.take_along_axis(y_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(weights_BT * (jax.nn.logsumexp(y_BTV, axis=-1) - target_BT))


@shaped
def cross_entropy(
    x_BTD,
    token_VD,
    targets_BT,
    weights_BT,
    n_vocab: int,
    sharding: rules.Sharding = rules.UNSHARDED,
    softcap: float | None = None,
) -> jax.Array:
    """`cross_entropy_reference` in chunks along T, sized so that a chunk's logits take at most
    CHUNK_BYTES of a device.

    Differentiable in x_BTD and token_VD. The gradients are formed with the logits, in the forward
    pass (three matmuls in all, not four): they are exact because the result is a plain sum that
    later factors only scale.
    On a mesh each device has the whole sequence of its rows (its part of it over context) and its
    part of the vocabulary. The table is gathered along D only, and its gradient leaves the
    devices once, when all chunks are summed."""
    return _loss_by_chunks(n_vocab, softcap, sharding, x_BTD, token_VD, targets_BT, weights_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _loss_by_chunks(n_vocab, softcap, sharding, x_BTD, token_VD, targets_BT, weights_BT):
    def loss_shard(x_BTD, token_VD, targets_BT, weights_BT):
        vocab = VocabShard(n_vocab, softcap, sharding.axes("V"), token_VD)

        def chunk(x_BTD, targets_BT, weights_BT):
            y_BTV = vocab.logits(x_BTD)
            return jnp.sum(
                weights_BT * (vocab.logsumexp(y_BTV) - vocab.target_logit(y_BTV, targets_BT))
            ), None

        total, _ = _scan_chunks(
            token_VD.shape[0], jnp.float32(0), (x_BTD, targets_BT, weights_BT), chunk
        )
        return jax.lax.psum(total, rows)

    rows = (*sharding.axes("B"), *sharding.axes("T"))
    arrays = (x_BTD, token_VD.astype(x_BTD.dtype), targets_BT, weights_BT)
    return sharding.shard_map(loss_shard, _in_specs(sharding, *arrays), PartitionSpec())(*arrays)


def _loss_by_chunks_fwd(n_vocab, softcap, sharding, x_BTD, token_VD, targets_BT, weights_BT):
    def loss_shard(x_BTD, token_VD, targets_BT, weights_BT):
        vocab = VocabShard(n_vocab, softcap, sharding.axes("V"), token_VD)

        def chunk(x_BTD, targets_BT, weights_BT):
            y_BTV = vocab.logits(x_BTD)
            norm_BT = vocab.logsumexp(y_BTV)
            dy_BTV = (jnp.exp(y_BTV - norm_BT[..., None]) - vocab.one_hot(targets_BT)) * weights_BT[
                ..., None
            ]
            dy_BTV = vocab.uncap_gradient(dy_BTV, y_BTV).astype(x_BTD.dtype)
            dx_BTD = jnp.einsum("BTV,VD->BTD", dy_BTV, token_VD)
            dtoken_VD = jnp.einsum("BTV,BTD->VD", dy_BTV, x_BTD, preferred_element_type=jnp.float32)
            return (
                jnp.sum(weights_BT * (norm_BT - vocab.target_logit(y_BTV, targets_BT))),
                dtoken_VD,
            ), dx_BTD

        zeros = (jnp.float32(0), jnp.zeros(token_VD.shape, jnp.float32))
        (total, dtoken_VD), dx_BTD = _scan_chunks(
            token_VD.shape[0], zeros, (x_BTD, targets_BT, weights_BT), chunk
        )
        if sharding.axes("V"):  # summed over the parts of the vocabulary, in pieces of the sequence
            dx_BTD = jax.lax.psum_scatter(
                dx_BTD, sharding.axes("V"), scatter_dimension=1, tiled=True
            )
        return jax.lax.psum(total, rows), dx_BTD, sharding.reduce_scatter_grad(dtoken_VD, "VD")

    rows = (*sharding.axes("B"), *sharding.axes("T"))
    arrays = (x_BTD, token_VD.astype(x_BTD.dtype), targets_BT, weights_BT)
    outs = (
        PartitionSpec(),
        sharding.spec("BPD", x_BTD.shape),
        sharding.spec("VD", token_VD.shape, sharding.rules.params),
    )
    total, *gradients = sharding.shard_map(loss_shard, _in_specs(sharding, *arrays), outs)(*arrays)
    return total, gradients


@shaped
def token_nll(
    x_BTD,
    token_VD,
    targets_BT,
    n_vocab: int,
    sharding: rules.Sharding = rules.UNSHARDED,
    softcap: float | None = None,
) -> jax.Array:
    """Returns -log p(target) of every token, float32 (B, T), in the chunks of `cross_entropy`. It
    has no gradient: of a weighted sum, take that of `cross_entropy`."""

    def values(vocab, y_BTV, targets_BT):
        return vocab.logsumexp(y_BTV) - vocab.target_logit(y_BTV, targets_BT)

    return _token_values(values, x_BTD, token_VD, targets_BT, n_vocab, sharding, softcap)


@shaped
def token_entropy(
    x_BTD,
    token_VD,
    n_vocab: int,
    sharding: rules.Sharding = rules.UNSHARDED,
    softcap: float | None = None,
) -> jax.Array:
    """Returns the entropy (nats) of the distribution after every token, float32 (B, T), in the
    chunks of `cross_entropy`. It has no gradient."""

    def values(vocab, y_BTV, targets_BT):
        return vocab.entropy(y_BTV)

    no_targets_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
    return _token_values(values, x_BTD, token_VD, no_targets_BT, n_vocab, sharding, softcap)


def _token_values(values, x_BTD, token_VD, targets_BT, n_vocab, sharding, softcap):
    """values(VocabShard, logits, targets) -> (B, T) of every token, in chunks."""

    def shard(x_BTD, token_VD, targets_BT):
        vocab = VocabShard(n_vocab, softcap, sharding.axes("V"), token_VD)

        def chunk(x_BTD, targets_BT):
            values_BT = values(vocab, vocab.logits(x_BTD), targets_BT)
            return jnp.float32(0), values_BT[..., None]

        _, values_BT1 = _scan_chunks(token_VD.shape[0], jnp.float32(0), (x_BTD, targets_BT), chunk)
        assert values_BT1 is not None
        return values_BT1[..., 0]

    arrays = jax.lax.stop_gradient((x_BTD, token_VD.astype(x_BTD.dtype), targets_BT))
    rows = sharding.spec("BT", targets_BT.shape)
    specs = (sharding.spec("BTD", x_BTD.shape), sharding.spec("V1", token_VD.shape), rows)
    return sharding.shard_map(shard, specs, rows)(*arrays)


def _in_specs(sharding, x_BTD, token_VD, targets_BT, weights_BT):
    rows = sharding.spec("BT", targets_BT.shape)
    return sharding.spec("BTD", x_BTD.shape), sharding.spec("V1", token_VD.shape), rows, rows


def _loss_by_chunks_bwd(n_vocab, softcap, sharding, gradients, scale):
    dx_BTD, dtoken_VD = gradients
    return (dx_BTD * scale.astype(dx_BTD.dtype), dtoken_VD * scale, None, None)


_loss_by_chunks.defvjp(_loss_by_chunks_fwd, _loss_by_chunks_bwd)


@dataclasses.dataclass(frozen=True)
class VocabShard:
    """The slice of the vocabulary that one device holds: the rows of its token_VD, when n_vocab ids
    are split over the mesh axes `axes`."""

    n_vocab: int
    softcap: float | None
    axes: tuple[str, ...]
    token_VD: jax.Array

    def first_id(self):
        return jax.lax.axis_index(self.axes) * self.token_VD.shape[0] if self.axes else 0

    def logits(self, x_BTD):
        return gpt.logits(x_BTD, self.token_VD, self.n_vocab, self.first_id(), self.softcap)

    def uncap_gradient(self, dy_BTV, y_BTV):
        """Returns the gradient of the logits before their softcap, given that of the logits."""
        if self.softcap is None:
            return dy_BTV
        # Columns of padding are minus infinity, and have no gradient.
        slope_BTV = 1 - jnp.square(y_BTV / self.softcap)
        return jnp.where(jnp.isfinite(y_BTV), dy_BTV * slope_BTV, 0)

    def one_hot(self, targets_BT):
        """Returns float32 (B, T, V): 1 at the target, 0 elsewhere."""
        return (
            self.first_id() + jnp.arange(self.token_VD.shape[0])[None, None]
            == targets_BT[..., None]
        ).astype(jnp.float32)

    def target_logit(self, y_BTV, targets_BT):
        """Returns the logit of the target, (B, T)."""
        y_BT = jnp.sum(jnp.where(self.one_hot(targets_BT) > 0, y_BTV, 0), axis=-1)
        return jax.lax.psum(y_BT, self.axes)

    def entropy(self, y_BTV):
        """Returns the entropy over the whole vocabulary, (B, T), nats."""
        norm_BT = self.logsumexp(y_BTV)
        log_p_BTV = y_BTV - norm_BT[..., None]
        # Columns of padding are minus infinity, and have no part in it.
        parts_BTV = jnp.where(jnp.isfinite(y_BTV), -jnp.exp(log_p_BTV) * log_p_BTV, 0)
        return jax.lax.psum(jnp.sum(parts_BTV, axis=-1), self.axes)

    def logsumexp(self, y_BTV):
        """Returns the logsumexp over the whole vocabulary, (B, T), reduced over devices."""
        top_BT = jax.lax.pmax(jnp.max(y_BTV, axis=-1), self.axes)
        return (
            jnp.log(jax.lax.psum(jnp.sum(jnp.exp(y_BTV - top_BT[..., None]), axis=-1), self.axes))
            + top_BT
        )


def _scan_chunks(n_vocab, total, arrays, chunk):
    """Runs `chunk` on slices of `arrays` along T. Its first results are summed into `total`, its
    second results are concatenated along T."""
    x = arrays[0]
    B, T, _ = x.shape
    n_chunks = min(T, -(-B * T * n_vocab * 4 // CHUNK_BYTES))
    # Rather a few more that are equal, whose length is then likely what fits a TPU's tiles, than a
    # last one of padding.
    n_chunks = next((n for n in range(n_chunks, 2 * n_chunks) if T % n == 0), n_chunks)
    if n_chunks == 1:
        return chunk(*arrays)
    pad = -T % n_chunks  # positions of weight 0
    padded = (jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2)) for a in arrays)
    chunks = tuple(jnp.moveaxis(a.reshape(B, n_chunks, -1, *a.shape[2:]), 1, 0) for a in padded)

    def body(total, parts):
        partial, out = chunk(*parts)
        return jax.tree.map(jnp.add, total, partial), out

    total, outs = jax.lax.scan(body, total, chunks)
    return total, None if outs is None else jnp.moveaxis(outs, 0, 1).reshape(B, T + pad, -1)[:, :T]
