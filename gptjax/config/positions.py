"""Position encodings: learned vectors, as in GPT-1 to GPT-3, or rotary, with the scalings that
extend its context. model/rotary.py computes them."""

from typing import Annotated

from gptjax.config.attention import Context
from gptjax.config.record import Bounds, Positive, record


@record
class Learned:
    """A learned vector for each position, added to the token's (GPT-1 equation 2)."""


@record
class LinearScaling:
    """Positions divided by a factor (Chen et al. 2306.15595), as Gemma 3's global layers."""

    factor: Positive
    """By how much the context is longer than the original one."""


@record
class Llama31Scaling:
    """Llama 3.1's: frequencies divided by the factor if their wavelength is more than the original
    context / low_freq_factor, unchanged if less than it / high_freq_factor, interpolated between.
    (github.com/meta-llama/llama-models, models/llama3/model.py)
    """

    factor: Positive = 8.0
    """Divisor of the low frequencies."""
    low_freq_factor: Positive = 1.0
    """Wavelengths above original_context / low_freq_factor are scaled whole."""
    high_freq_factor: Positive = 4.0
    """Wavelengths below original_context / high_freq_factor are not scaled; more than
    low_freq_factor."""
    original_context: Context = 8192
    """Context of the model before the extension, in tokens."""

    def __post_init__(self):
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"Llama31Scaling.low_freq_factor={self.low_freq_factor:g} must be less than "
                f"high_freq_factor={self.high_freq_factor:g}"
            )


@record
class Yarn:
    """YaRN (Peng et al. 2309.00071, section 3): frequencies with fewer than beta_slow rotations in
    the original context are divided by the factor, those with more than beta_fast are unchanged,
    the ones between interpolated by index; scores grow by (0.1 ln factor + 1)^2.
    """

    factor: Annotated[float, Bounds(1, 1e6)]
    """By how much the context is longer than the original one."""
    original_context: Context
    """Context of the model before the extension, in tokens."""
    beta_fast: Positive = 32.0
    """Rotations in the original context above which a frequency is unchanged."""
    beta_slow: Positive = 1.0
    """Rotations in the original context below which a frequency is divided by the factor."""
    whole_indices: bool = True
    """Round the two ends of the interpolation outward to whole indices, as the authors' code;
    gpt-oss does not."""


@record
class LongRope:
    """LongRoPE (Ding et al. 2402.13753), as Phi-3's long-context variants: each frequency is
    divided by a factor of its own.

    The long factors are used if model.n_ctx is more than the original context, the short ones
    otherwise: the choice depends on the config alone and never on the length of a text, since keys
    in a cache would keep the rotation of the other factors.
    """

    short_factors: tuple[float, ...]
    """Divisors of the frequencies within the original context, d_head / 2 of them."""
    long_factors: tuple[float, ...]
    """Divisors of the frequencies beyond the original context, d_head / 2 of them."""
    original_context: Context
    """Context of the model before the extension, in tokens."""
    scale: Positive = 1.0
    """Multiplies queries and keys; Phi-3: sqrt(1 + ln(extension) / ln(original_context))."""

    def __post_init__(self):
        for name in ("short_factors", "long_factors"):
            factors = getattr(self, name)
            if not all(0 < factor < 1e9 for factor in factors):
                raise ValueError(f"LongRope.{name}: give numbers from 0 to 1e9, without 0")
        if len(self.short_factors) != len(self.long_factors):
            raise ValueError(
                f"LongRope has {len(self.short_factors)} short_factors and "
                f"{len(self.long_factors)} long_factors: give as many of both"
            )


Scaling = LinearScaling | Llama31Scaling | Yarn | LongRope


@record
class Rotary:
    """Rotary position embedding (Su et al. 2104.09864): queries and keys are rotated by angles that
    grow with the position. Element i is paired with element i + d_head / 2, as in Hugging Face's
    weights; Meta's files of Llama pair neighbors, with permuted weights.
    """

    theta: Positive = 10_000.0
    """Base of the frequencies theta^(-2 i / d_head)."""
    scaling: Scaling | None = None
    """How the frequencies are changed for a longer context; None: unchanged."""

    def __post_init__(self):
        if isinstance(self.scaling, Yarn) and self.theta <= 1:
            raise ValueError(
                f"Rotary.theta={self.theta:g}: YaRN interpolates frequencies that fall with their "
                "index; give a theta above 1"
            )


Position = Learned | Rotary
