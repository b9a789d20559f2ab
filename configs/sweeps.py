"""Named sweeps: a question each, over a small recipe. SWEEPS maps a name to a function that
returns a Sweep."""

from gptjax.config import count
from gptjax.config.overrides import override
from gptjax.config.sweep import Points, Sweep, chain, each, grid, seeds, zip_axes
from gptjax.configs import ablations, small

PEAK_LR = "train.schedule.peak_lr"
# micro's batch as one row, long enough for attention to cost something
LONG_ROWS = ("model.n_ctx=512",)
PATTERNS = (
    "Dense()",
    "(Dense(),Banded(window=32))",
    "(Dense(),Strided(stride=16))",
    "(Dense(),Fixed(block=32,summary=4))",
)


def smoke_peak() -> Sweep:
    """Seconds long, for tests."""
    return Sweep(
        description="which peak learning rate is best for the smallest model?",
        recipe="smoke",
        points=grid(each(PEAK_LR, 1e-3, 3e-3), seeds(2)),
    )


# --- attention ------------------------------------------------------------------------------------


def sparse_patterns() -> Sweep:
    """GPT-3 section 2.1 alternates dense and locally banded layers; strided and fixed are Child
    et al.'s (1904.10509)."""
    return Sweep(
        description="what does a sparse pattern in every other layer cost, at equal steps?",
        recipe="micro",
        overrides=LONG_ROWS,
        points=grid(each("model.attention", *PATTERNS), seeds(3)),
    )


def sparse_patterns_flops() -> Sweep:
    """Every pattern trains for the FLOPs that the dense model has, as config/count.py counts
    them: a sparse one on more tokens."""
    dense = override(small.micro(), *LONG_ROWS)

    def equal_flops(pattern: str) -> Points:
        share = count.train_flops_per_token(dense.model) / count.train_flops_per_token(
            override(dense, f"model.attention={pattern}").model
        )
        return lengths(
            round(dense.train.total_tokens * share / dense.train.batch_tokens)
            * dense.train.batch_tokens
        )

    return Sweep(
        description="is a sparse pattern in every other layer better, at equal FLOPs?",
        recipe="micro",
        overrides=LONG_ROWS,
        points=grid(
            zip_axes(each("model.attention", *PATTERNS), chain(*map(equal_flops, PATTERNS))),
            seeds(3),
        ),
    )


def sparse_window() -> Sweep:
    """GPT-3 does not state its window."""
    patterns = (f"(Dense(),Banded(window={window}))" for window in (4, 32, 128))
    return Sweep(
        description="what does a narrower band cost, in every other layer?",
        recipe="micro",
        overrides=LONG_ROWS,
        points=grid(each("model.attention", "Dense()", *patterns), seeds(3)),
    )


# --- GPT-1 to GPT-2 -------------------------------------------------------------------------------


def norms() -> Sweep:
    """GPT-1: post-LN. GPT-2 section 2.3: layer norm before each sub-layer and after the last, and
    residual weights scaled by depth at initialization. At two learning rates, since it is at
    high ones that post-LN is said to fail."""
    kinds = zip_axes(
        each("model.norm", "post", "pre", "pre"),
        each("model.init.residual", "flat", "flat", "depth_scaled"),
    )
    return Sweep(
        description=(
            "what did GPT-2 gain by moving the layer norms and by scaling the residual weights "
            "with depth?"
        ),
        recipe="micro",
        overrides=("model.n_layers=8", "model.d_model=48", "model.n_heads=3"),
        points=grid(each(PEAK_LR, 3e-3, 1e-2), kinds, seeds(3)),
    )


# --- learning rate, batch, data -------------------------------------------------------------------


def peak_by_size() -> Sweep:
    """GPT-3's Table 2.1 lowers the learning rate with size, from 6e-4 to 0.6e-4."""
    return Sweep(
        description="does a larger model want a lower learning rate?",
        recipe="micro",
        points=grid(shapes((2, 32), (4, 64), (5, 128)), each(PEAK_LR, 1e-3, 3e-3, 1e-2)),
    )


def peak_by_batch() -> Sweep:
    """All on the same tokens; row by row, for the gradient noise scale (McCandlish et al. 2018)."""
    return Sweep(
        description="how large a batch, and which learning rate for it?",
        recipe="smoke",
        overrides=(
            *lengths(81_920)[0],
            "train.microbatch_rows=1",
            "loop.every_eval=5",
            "loop.eval_rows=32",
            "loop.every_save=2000",
        ),
        points=grid(
            each("train.batch_tokens", 64, 256, 1024, 4096), each(PEAK_LR, 1e-3, 3e-3, 1e-2)
        ),
    )


def mixtures() -> Sweep:
    """As GPT-3's Table 2.2 weighs its sources. Losses are per byte: a tokenizer would depend on the
    mixture.

    Its texts are NLTK's Brown corpus and state_union, as brown.txt and state_union.jsonl where
    the sweep is begun."""
    embedded, brown = "Embedded(weight={})", "Text(path='brown.txt',weight={})"
    mixes = (f"({embedded.format(1 - weight)},{brown.format(weight)})" for weight in (0.25, 0.75))
    return Sweep(
        description=(
            "how much English (brown.txt) must be in a mixture with Python, for another English "
            "text (state_union.jsonl)?"
        ),
        recipe="micro",
        overrides=(
            "data.tokenizer=Bytes()",
            "model.n_vocab=257",
            "data.validation=Separate(source=Text(path='state_union.jsonl'))",
        ),
        points=grid(each("data.sources", embedded.format(1), *mixes, brown.format(1)), seeds(3)),
    )


# --- scaling --------------------------------------------------------------------------------------


def sizes() -> Sweep:
    """Five sizes on three lengths of text, and a sixth, twice as large as the largest, that the
    laws predict before it is trained. Each at the learning rate that `peak_by_size` found for
    it: 3e-3 (64 / d_model)^1.5."""
    tokens = (256_000, 512_000, 1_024_000)
    return Sweep(
        description=(
            "how does the loss fall with size, tokens and FLOPs, and does that predict it for a "
            "larger model?"
        ),
        recipe="micro",
        points=grid(lengths(*tokens), shapes_with_lr((2, 32), (3, 48), (4, 64), (4, 96), (5, 128))),
        holdout=grid(lengths(tokens[-1]), shapes_with_lr((6, 160))),
    )


def shapes(*sizes: tuple[int, int]) -> Points:
    """(layers, width) each; heads are 16 wide."""
    layers, widths = zip(*sizes, strict=True)
    return zip_axes(
        each("model.n_layers", *layers),
        each("model.d_model", *widths),
        each("model.n_heads", *(d // 16 for d in widths)),
    )


def shapes_with_lr(*sizes: tuple[int, int]) -> Points:
    return zip_axes(
        shapes(*sizes), each(PEAK_LR, *(f"{3e-3 * (64 / d) ** 1.5:.2g}" for _, d in sizes))
    )


def lengths(*tokens: int) -> Points:
    """The learning rate falls to its floor at the end of each."""
    return zip_axes(
        each("train.total_tokens", *tokens),
        each("train.schedule.decay_tokens", *tokens),
        each("train.schedule.warmup_tokens", *(n // 10 for n in tokens)),
    )


SWEEPS = {
    "smoke_peak": smoke_peak,
    "sparse_patterns": sparse_patterns,
    "sparse_patterns_flops": sparse_patterns_flops,
    "sparse_window": sparse_window,
    "norms": norms,
    "peak_by_size": peak_by_size,
    "peak_by_batch": peak_by_batch,
    "mixtures": mixtures,
    "sizes": sizes,
    **ablations.SWEEPS,
}
