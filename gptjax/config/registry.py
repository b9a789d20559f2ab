"""The name of a recipe -> its config. The recipes lie in the folder configs/ of the checkout, which is imported when first asked for."""

import difflib
import importlib
from types import ModuleType
from typing import Any

from gptjax.config import parse
from gptjax.config.finetuning import Finetuning
from gptjax.config.schema import Config


def config(name: str) -> Config:
    """The config of that name or alias. Raises ValueError with the nearest names."""
    recipes, other_names = _configs().CONFIGS, aliases()
    real = other_names[name] if name in other_names else name
    if real in _configs().FINETUNING:
        raise ValueError(f"{name} is a fine-tuning recipe: python -m gptjax.finetune --config={name} --init=RUN")
    if real not in recipes:
        raise ValueError(
            f"no config is called {parse.quote(name)}; {_near(name, [*recipes, *other_names])} (python -m gptjax.plan shows all)"
        )
    return recipes[real]()


def finetuning(name: str) -> Finetuning:
    """The fine-tuning recipe of that name. Raises ValueError with the nearest names."""
    recipes = _configs().FINETUNING
    if name not in recipes:
        raise ValueError(f"no fine-tuning recipe is called {parse.quote(name)}; {_near(name, list(recipes))}")
    return recipes[name]()


def finetunings() -> tuple[str, ...]:
    return tuple(_configs().FINETUNING)


def sweep(name: str) -> Any:
    """The config.sweep.Sweep of that name. Raises ValueError with the nearest names."""
    known = _configs().SWEEPS
    if name not in known:
        raise ValueError(f"no sweep is called {parse.quote(name)}; {_near(name, list(known))} (python -m gptjax.sweep --list shows all)")
    return known[name]()


def sweeps() -> tuple[str, ...]:
    return tuple(_configs().SWEEPS)


def _near(name: str, names: list[str]) -> str:
    """Names that begin so, else the nearest, else all."""
    name = name[:100]
    near = [known for known in names if name and known.startswith(name)] or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"


def names() -> tuple[str, ...]:
    """Every config's own name, the smallest first within a family."""
    return tuple(_configs().CONFIGS)


def aliases() -> dict[str, str]:
    """Other name -> name: what a paper calls a model that has another name here."""
    return dict(_configs().ALIASES)


def printed(name: str) -> tuple[str | None, float | None]:
    """(parameters, training compute in PF-days) as the paper of the config of that name prints them; None for what it does not print."""
    found = _configs().PRINTED
    return found[name] if name in found else (None, None)


def text(name: str) -> tuple[str, str] | None:
    """(path, how to get it in a line) of the text that the config of that name is of; None for those that are of any text."""
    found = _configs().TEXTS
    return found[name] if name in found else None


def _configs() -> ModuleType:
    """The package configs/, beside gptjax/ and so on the same import path."""
    try:
        return importlib.import_module("configs")
    except ModuleNotFoundError as error:
        if error.name != "configs":
            raise
        raise ValueError("no folder configs/ is on the import path: run in gptjax's checkout, or put it on PYTHONPATH") from None
