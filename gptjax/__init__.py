"""gptjax: GPT-1, GPT-2 and GPT-3 as their papers describe them, in JAX.

import gptjax
model = gptjax.load("runs/nano")                 # a run, Hugging Face's files, OpenAI's
print(model.generate("def ", max_new_tokens=50))

gptjax/api.py has the functions, gptjax/language_model.py the model. Importing the package imports
nothing else: each name is imported when it is first used."""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptjax.api import LanguageModel, Run, load, load_reward_model, make_train_step

__version__ = "0.1.0"
__all__ = ["LanguageModel", "Run", "load", "load_reward_model", "make_train_step"]
__all__ += ["config", "configs", "train"]  # pyright: ignore[reportUnsupportedDunderAll]

# Modules that have a function's name: gptjax.train is the program, and gptjax.train(config) trains.
MODULES = ("config", "configs", "train")


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableModule(types.ModuleType):
    """A module that is called like the function of its name in api.py."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        function = getattr(importlib.import_module("gptjax.api"), self.__name__.rpartition(".")[2])
        return function(*args, **options)


class _Package(types.ModuleType):
    """Makes each of MODULES callable when Python has imported it and makes it an attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in MODULES and type(value) is types.ModuleType:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
