"""The families after GPT-3 at their published sizes: Llama 3 and 3.1, Gemma 2 and 3, Phi-3,
gpt-oss, SmolLM2, as one table with a row per model.

Marks: [paper] the model's own paper or card, [code] its released code or config.json, [chosen] our
choice, where nothing is published. Data mixes, initial values and most optimizer settings of these
models are not published.
"""

import dataclasses
import functools
from typing import NamedTuple

from gptjax.config import layer, positions
from gptjax.config.data import Data, TokenizerJson
from gptjax.config.schema import (
    AdamW,
    Attention,
    Banded,
    BlockSparse,
    Compute,
    Config,
    Cosine,
    Dense,
    Mesh,
    Model,
    Train,
)

M, B, T = 10**6, 10**9, 10**12
MATMULS = "attention+qkv+mid+up"


class Row(NamedTuple):
    """The sizes of one model, and what its training is known by."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_ff: int
    n_vocab: int
    n_ctx: int
    tokens: int  # trained on
    peak_lr: float
    tensor: int  # as in ladder.py


# fmt: off
FAMILIES = {
    # layers, heads, KV heads, width, head, MLP, vocabulary, context, tokens, peak, tensor
    "llama3_8b":    Row(32, 32,  8, 4096, 128, 14_336, 128_256,   8_192, 15 * T,       3e-4,   1),
    "llama3_70b":   Row(80, 64,  8, 8192, 128, 28_672, 128_256,   8_192, 15 * T,       1.5e-4, 8),
    "llama31_8b":   Row(32, 32,  8, 4096, 128, 14_336, 128_256, 131_072, 15 * T,       3e-4,   1),
    "llama31_70b":  Row(80, 64,  8, 8192, 128, 28_672, 128_256, 131_072, 15 * T,       1.5e-4, 8),
    "gemma2_2b":    Row(26,  8,  4, 2304, 256,  9_216, 256_000,   8_192,  2 * T,       3e-4,   1),
    "gemma2_9b":    Row(42, 16,  8, 3584, 256, 14_336, 256_000,   8_192,  8 * T,       3e-4,   1),
    "gemma2_27b":   Row(46, 32, 16, 4608, 128, 36_864, 256_000,   8_192, 13 * T,       1.5e-4, 1),
    "gemma3_1b":    Row(26,  4,  1, 1152, 256,  6_912, 262_144,  32_768,  2 * T,       3e-4,   1),
    "gemma3_4b":    Row(34,  8,  4, 2560, 256, 10_240, 262_144, 131_072,  4 * T,       3e-4,   1),
    "gemma3_12b":   Row(48, 16,  8, 3840, 256, 15_360, 262_144, 131_072, 12 * T,       3e-4,   1),
    "gemma3_27b":   Row(62, 32, 16, 5376, 128, 21_504, 262_144, 131_072, 14 * T,       1.5e-4, 1),
    "phi3_mini":    Row(32, 32, 32, 3072,  96,  8_192,  32_064,   4_096, 3_300 * B,    3e-4,   1),
    "phi3_small":   Row(32, 32,  8, 4096, 128, 14_336, 100_352,   8_192, 4_800 * B,    3e-4,   1),
    "phi3_medium":  Row(40, 40, 10, 5120, 128, 17_920,  32_064,   4_096, 4_800 * B,    3e-4,   1),
    "gpt_oss_20b":  Row(24, 64,  8, 2880,  64,  2_880, 201_088, 131_072,  2 * T,       3e-4,   1),
    "gpt_oss_120b": Row(36, 64,  8, 2880,  64,  2_880, 201_088, 131_072,  2 * T,       1.5e-4, 1),
    "smollm2_135m": Row(30,  9,  3,  576,  64,  1_536,  49_152,   8_192,  2 * T,       3e-3,   1),
}
# fmt: on


def family(name: str, row: Row) -> Config:
    """The model of a row, with its family's form, and its training as far as it is known."""
    form = next(form for prefix, form in FORMS.items() if name.startswith(prefix))
    heads = layer.AttentionHeads(
        n_kv_heads=None if row.n_kv_heads == row.n_heads else row.n_kv_heads,
        d_head=None if row.n_heads * row.d_head == row.d_model else row.d_head,
    )
    model = Model(
        n_layers=row.n_layers,
        n_heads=row.n_heads,
        d_model=row.d_model,
        n_vocab=row.n_vocab,
        n_ctx=row.n_ctx,
        positions=(positions.Rotary(),),
        norm_type=layer.RMSNorm(eps=1e-5),
        heads=heads,
        mlp=layer.SwiGLU(d_ff=row.d_ff),
        biases="none",
        tied_output=False,
    )
    return Config(
        name=name,
        model=form(name, model, row),
        data=Data(tokenizer=TokenizerJson()),
        train=training(row),
        compute=Compute(remat=MATMULS),
        mesh=Mesh() if row.tensor == 1 else Mesh(tensor=row.tensor, sharding="fsdp_tensor"),
    )


def training(row: Row) -> Train:
    """Training of all families: AdamW with b1 0.9, b2 0.95, weight decay 0.1, clipping at 1, linear
    warm-up, cosine to a tenth of the peak, batches of 4M tokens [chosen: Llama 3's peak rates,
    first batch and warm-up of 8,000 updates are in 2407.21783; the others' are not published]."""
    batch = 2**22 // row.n_ctx * row.n_ctx
    return Train(
        total_tokens=row.tokens,
        batch_tokens=batch,
        schedule=Cosine(
            peak_lr=row.peak_lr,
            warmup_tokens=8_000 * batch,
            decay_tokens=row.tokens,
            final_fraction=0.1,
        ),
        optimizer=AdamW(weight_decay=0.1),
    )


def llama(name: str, model: Model, row: Row) -> Model:
    """Llama 3 (2407.21783). RoPE theta 500,000; RMSNorm with eps 1e-5 before each branch; SwiGLU;
    no biases; output of its own [code: llama-models, models/llama3]. 3.1: frequencies rescaled by 8
    from a context of 8,192 [code]."""
    scaling = positions.Llama31Scaling() if name.startswith("llama31") else None
    rotary = positions.Rotary(theta=500_000.0, scaling=scaling)
    return dataclasses.replace(model, positions=(rotary,))


def gemma(name: str, model: Model, row: Row) -> Model:
    """Gemma 2 (2408.00118) and Gemma 3 (2503.19786). RMSNorm with eps 1e-6 and gain 1 + w before
    and after each branch; GeGLU by the tanh form; embeddings times sqrt(d_model), output tied; no
    biases [code: google/gemma_pytorch].

    Gemma 2: layers alternate between a window of 4,096 and all keys; scores capped at 50, logits at
    30 [code]. Gemma 3: five layers with a window, then one without; queries and keys normalized;
    RoPE theta 10,000 in layers with a window and 1,000,000 without, where positions are divided by
    8 from 4B on [code; paper]. Scores are divided by the root of 256 or, at 27B, of d_model /
    n_heads [code].
    """
    is_27b = name.endswith("27b")
    heads = dataclasses.replace(
        model.heads,
        query_scalar=float(row.d_model // row.n_heads) if is_27b else 256.0,
        softcap=50.0 if name.startswith("gemma2") else None,
        qk_norm=name.startswith("gemma3"),
    )
    attention: tuple[Attention, ...] = (Banded(window=4096), Dense())
    rotary: tuple[positions.Rotary, ...] = (positions.Rotary(),)
    if name.startswith("gemma3"):
        attention = (Banded(window=512 if name == "gemma3_1b" else 1024),) * 5 + (Dense(),)
        scaling = None if name == "gemma3_1b" else positions.LinearScaling(factor=8.0)
        rotary = rotary * 5 + (positions.Rotary(theta=1e6, scaling=scaling),)
    return dataclasses.replace(
        model,
        attention=attention,
        positions=rotary,
        norm="both",
        norm_type=layer.RMSNorm(eps=1e-6, unit_offset=True),
        heads=heads,
        mlp=layer.GeGLU(d_ff=row.d_ff),
        tied_output=True,
        embedding_scale=row.d_model**0.5,
        logits_softcap=30.0 if name.startswith("gemma2") else None,
    )


def phi3(name: str, model: Model, row: Row) -> Model:
    """Phi-3 (2404.14219) mini and medium, with a context of 4,096: RoPE theta 10,000, RMSNorm,
    SwiGLU, window of 2,047 keys [code: config.json].

    small: LayerNorm and biases; block-sparse attention in every second layer, the first one among
    them, blocks of 64, 16 of them local, vertical stride 8; GEGELU with limit 20; RoPE theta
    1,000,000; muP: embeddings times 10, scores divided by d_head, logits by 8 [code; tied output is
    recalled, not re-read]. Its dropout of 0.1 on embeddings and MLPs is left out [chosen: the other
    families train without].
    """
    if name != "phi3_small":
        return dataclasses.replace(model, attention=(Banded(window=2047),))
    return dataclasses.replace(
        model,
        attention=(BlockSparse(block=64, local_blocks=16, stride=8), Dense()),
        positions=(positions.Rotary(theta=1e6),),
        norm_type=layer.LayerNorm(),
        heads=dataclasses.replace(model.heads, query_scalar=float(row.d_head**2)),
        mlp=layer.ClampedSwiGLU(d_ff=row.d_ff, limit=20.0),
        biases="all",
        tied_output=True,
        embedding_scale=10.0,
        logits_scale=1 / 8,
    )


def gpt_oss(name: str, model: Model, row: Row) -> Model:
    """gpt-oss (model card 2508.10925; code: openai/gpt-oss, gpt_oss/torch/model.py). RMSNorm with
    eps 1e-5 before each branch; biases everywhere; layers alternate between a window of 128 and all
    keys; a sink for each head; RoPE theta 150,000 with YaRN by 32 from a context of 4,096, its
    range not rounded; 32 or 128 experts of a clamped SwiGLU, limit 7, of which a token passes
    through 4 with weights that are a softmax over those [code]. d_ff is of one expert. The tokens
    are "trillions" [paper; 2T chosen]."""
    scaling = positions.Yarn(factor=32.0, original_context=4096, whole_indices=False)
    expert = layer.ClampedSwiGLU(d_ff=row.d_ff, limit=7.0)
    n_experts = 32 if name == "gpt_oss_20b" else 128
    return dataclasses.replace(
        model,
        attention=(Banded(window=128), Dense()),
        positions=(positions.Rotary(theta=150_000.0, scaling=scaling),),
        heads=dataclasses.replace(model.heads, sinks=True),
        mlp=layer.Experts(n_experts=n_experts, top_k=4, expert=expert),
        biases="all",
    )


def smollm2(name: str, model: Model, row: Row) -> Model:
    """SmolLM2 135M (2502.02737): Llama's form with tied output and RoPE theta 100,000 [code:
    config.json]."""
    return dataclasses.replace(model, positions=(positions.Rotary(theta=1e5),), tied_output=True)


FORMS = {"llama": llama, "gemma": gemma, "phi3": phi3, "gpt_oss": gpt_oss, "smollm2": smollm2}

CONFIGS = {name: functools.partial(family, name, row) for name, row in FAMILIES.items()}
