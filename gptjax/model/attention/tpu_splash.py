"""Splash attention for TPU: Pallas' block-sparse flash attention.

Scores stay in vector memory, one block of queries and keys at a time, and blocks that the pattern
empties cost nothing. Dense and Banded masks are computed in the kernel. Those of Strided and Fixed
are loaded, as the few distinct blocks, since integer division is slow on the vector unit; a stride
or a summary leaves no past block empty, so both cost as much as Dense.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as mask_info

from gptjax.config import schema
from gptjax.model.attention import patterns, scores
from gptjax.sharding.shapes import shaped

BLOCK_SIZES = (128, 256, 384, 512)  # queries or keys of a block; the kernel needs multiples of 128
# From this many keys on, blocks of dense attention may be twice as large: fewer steps, and little
# more work above the diagonal.
LONG_SEQUENCE = 4096
# The most copies of dq in the fused backward pass, one per block of keys: summing more costs more
# than a separate kernel for dq.
MAX_DQ_COPIES = 1


@shaped
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    pattern: schema.Attention,
    segments_BS: jax.Array | None = None,
    dropout: None = None,
    softmax: scores.Softmax = scores.PLAIN,
    interpret: bool = False,
) -> jax.Array:
    """reference.attend without dropout, on the arrays of one device: under a mesh, call it inside
    jax.shard_map(..., check_vma=False).

    interpret: run on CPU, slowly, for tests.
    """
    assert dropout is None
    T, S = q_BTNH.shape[1], k_BSKH.shape[1]
    kernel, blocks = _make_kernel(
        pattern,
        T,
        S,
        q_BTNH.shape[-1],
        q_BTNH.dtype.itemsize,
        interpret,
        q_BTNH.shape[2] if patterns.differs_by_head(pattern) else 1,
        softmax.softcap,
    )
    # Padding queries share a block with real ones, so it is visited and their outputs are finite;
    # causality hides padding keys.
    q_BNTH = _pad_to_block(
        q_BTNH * jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype), blocks.block_q
    ).swapaxes(1, 2)
    k_BKSH, v_BKSH = (_pad_to_block(x, blocks.block_kv).swapaxes(1, 2) for x in (k_BSKH, v_BSKH))
    segments = None
    if segments_BS is not None:
        segments = splash.SegmentIds(
            _pad_to_block(segments_BS[:, S - T :], blocks.block_q),
            _pad_to_block(segments_BS, blocks.block_kv),
        )
    if softmax.sinks_N is None:
        o_BNTH = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, segments)
    else:
        o_BNTH = jax.vmap(kernel, (0, 0, 0, 0, None))(
            q_BNTH, k_BKSH, v_BKSH, segments, softmax.sinks_N
        )
    o_BNTH = cast(jax.Array, o_BNTH)
    return o_BNTH.swapaxes(1, 2)[:, :T]


def pairs_by_kernel(pattern: schema.Attention, T: int) -> dict[str, int]:
    """Cost of each kernel for one head and T tokens: the number of (query, key) pairs in the blocks
    that it visits.
    """
    kernel, blocks = _make_kernel(pattern, T, T, 128, 2, False)
    infos = {
        "forward": kernel.fwd_mask_info,
        "dq": kernel.dq_mask_info,
        "dkv": kernel.dkv_mask_info,
    }
    area = blocks.block_q * blocks.block_kv
    return {
        name: area * int(np.count_nonzero(info.block_mask))
        for name, info in infos.items()
        if info is not None
    }


def _pad_to_block(x, block: int):
    """Pads axis 1 with zeros to a multiple of `block`."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), *[(0, 0)] * (x.ndim - 2)])


class StoredMask(masks.Mask):
    """The pattern's mask for query positions `queries` (T,) and keys 0 to S - 1. Blocks are
    evaluated on demand, and equal ones once.
    """

    def __init__(self, pattern: schema.Attention, queries: np.ndarray, S: int, head: int = 0):
        self.pattern, self.queries, self.S, self.head = pattern, queries, S, head
        # Shifting queries and keys by this much leaves the mask unchanged.
        match pattern:
            case schema.Fixed(block=block):
                self.period = block
            case schema.BlockSparse(block=block, stride=stride):
                self.period = block * stride
            case _:
                self.period = 1
        self.block_cache: dict[tuple[bytes, int, int], np.ndarray] = {}

    @property
    def shape(self):
        return len(self.queries), self.S

    def __getitem__(self, index):
        rows, columns = index
        base = columns.start - columns.start % self.period
        queries, first, end = self.queries[rows] - base, columns.start - base, columns.stop - base
        key = queries.tobytes(), first, end
        if key not in self.block_cache:
            self.block_cache[key] = patterns.mask_fn(
                self.pattern,
                queries[:, None],
                np.arange(first, end, dtype=np.int32)[None],
                self.head,
            )
        return self.block_cache[key]


class ComputedMask(StoredMask):
    """A mask that the kernel computes instead of loading it: splash recognizes it by these two
    attributes.
    """

    @property
    def q_sequence(self):
        return self.queries

    def mask_function(self, queries, keys):
        return patterns.mask_fn(self.pattern, queries, keys)


@functools.lru_cache(maxsize=64)
def _make_kernel(
    pattern: schema.Attention,
    T: int,
    S: int,
    d_head: int,
    itemsize: int,
    interpret: bool,
    n_masks: int = 1,
    softcap: float | None = None,
) -> tuple[splash.SplashAttentionKernel, splash.BlockSizes]:
    """Returns the kernel for T queries and S keys and its block sizes. Its arrays are NumPy arrays,
    so that it can be cached across traces. n_masks: 1 for any number of heads with the same mask,
    or the number of heads.
    """
    blocks = _block_sizes(pattern, T, S, d_head, itemsize)
    queries = np.arange(S - T, S + -T % blocks.block_q, dtype=np.int32)
    kind = ComputedMask if isinstance(pattern, schema.Dense | schema.Banded) else StoredMask
    mask = masks.MultiHeadMask(
        [kind(pattern, queries, S + -S % blocks.block_kv, head) for head in range(n_masks)]
    )
    sizes = blocks.block_q, blocks.block_kv
    forward, mask_function = mask_info.process_mask(mask, sizes)
    dkv, _ = mask_info.process_mask_dkv(mask, sizes, shrink_grid=not blocks.use_fused_bwd_kernel)
    kernel = splash.SplashAttentionKernel(
        forward,
        None if blocks.use_fused_bwd_kernel else forward,
        dkv,
        block_sizes=blocks,
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=softcap,
        # Of config/compute.py's REMAT_NAMES: if saved, the backward pass skips this kernel.
        residual_checkpoint_name="attention",
        mask_function=mask_function,
        interpret=interpret,
    )
    return kernel, blocks


def _block_sizes(
    pattern: schema.Attention, T: int, S: int, d_head: int, itemsize: int
) -> splash.BlockSizes:
    """Block sizes of up to 512 queries and keys, or 1,024 where many keys are visible.

    A grid step costs about 0.35 us of overhead, as much time as the matmuls of 128 rows. Heads of
    up to 64 are stored with the sequence dimension last; with the head dimension last they would be
    padded to 128 in memory and in the projection that computes them.

    itemsize: bytes of an element of queries and keys. Of 4-byte elements, blocks of 1,024 overflow
    VMEM in the backward pass with a stored mask.
    """
    narrow = isinstance(pattern, schema.Banded) and pattern.window <= 1024
    large = not narrow and S >= LONG_SEQUENCE and itemsize <= 2
    candidates = (*BLOCK_SIZES, 1024) if large else BLOCK_SIZES
    q, kv = (min(candidates, key=lambda block: -(-n // block) * (block + 128)) for n in (T, S))
    compute = min(kv, 512)
    fused = -(-S // kv) <= MAX_DQ_COPIES
    layout = splash.QKVLayout.SEQ_MINOR if d_head <= 64 else splash.QKVLayout.HEAD_DIM_MINOR
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=compute,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else q,
        block_kv_dq=None if fused else kv,
        use_fused_bwd_kernel=fused,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
