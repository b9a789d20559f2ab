"""Plot of the attention patterns, from the model's predicates: `python -m
gptjax.report.pattern_plot docs/patterns.png`.
"""

import sys

import numpy as np

from gptjax.config import schema
from gptjax.model.attention import patterns

PATTERNS = {
    "Dense()": schema.Dense(),
    "Banded(window=8)": schema.Banded(window=8),
    "Strided(stride=8)": schema.Strided(stride=8),
    "Fixed(block=8, summary=2)": schema.Fixed(block=8, summary=2),
}
N_POSITIONS = 32


def draw(path: str) -> None:
    """Draws a square per pattern with a row per query, from the top, and a column per key: filled
    where the query sees the key, darker on the diagonal.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(PATTERNS), figsize=(3.2 * len(PATTERNS), 3.6), layout="constrained"
    )
    positions = np.arange(N_POSITIONS)
    for ax, (name, pattern) in zip(axes, PATTERNS.items(), strict=True):
        mask = patterns.mask_fn(pattern, positions[:, None], positions[None, :])
        ax.imshow(
            np.where(mask, 0.55, 0.0) + np.eye(N_POSITIONS) * 0.3, cmap="Blues", vmin=0, vmax=1
        )
        ax.set_xticks(np.arange(-0.5, N_POSITIONS), minor=True)
        ax.set_yticks(np.arange(-0.5, N_POSITIONS), minor=True)
        ax.grid(which="minor", color="white", linewidth=0.6)
        ax.tick_params(which="both", length=0)
        ax.set_xticks([0, 8, 16, 24, 31])
        ax.set_yticks([0, 8, 16, 24, 31])
        ax.set_title(
            f"{name}\n{mask.sum() / (N_POSITIONS * (N_POSITIONS + 1) / 2):.0%} of dense",
            fontsize=10,
        )
        ax.set_xlabel("key")
    axes[0].set_ylabel("query")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(sys.argv[1])
