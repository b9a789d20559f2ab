"""What the Python API is given, checked: texts, token ids and whole numbers."""

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np

from gptjax.config import parse
from gptjax.data.tokenizers import build


class GenerateOptions(TypedDict, total=False):
    """The keywords of `LanguageModel.generate`, which says what they mean."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int
    num_beams: int | None
    length_penalty: float


def as_ids(tokens: Any, n_vocab: int) -> np.ndarray:
    """int32, of the same shape, of what a user gave as tokens. ValueError if it is no array of
    whole numbers from 0 to n_vocab - 1, or holds none."""
    advice = "give ids, as model.tokenizer.encode(text) returns them"
    try:
        array = np.asarray(tokens)
    except ValueError:
        raise ValueError(
            f"tokens: rows of several lengths; {advice}, as many in each row"
        ) from None
    if array.size == 0:
        raise ValueError(f"tokens of shape {array.shape}: give at least one token")
    if array.dtype.kind not in "iu":
        raise ValueError(f"tokens of type {array.dtype}: {advice}")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= n_vocab:
        raise ValueError(
            f"token {low if low < 0 else high} is none of the model's ids, 0 to {n_vocab - 1:,}"
        )
    return array.astype(np.int32)


def as_rows(tokens: Any, n_vocab: int, n_ctx: int) -> np.ndarray:
    """int32 (B, T) of what a user gave as tokens (T,) or (B, T). ValueError if they are none of the
    model's, or more than its context."""
    array = as_ids(tokens, n_vocab)
    if array.ndim not in (1, 2):
        raise ValueError(f"tokens of shape {array.shape}: give (T,) or (B, T)")
    if array.shape[-1] > n_ctx:
        raise ValueError(
            f"{array.shape[-1]:,} tokens are more than the model's context of {n_ctx:,}: give fewer"
        )
    return np.atleast_2d(array)


def as_texts(value: str | Sequence[str], name: str) -> list[str]:
    """One text or several -> several. ValueError for anything else, and for none."""
    texts = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}={parse.quote(value)}: give a text, or a list of at least one")
    return texts


def is_number(value: Any) -> bool:
    """Whether a value is a whole number; True is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_prompts(
    prompt: Any, tokenizer: build.Tokenizer, n_vocab: int
) -> tuple[list[list[int]], bool]:
    """The ids of one prompt or several, each a text or the first of them ids; whether it is one.
    ValueError for anything else."""
    if isinstance(prompt, list | tuple | np.ndarray) and len(prompt) and is_number(prompt[0]):
        return [as_ids(prompt, n_vocab).tolist()], True
    texts = as_texts(prompt, "prompt")  # type: ignore[arg-type]
    return [build.encode_prompt(tokenizer, text) for text in texts], isinstance(prompt, str)


def as_stops(stop: str | Sequence[str] | None) -> list[str]:
    """The stop strings; none of None. ValueError for anything else."""
    return [] if stop in (None, [], ()) else as_texts(stop, "stop")  # type: ignore[arg-type]


def check_int(name: str, value: int, low: int, high: int) -> None:
    """ValueError unless the value is a whole number from low to high; True and 1.0 are none."""
    if not is_number(value) or not low <= value <= high:
        raise ValueError(
            f"{name}={parse.quote(value)}: give {parse.describe_range(int, low, high, False)}"
        )
