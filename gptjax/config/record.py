"""How a description is written: frozen, keyword-only records, and the checks that they share."""

import dataclasses
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass, said so that type checkers know it for one."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def positive(node, *names):
    """Raise ValueError unless each named field of `node` is a number above zero."""
    for name in names:
        value = getattr(node, name)
        if not value > 0:
            raise ValueError(f"{type(node).__name__}.{name}={value!r}: give a number above 0")


def fraction(node, *names):
    """Raise ValueError unless each named field of `node` lies in [0, 1)."""
    for name in names:
        value = getattr(node, name)
        if not 0 <= value < 1:
            raise ValueError(f"{type(node).__name__}.{name}={value!r}: give a number from 0 up to, not including, 1")
