"""The name of a recipe -> its config. The recipes lie in the folder configs/ of the checkout,
which is imported when first asked for."""

import difflib
import importlib
from types import ModuleType
from typing import Any

from gptjax.config import parse
from gptjax.config.finetuning import Finetuning
from gptjax.config.schema import Config


def config(name: str) -> Config:
    """The config of that name or alias. Raises ValueError with the nearest names."""
    recipes, alias_table = _configs_package().CONFIGS, aliases()
    real = alias_table[name] if name in alias_table else name
    if real in _configs_package().FINETUNING:
        raise ValueError(
            f"{name} is a fine-tuning recipe: python -m gptjax.finetune --config={name} --init=RUN"
        )
    if real not in recipes:
        raise ValueError(
            f"no config is called {parse.quote(name)}; {_suggest(name, [*recipes, *alias_table])} "
            "(python -m gptjax.plan shows all)"
        )
    return recipes[real]()


def finetuning(name: str) -> Finetuning:
    """The fine-tuning recipe of that name. Raises ValueError with the nearest names."""
    recipes = _configs_package().FINETUNING
    if name not in recipes:
        raise ValueError(
            f"no fine-tuning recipe is called {parse.quote(name)}; {_suggest(name, list(recipes))}"
        )
    return recipes[name]()


def finetuning_names() -> tuple[str, ...]:
    return tuple(_configs_package().FINETUNING)


def sweep(name: str) -> Any:
    """The config.sweep.Sweep of that name. Raises ValueError with the nearest names."""
    known = _configs_package().SWEEPS
    if name not in known:
        raise ValueError(
            f"no sweep is called {parse.quote(name)}; {_suggest(name, list(known))} (python -m "
            "gptjax.sweep --list shows all)"
        )
    return known[name]()


def sweep_names() -> tuple[str, ...]:
    return tuple(_configs_package().SWEEPS)


def _suggest(name: str, names: list[str]) -> str:
    """Names that begin so, else the nearest, else all."""
    name = name[:100]
    matches = [
        known for known in names if name and known.startswith(name)
    ] or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else f"there are {', '.join(names)}"


def config_names() -> tuple[str, ...]:
    """Every config's own name, the smallest first within a family."""
    return tuple(_configs_package().CONFIGS)


def aliases() -> dict[str, str]:
    """Other name -> name: what a paper calls a model that has another name here."""
    return dict(_configs_package().ALIASES)


def paper_figures(name: str) -> tuple[str | None, float | None]:
    """(parameters, training compute in PF-days) as the paper of the config of that name prints
    them; None for what it does not print."""
    table = _configs_package().PAPER_FIGURES
    return table[name] if name in table else (None, None)


def text_source(name: str) -> tuple[str, str] | None:
    """(path, how to get it in a line) of the text that the config of that name is of; None for
    those that are of any text."""
    table = _configs_package().TEXT_SOURCES
    return table[name] if name in table else None


def _configs_package() -> ModuleType:
    """The package configs/, beside gptjax/ and so on the same import path."""
    try:
        return importlib.import_module("configs")
    except ModuleNotFoundError as error:
        if error.name != "configs":
            raise
        raise ValueError(
            "no folder configs/ is on the import path: run in gptjax's checkout, or put it on "
            "PYTHONPATH"
        ) from None
