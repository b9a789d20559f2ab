"""The @record decorator: frozen, keyword-only dataclasses whose numbers are checked against bounds,
and whose words against those that there are.
"""

import dataclasses
import functools
import numbers
import types
import typing
from typing import Annotated, Any, TypeVar, dataclass_transform

from gptjax.config import parse

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Allowed range of a number field, written into its type: Annotated[int, Bounds(1, 9)].

    Both ends are allowed; above=True excludes `low`. A number without Bounds must be finite and, if
    an integer, fit in 63 bits.
    """

    low: float
    high: float
    above: bool = False


# Bounds for quantities that enter float32 arithmetic, which rounds smaller values to 0 and larger
# ones to infinity.
Positive = Annotated[float, Bounds(1e-30, 1e30)]
Fraction = Annotated[float, Bounds(0, 0.999999)]  # below 1, since 1 - fraction is a divisor
# jax keys keep 32 bits: with more, two seeds could give the same random numbers.
Seed = Annotated[int, Bounds(0, 2**32 - 1)]
MAX_ROWS = 2**20  # of a batch
Rows = Annotated[int, Bounds(1, MAX_ROWS)]
Steps = Annotated[int, Bounds(1, 10**15)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Class decorator: a frozen, keyword-only dataclass that checks its numbers and words on
    construction, before the class's own __post_init__.

    Raises a one-line ValueError for a number of the wrong type or outside its Bounds, and for a
    word that is none of its Literal, alone or in a tuple.
    """
    post_init = cls.__dict__.get("__post_init__")

    def __post_init__(self) -> None:
        _check(self)
        if post_init is not None:
            post_init(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@functools.cache
def number_fields(cls: type) -> dict[str, tuple[type, Bounds, bool]]:
    """Returns the number fields of a record by name: (int or float, bounds, whether None is
    allowed).
    """
    fields = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        options = (
            (hint,) if typing.get_origin(hint) is Annotated else typing.get_args(hint) or (hint,)
        )
        for option in options:
            kind, *notes = (
                typing.get_args(option) if typing.get_origin(option) is Annotated else (option,)
            )
            if kind in (int, float) and typing.get_origin(hint) is not tuple:
                bounds = (
                    notes[0]
                    if notes
                    else Bounds(-parse.MAX_INT, parse.MAX_INT)
                    if kind is int
                    else Bounds(-1e300, 1e300)
                )
                fields[name] = kind, bounds, type(None) in options
    return fields


@functools.cache
def _word_fields(cls: type) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """Returns the fields of a record that are words by name: (the words that there are, whether the
    field is a tuple of them)."""
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        is_tuple = typing.get_origin(hint) is tuple
        options = typing.get_args(hint) if is_tuple or _is_union(hint) else (hint,)
        literals = [option for option in options if typing.get_origin(option) is typing.Literal]
        others = {*options} - {*literals, ..., type(None)}
        if literals and not others:
            words = [word for literal in literals for word in typing.get_args(literal)]
            has_none = type(None) in options
            fields[name] = (*words, *((None,) if has_none else ())), is_tuple
    return fields


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _check(node: Any) -> None:
    """Raises ValueError for the first number or word that is not allowed."""
    for name, (words, is_tuple) in _word_fields(type(node)).items():
        value = getattr(node, name)
        if (
            is_tuple
            and not isinstance(value, tuple)
            or any(word not in words for word in (value if is_tuple else (value,)))
        ):
            raise ValueError(
                f"{type(node).__name__}.{name}={parse.quote(value)}: give "
                f"{'a tuple of ' if is_tuple else ''}{', '.join(map(str, words))}"
            )
    for name, (kind, bounds, optional) in number_fields(type(node)).items():
        value: Any = getattr(node, name)
        fits = (
            isinstance(value, numbers.Integral if kind is int else numbers.Real)
            and type(value) is not bool
        )
        if (
            value is None
            and optional
            or fits
            and parse.in_range(typing.cast(float, value), bounds.low, bounds.high, bounds.above)
        ):
            continue
        allowed = parse.describe_range(kind, bounds.low, bounds.high, bounds.above)
        raise ValueError(
            f"{type(node).__name__}.{name}={parse.quote(value)}: give "
            f"{allowed}{' or None' if optional else ''}"
        )
