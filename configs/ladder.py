"""GPT-1, GPT-2 and GPT-3 at every published size: one table with a row per model, and three recipes
with what each paper says about training.

The docstrings give the source of every value, and what was chosen where the paper is silent. Marks:
[paper] the model's own paper, [code] OpenAI's released code, [chosen] our choice, with the reason.
"""

import functools
from typing import NamedTuple

from gptjax.config.data import Data, Gpt1Bpe, Gpt2Bpe, Shards
from gptjax.config.schema import (
    AdamW,
    Banded,
    Compute,
    Config,
    Cosine,
    Dense,
    Dropout,
    Init,
    Mesh,
    Model,
    Ramp,
    Train,
)


class Row(NamedTuple):
    """One model: its sizes, the training settings that depend on its size, and the figures that its
    paper prints.
    """

    n_layers: int
    n_heads: int
    d_model: int
    batch_tokens: int
    peak_lr: float
    ramp_tokens: int | None  # over which the batch size grows
    remat: str  # MATMULS where a row would save more than 5 GiB (count.py)
    tensor: (
        int  # devices that split matrix products and residual stream; 1: only the state is split
    )
    paper_params: str | None  # as the paper prints it
    paper_pf_days: float | None  # training compute, as the paper prints it


M, B = 10**6, 10**9
# Layers save the inputs of their matmuls; norms and GELU are cheap to recompute.
MATMULS = "attention+qkv+mid+up"

# fmt: off
LADDER = {
    # layers, heads, width, batch, peak, ramp over, remat, tensor; printed: parameters, PF-days
    "gpt1":        Row(12, 12,   768,     2**15, 2.5e-4,    None, "none",  1, None,       None),
    "gpt2_124m":   Row(12, 12,   768,     2**19, 6.92e-4,   None, "none",  1, "117M",     None),
    "gpt2_355m":   Row(24, 16,  1024,     2**19, 5.15e-4,   None, MATMULS, 1, "345M",     None),
    "gpt2_774m":   Row(36, 20,  1280,     2**19, 3.96e-4,   None, MATMULS, 1, "762M",     None),
    "gpt2_1558m":  Row(48, 25,  1600,     2**19, 2.94e-4,   None, MATMULS, 1, "1542M",    None),
    "gpt3_small":  Row(12, 12,   768,     2**19, 6.0e-4,   4 * B, MATMULS, 1, "125M",     2.60),
    "gpt3_medium": Row(24, 16,  1024,     2**19, 3.0e-4,   4 * B, MATMULS, 1, "356M",     7.42),
    "gpt3_large":  Row(24, 16,  1536,     2**19, 2.5e-4,   4 * B, MATMULS, 1, "760M",     15.8),
    "gpt3_xl":     Row(24, 16,  2048,     2**20, 2.0e-4,   7 * B, MATMULS, 1, "1,320M",   27.5),
    "gpt3_2b7":    Row(32, 32,  2560,     2**20, 1.6e-4,   7 * B, MATMULS, 1, "2,650M",   55.2),
    "gpt3_6b7":    Row(32, 32,  4096,     2**21, 1.2e-4,  10 * B, MATMULS, 1, "6,660M",   139.0),
    "gpt3_13b":    Row(40, 40,  5120,     2**21, 1.0e-4,  10 * B, MATMULS, 1, "12,850M",  268.0),
    "gpt3_175b":   Row(96, 96, 12288, 3_276_800, 0.6e-4,  12 * B, MATMULS, 8, "174,600M", 3640.0),
}
# fmt: on

# The papers' names for models. "117M" names both GPT-1 and the smallest GPT-2 in OpenAI's writing:
# GPT-1's paper prints no size, and GPT-2's Table 2 prints 117M for its smallest, so here it is
# GPT-2. 124M and so on are the counts that OpenAI corrected them to. GPT-3's are those of its
# Table 2.1.
ALIASES = {
    "openai-gpt": "gpt1",
    "gpt2": "gpt2_124m",
    "gpt2-medium": "gpt2_355m",
    "gpt2-large": "gpt2_774m",
    "gpt2-xl": "gpt2_1558m",
    "117m": "gpt2_124m",
    "345m": "gpt2_355m",
    "762m": "gpt2_774m",
    "1542m": "gpt2_1558m",
    "124m": "gpt2_124m",
    "355m": "gpt2_355m",
    "774m": "gpt2_774m",
    "1558m": "gpt2_1558m",
    "125m": "gpt3_small",
    "350m": "gpt3_medium",
    "760m": "gpt3_large",
    "1.3b": "gpt3_xl",
    "2.7b": "gpt3_2b7",
    "6.7b": "gpt3_6b7",
    "13b": "gpt3_13b",
    "175b": "gpt3_175b",
}


def gpt1(name: str, row: Row) -> Config:
    """Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section
    4.1.

    Model. 12 layers, 12 heads, width 768, context 512 [paper]. Layer norm after each residual sum,
    none before the first layer or after the last; tanh GELU; biases everywhere; output tied,
    without bias [code: train.py]. All weights and both embeddings N(0, 0.02), not scaled by depth
    [paper; code]. Dropout 0.1 on embeddings, attention weights and residual branches [paper]. The
    code drops elements of the embedding table, this model drops the summed embeddings [chosen: as
    every port does]. BPE with 40,000 merges, 40,478 ids [code].

    Optimizer. Adam, peak 2.5e-4, linear warm-up over 2,000 updates, cosine to 0 [paper]; b1 0.9, b2
    0.999, eps 1e-8, bias correction as a factor of the learning rate [code: fine-tuning's train.py
    and opt.py]. Decoupled decay 0.01 on everything but biases and gains, so on the embeddings too
    [paper; code: opt.py]. Clipping is not stated for pre-training: norm 1.0 [chosen: as in its
    fine-tuning code]. The code's cosine counts from the start of the warm-up, this one from its
    end, as the paper's words have it; they differ by less than 0.2% of the peak. The last update
    has a rate of 0 (in the code the first has, training/schedule.py).

    Length. Batches of 64 rows of 512 tokens [paper]. 100 epochs of BooksCorpus [paper], whose token
    count is not published: 1e6 updates [chosen: where Figure 2's axis ends]. Rows are contiguous
    text [paper], without a mask between books [chosen: as GPT-3] and without a separator, since the
    vocabulary has no end-of-text token: the last word of a book directly precedes the first of the
    next.
    """
    tokens = 1_000_000 * row.batch_tokens
    return Config(
        name=name,
        model=Model(
            n_layers=row.n_layers,
            n_heads=row.n_heads,
            d_model=row.d_model,
            n_vocab=40_478,
            n_ctx=512,
            attention=(Dense(),),
            norm="post",
            gelu="tanh",
            init=Init(weight=0.02, token=0.02, position=0.02, residual="flat"),
            dropout=Dropout(embedding=0.1, attention=0.1, residual=0.1),
        ),
        data=Data(tokenizer=Gpt1Bpe(), document_attention="attend"),
        train=Train(
            total_tokens=tokens,
            batch_tokens=row.batch_tokens,
            schedule=Cosine(
                peak_lr=row.peak_lr,
                warmup_tokens=2000 * row.batch_tokens,
                decay_tokens=tokens,
                final_fraction=0.0,
            ),
            optimizer=AdamW(
                b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0, bias_correction="rate"
            ),
        ),
        compute=Compute(remat=row.remat),
        mesh=_mesh(row),
    )


def gpt2(name: str, row: Row) -> Config:
    """Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sections 2.2, 2.3
    and Table 2.

    Model. Layers and widths [paper: Table 2]; heads [code: hparams of the released models]; context
    1,024, 50,257 ids, layer norm before each branch and after the last layer [paper]; tanh GELU,
    biases everywhere, output tied [code: src/model.py]. Tokens N(0, 0.02), positions N(0, 0.01),
    weights N(0, 0.02) [code]. Residual projections scaled by 1/sqrt(N), N the number of residual
    layers [paper], taken as 2 n_layers [chosen: two residual sums per layer, as the Sparse
    Transformer paper writes it; N is disputed]. Dropout is not mentioned: 0.1 at three sites
    [chosen: as OpenAI's own trainable copy, lm-human-preferences language/model.py].

    Optimizer. Not published, and learning rates were tuned by hand per size [paper]. [chosen: the
    nearest recipe that OpenAI published on the same data, Kaplan et al. 2020, 2001.08361, section
    2.2: Adam, 3,000 steps of linear warm-up, cosine to 0, 2.5e5 steps, and its Appendix D.6 for the
    peak, 0.003239 - 0.0001395 ln(non-embedding parameters), rounded in the table to three digits.]
    It used Adafactor above 1e9 parameters to save memory; here Adam serves all. b1 0.9, b2 0.95,
    eps 1e-8 and norm 1.0 [chosen: as GPT-3 stated a year later]. Decay 0.01 [chosen: as GPT-1]. The
    last update has a rate of 0.

    Length. Batches of 512 rows of 1,024 tokens [paper]; 2.5e5 steps as above, 131e9 tokens: about
    14 epochs of WebText's 40 GB.
    """
    tokens = 250_000 * row.batch_tokens
    return Config(
        name=name,
        model=Model(
            n_layers=row.n_layers,
            n_heads=row.n_heads,
            d_model=row.d_model,
            n_vocab=50_257,
            n_ctx=1024,
            attention=(Dense(),),
            norm="pre",
            gelu="tanh",
            init=Init(weight=0.02, token=0.02, position=0.01, residual="depth_scaled"),
            dropout=Dropout(embedding=0.1, attention=0.1, residual=0.1),
        ),
        data=Data(tokenizer=Gpt2Bpe(), document_attention="attend"),
        train=Train(
            total_tokens=tokens,
            batch_tokens=row.batch_tokens,
            schedule=Cosine(
                peak_lr=row.peak_lr,
                warmup_tokens=3000 * row.batch_tokens,
                decay_tokens=tokens,
                final_fraction=0.0,
            ),
            optimizer=AdamW(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.01, clip_norm=1.0),
        ),
        compute=Compute(remat=row.remat),
        mesh=_mesh(row),
    )


def gpt3(name: str, row: Row) -> Config:
    """Brown et al. 2020, "Language Models are Few-Shot Learners", section 2, Table 2.1 and Appendix
    B.

    Model. Table 2.1, with its two misprints resolved by its own Table D.1: XL prints 24 heads of
    128 for a width of 2,048, which would be 1,517M parameters, so 16 heads; 13B prints a width of
    5,140 for 40 heads of 128, so 5,120. GPT-2's architecture and initialization, 50,257 ids,
    context 2,048, and alternating dense and locally banded layers [paper]. The width of the band
    and which layers have it are not stated: 256 keys, on even layers [chosen: gpt-oss, which its
    card says follows GPT-3, bands layers 0, 2, 4...; GPT-Neo's replications take 256]. GELU: tanh
    [chosen: as GPT-2]. Dropout is not stated: none [chosen: most data is seen less than once].

    Optimizer. Adam, b1 0.9, b2 0.95, eps 1e-8, norm 1.0, decay 0.1 [paper: Appendix B]; decoupled,
    and on tensors with more than one dimension [chosen: it cites Loshchilov and Hutter; exemptions
    are not stated]. Peaks from Table 2.1; linear warm-up over 375M tokens, cosine to 10% at 260B,
    then constant to 300B [paper].

    Batch. Table 2.1's 0.5M, 1M, 2M and 3.2M tokens are taken as 2**19, 2**20, 2**21 and 1,600 rows
    [chosen: whole rows that split over many devices]. Linear from 32k tokens, taken as 2**15, over
    the first 4 to 12B tokens "depending on model size" [paper]; which size has which is not
    published: 4B, 7B, 10B and 12B by batch size [chosen].

    Mesh. Model parallelism within matrix products and across layers [paper: section 2.3]; in which
    proportions is not stated. Up to 13B each device has its own rows and 1/n of the state (fsdp): a
    batch of 1,024 rows feeds as many devices. 175B also splits matrix products and rows 8 ways
    [chosen: 1,600 rows do not split over 512 devices, and a layer's gathered weights are then 0.4
    instead of 3.4 GiB].

    Data. Documents are packed with end-of-text between them and no mask [paper]; the mixture of
    Table 2.2 is `gpt3_mixture`.
    """
    return Config(
        name=name,
        model=Model(
            n_layers=row.n_layers,
            n_heads=row.n_heads,
            d_model=row.d_model,
            n_vocab=50_257,
            n_ctx=2048,
            attention=(Banded(window=256), Dense()),
            norm="pre",
            gelu="tanh",
            init=Init(weight=0.02, token=0.02, position=0.01, residual="depth_scaled"),
            dropout=Dropout(),
        ),
        data=Data(tokenizer=Gpt2Bpe(), document_attention="attend"),
        train=Train(
            total_tokens=300 * B,
            batch_tokens=row.batch_tokens,
            schedule=Cosine(
                peak_lr=row.peak_lr, warmup_tokens=375 * M, decay_tokens=260 * B, final_fraction=0.1
            ),
            optimizer=AdamW(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0),
            batch_ramp=None
            if row.ramp_tokens is None
            else Ramp(start_tokens=2**15, over_tokens=row.ramp_tokens),
        ),
        compute=Compute(remat=row.remat),
        mesh=_mesh(row),
    )


def gpt3_mixture(root: str) -> tuple[Shards, ...]:
    """GPT-3's Table 2.2: five data sets under `root`, tokenized by gptjax.prepare, with the weights
    that the paper prints, which sum to 1.01.

    Use: dataclasses.replace(config.data, sources=gpt3_mixture("/data/gpt3")).
    """
    weights = {
        "common_crawl": 0.60,
        "webtext2": 0.22,
        "books1": 0.08,
        "books2": 0.08,
        "wikipedia": 0.03,
    }
    return tuple(Shards(path=f"{root}/{name}", weight=weight) for name, weight in weights.items())


def _mesh(row: Row) -> Mesh:
    """The mesh of a row: fsdp alone, or fsdp and tensor."""
    return Mesh() if row.tensor == 1 else Mesh(tensor=row.tensor, sharding="fsdp_tensor")


_RECIPES = {"gpt1": gpt1, "gpt2": gpt2, "gpt3": gpt3}

CONFIGS = {
    name: functools.partial(_RECIPES[name.split("_")[0]], name, row) for name, row in LADDER.items()
}
PAPER_FIGURES = {name: (row.paper_params, row.paper_pf_days) for name, row in LADDER.items()}
