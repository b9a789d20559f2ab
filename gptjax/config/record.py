"""How a description is written: frozen, keyword-only records whose numbers have bounds."""

import dataclasses
import functools
import numbers
import typing
from typing import Annotated, Any, TypeVar, dataclass_transform

from gptjax.config import parse

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a number may be: from `low` to `high`, both allowed; above: `low` itself is not. Written
    into a type, as in Annotated[int, Bounds(1, 9)]. A number without them is finite and, if
    whole, has 63 bits."""

    low: float
    high: float
    above: bool = False


# What a parameter of the arithmetic may be. That is done in float32, which takes less for 0 and
# more for infinity.
Positive = Annotated[float, Bounds(1e-30, 1e30)]
Fraction = Annotated[float, Bounds(0, 0.999999)]  # 1 less this is a divisor
Seed = Annotated[
    int, Bounds(0, 2**32 - 1)
]  # jax's keys keep 32 bits: beyond, two seeds would draw the same numbers
MAX_ROWS = 2**20  # of a batch
Rows = Annotated[int, Bounds(1, MAX_ROWS)]
Steps = Annotated[int, Bounds(1, 10**15)]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """Decorates a class as a frozen, keyword-only dataclass whose numbers are checked when one is
    made, before the class's own __post_init__: ValueError, in one line, for a number of another
    type or outside its Bounds."""
    post_init = cls.__dict__.get("__post_init__")

    def __post_init__(self) -> None:
        _check(self)
        if post_init is not None:
            post_init(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@functools.cache
def number_fields(cls: type) -> dict[str, tuple[type, Bounds, bool]]:
    """The numbers of a record by name: int or float, their bounds, and whether None will do."""
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


def _check(node: Any) -> None:
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
