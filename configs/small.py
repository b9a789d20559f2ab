"""Configs for a laptop: `nano`, the first command of the README; `shakespeare_char`, nanoGPT's
published CPU run; `gpt1_mini`, for fine-tuning; `micro`, for sweeps on a CPU; `smoke`, for tests.
"""

from gptjax.config.data import Bytes, Data, Embedded, SentencePiece, Tail, Text
from gptjax.config.schema import AdamW, Config, Cosine, Init, Loop, Model, Train

TEXT_SOURCES = {
    "shakespeare_char": (
        "input.txt",
        "get https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
        "input.txt, and give it with --text=input.txt",
    ),
    "gpt1_mini": (
        "texts",
        "give any English text, some 30 MB, with --text=FILES; docs/results/gpt1-ablation.md is of "
        "NLTK's Brown corpus, Moby Dick, Shakespeare, speeches to Congress and WordNet's glosses",
    ),
}


def nano() -> Config:
    """Four layers on the text that every CPython contains, sized to train within 10 minutes on 2
    CPU cores: `make train`.

    Chosen by speed and early loss among 3 to 6 layers, 128 to 256 wide (docs/log.md). The batch is
    small, for as many updates as possible.
    """
    n_ctx, n_vocab = 128, 4096
    rows, steps, warmup_steps = 8, 1750, 50
    batch_tokens = rows * n_ctx
    return Config(
        name="nano",
        model=Model(
            n_layers=4,
            n_heads=4,
            d_model=192,
            n_vocab=n_vocab,
            n_ctx=n_ctx,
            init=Init(residual="depth_scaled"),
        ),
        data=Data(sources=(Embedded(),), tokenizer=SentencePiece(n_pieces=n_vocab)),
        train=Train(
            total_tokens=steps * batch_tokens,
            batch_tokens=batch_tokens,
            schedule=Cosine(
                peak_lr=3e-3,
                warmup_tokens=warmup_steps * batch_tokens,
                decay_tokens=steps * batch_tokens,
                final_fraction=0.1,
            ),
            optimizer=AdamW(b2=0.95, weight_decay=0.1),
        ),
        loop=Loop(
            every_log=50,
            every_eval=250,
            eval_rows=128,
            every_save=250,
            every_sample=500,
            sample_prompt="def ",
            sample_tokens=96,
        ),
    )


def shakespeare_char() -> Config:
    """nanoGPT's published CPU run: tiny Shakespeare by characters, validation loss 1.88 (README.md,
    "I only have a macbook").

    From its command line: 4 layers, 4 heads, width 128, context 64, 12 rows, 2,000 steps, decay
    over all of them, no dropout. From its config/train_shakespeare_char.py: peak 1e-3, floor 1e-4,
    100 steps of warm-up, b2 0.99. From its train.py and model.py: decay 0.1 on tensors with more
    than one dimension, clip 1, exact GELU, standard deviation 0.02 and depth-scaled residuals, the
    last tenth held out. Two things differ: bytes replace its 65 characters (the text is ASCII; 192
    ids never occur), and biases stay, which it leaves out. TEXT_SOURCES says where to get the text;
    --text=FILE trains on another one.
    """
    n_ctx = 64
    rows, steps, warmup_steps = 12, 2000, 100
    batch_tokens = rows * n_ctx
    return Config(
        name="shakespeare_char",
        model=Model(
            n_layers=4,
            n_heads=4,
            d_model=128,
            n_vocab=257,
            n_ctx=n_ctx,
            gelu="erf",
            init=Init(residual="depth_scaled"),
        ),
        data=Data(
            sources=(Text(path=TEXT_SOURCES["shakespeare_char"][0]),),
            tokenizer=Bytes(),
            validation=Tail(fraction=0.1),
        ),
        train=Train(
            total_tokens=steps * batch_tokens,
            batch_tokens=batch_tokens,
            schedule=Cosine(
                peak_lr=1e-3,
                warmup_tokens=warmup_steps * batch_tokens,
                decay_tokens=steps * batch_tokens,
                final_fraction=0.1,
            ),
            optimizer=AdamW(b2=0.99, weight_decay=0.1),
        ),
        loop=Loop(
            every_eval=250, eval_rows=1024, every_save=250, every_sample=500, sample_tokens=200
        ),
    )


def gpt1_mini() -> Config:
    """GPT-1 in small, for the fine-tuning results in the documentation: 4 post-LN layers, width
    128, on English text within 20 minutes on 2 cores. No dropout, unlike GPT-1: every text is read
    only once.
    """
    n_ctx, n_vocab = 64, 4096
    rows, steps, warmup_steps = 32, 5000, 200
    batch_tokens = rows * n_ctx
    return Config(
        name="gpt1_mini",
        model=Model(n_layers=4, n_heads=4, d_model=128, n_vocab=n_vocab, n_ctx=n_ctx, norm="post"),
        data=Data(
            sources=(Text(path=TEXT_SOURCES["gpt1_mini"][0]),),
            tokenizer=SentencePiece(n_pieces=n_vocab),
            validation=Tail(fraction=0.01),
        ),
        train=Train(
            total_tokens=steps * batch_tokens,
            batch_tokens=batch_tokens,
            schedule=Cosine(
                peak_lr=1e-3,
                warmup_tokens=warmup_steps * batch_tokens,
                decay_tokens=steps * batch_tokens,
            ),
            optimizer=AdamW(b2=0.999, weight_decay=0.01),
        ),
        loop=Loop(every_log=100, every_eval=1000, eval_rows=256, every_save=1000, every_keep=1000),
    )


def micro() -> Config:
    """A minute on one CPU core, so that a sweep can have many arms and seeds: 4 layers, width 64,
    1,000 steps of 2 rows of 256 tokens.

    The batch is so small because steps are scarce: after 410k tokens, batches of 512 tokens reach a
    loss of 4.59 and batches of 1,024 reach 4.82 (docs/log.md). On accelerators give each point one:
    `gptjax.sweep --devices=1`.
    """
    n_ctx, n_vocab = 256, 1024
    rows, steps, warmup_steps = 2, 1000, 100
    batch_tokens = rows * n_ctx
    return Config(
        name="micro",
        model=Model(n_layers=4, n_heads=4, d_model=64, n_vocab=n_vocab, n_ctx=n_ctx),
        data=Data(sources=(Embedded(),), tokenizer=SentencePiece(n_pieces=n_vocab)),
        train=Train(
            total_tokens=steps * batch_tokens,
            batch_tokens=batch_tokens,
            schedule=Cosine(
                peak_lr=3e-3,
                warmup_tokens=warmup_steps * batch_tokens,
                decay_tokens=steps * batch_tokens,
                final_fraction=0.1,
            ),
        ),
        loop=Loop(every_log=100, every_eval=250, eval_rows=128, every_save=1000),
    )


def smoke() -> Config:
    """Seconds long, for tests: 2 layers, width 32, 40 steps of 8 rows of 32 bytes."""
    n_ctx, rows, steps = 32, 8, 40
    batch_tokens = rows * n_ctx
    return Config(
        name="smoke",
        model=Model(n_layers=2, n_heads=2, d_model=32, n_vocab=257, n_ctx=n_ctx),
        data=Data(sources=(Embedded(),), tokenizer=Bytes()),
        train=Train(
            total_tokens=steps * batch_tokens,
            batch_tokens=batch_tokens,
            schedule=Cosine(
                peak_lr=3e-3,
                warmup_tokens=4 * batch_tokens,
                decay_tokens=steps * batch_tokens,
                final_fraction=0.1,
            ),
        ),
        loop=Loop(every_eval=20, eval_rows=8, every_save=10, sample_tokens=16),
    )


CONFIGS = {
    "smoke": smoke,
    "nano": nano,
    "shakespeare_char": shakespeare_char,
    "gpt1_mini": gpt1_mini,
    "micro": micro,
}
