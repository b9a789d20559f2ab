"""The picture of the attention patterns."""

import matplotlib.image
import numpy as np

from gptjax.report import pattern_plot


def test_each_pattern_covers_what_it_shows(tmp_path):
    """Dense shows half of its square, and the others less: blue pixels are counted, a quarter of
    the picture's width a pattern."""
    pattern_plot.draw(str(tmp_path / "patterns.png"))
    image = matplotlib.image.imread(tmp_path / "patterns.png")
    blue = image[..., 2] - image[..., 0] > 0.2
    dense, *others = (
        part.sum() for part in np.array_split(blue, len(pattern_plot.PATTERNS), axis=1)
    )
    assert 0.25 < dense / (blue.size / len(pattern_plot.PATTERNS)) < 0.5
    assert all(0.35 * dense < part < 0.6 * dense for part in others)
