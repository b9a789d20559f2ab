"""Finds a recipe by its name, such as `nano`, or in a Python file, such as `my.py:wide`.

A recipe in a file is a Config, or a function without arguments that returns one, so that it can
start from an existing one:

    import dataclasses
    from gptjax.configs import small

    def wide():
        nano = small.nano()
        model = dataclasses.replace(nano.model, d_model=384)
        return dataclasses.replace(nano, name="wide", model=model)
"""

import contextlib
import difflib
import functools
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from gptjax.config import parse
from gptjax.config.chat_recipe import ChatRecipe
from gptjax.config.curation import Curation
from gptjax.config.finetuning import Finetuning
from gptjax.config.rlhf_recipe import RlhfRecipe
from gptjax.config.safety import Policy
from gptjax.config.schema import Config
from gptjax.config.sweep import Sweep
from gptjax.configs import chat as chat_recipes
from gptjax.configs import curation as curation_recipes
from gptjax.configs import families, ladder, small, sweeps
from gptjax.configs import finetuning as classification_recipes
from gptjax.configs import rlhf as rlhf_recipes
from gptjax.configs import safety as safety_policies

CONFIGS = {
    **small.CONFIGS,
    **ladder.CONFIGS,
    **families.CONFIGS,
}  # name -> a function that returns a Config
FINETUNING = classification_recipes.FINETUNING  # name -> a function that returns a Finetuning
# name -> a function that returns a ChatRecipe
SFT, DPO, REWARD = chat_recipes.SFT, chat_recipes.DPO, chat_recipes.REWARD
RLHF = rlhf_recipes.RLHF  # name -> a function that returns an RlhfRecipe
CURATION = curation_recipes.CURATION  # name -> a function that returns a Curation
POLICIES = safety_policies.POLICIES  # name -> a function that returns a Policy
Recipe = TypeVar("Recipe", Config, Finetuning, ChatRecipe, RlhfRecipe, Curation, Policy, Sweep)
KINDS = {
    Config: ("config", "gptjax.train --config"),
    Finetuning: ("fine-tuning recipe", "gptjax.finetune --config"),
    ChatRecipe: ("recipe of conversations", "gptjax.sft --config"),
    RlhfRecipe: ("recipe of learning by sampling", "gptjax.rlhf --config"),
    Curation: ("recipe of curation", "gptjax.curate --recipe"),
    Policy: ("safety policy", "gptjax.red_team --policy"),
    Sweep: ("sweep", "gptjax.sweep --sweep"),
}  # type of a recipe -> (what it is called, what takes it)


def config(name: str) -> Config:
    """Returns the config with this name or alias, or FILE.py:NAME. Raises a one-line ValueError if
    there is none.
    """
    if is_in_file(name):
        return _read_from_file(name, Config)
    real = ladder.ALIASES[name] if name in ladder.ALIASES else name
    if real in FINETUNING:
        raise ValueError(
            f"{name} is a fine-tuning recipe: python -m gptjax.finetune --config={name} --init=RUN"
        )
    programs = {"sft": SFT, "dpo": DPO, "reward": REWARD, "rlhf": RLHF}
    for program, recipes in programs.items():
        if real in recipes:
            raise ValueError(
                f"{name} is a recipe of another program: python -m gptjax.{program} "
                f"--config={name} --init=RUN"
            )
    if real not in CONFIGS:
        hint = f"{_suggest(name, [*CONFIGS, *ladder.ALIASES])} (python -m gptjax.plan shows all)"
        raise ValueError(f"no config is called {parse.quote(name)}; {hint}")
    return CONFIGS[real]()


def finetuning(name: str) -> Finetuning:
    """Returns the fine-tuning recipe with this name, or FILE.py:NAME. Raises a one-line ValueError
    if there is none.
    """
    if is_in_file(name):
        return _read_from_file(name, Finetuning)
    if name not in FINETUNING:
        hint = _suggest(name, list(FINETUNING))
        raise ValueError(f"no fine-tuning recipe is called {parse.quote(name)}; {hint}")
    return FINETUNING[name]()


def chat_recipe(name: str, recipes: Mapping[str, Any]) -> ChatRecipe:
    """Returns the recipe with this name of `recipes`, such as SFT, or FILE.py:NAME. Raises a
    one-line ValueError if there is none.
    """
    return _recipe(name, recipes, ChatRecipe)


def _recipe(name: str, recipes: Mapping[str, Any], kind: type) -> Any:
    """The recipe with this name of `recipes`, or in a file."""
    if is_in_file(name):
        return _read_from_file(name, kind)
    if name not in recipes:
        hint = _suggest(name, list(recipes))
        raise ValueError(f"no recipe of this program is called {parse.quote(name)}; {hint}")
    return recipes[name]()


def rlhf_recipe(name: str) -> RlhfRecipe:
    """Returns the recipe of RLHF with this name, or FILE.py:NAME. Raises a one-line ValueError if
    there is none."""
    return _recipe(name, RLHF, RlhfRecipe)


def curation(name: str) -> Curation:
    """Returns the recipe of curation with this name, or FILE.py:NAME. Raises a one-line ValueError
    if there is none."""
    return _recipe(name, CURATION, Curation)


def policy(name: str) -> Policy:
    """Returns the safety policy with this name, or FILE.py:NAME. Raises a one-line ValueError if
    there is none."""
    return _recipe(name, POLICIES, Policy)


def sweep(name: str) -> Sweep:
    """Returns the sweep with this name, or FILE.py:NAME. Raises a one-line ValueError if there is
    none.
    """
    if is_in_file(name):
        return _read_from_file(name, Sweep)
    if name not in sweeps.SWEEPS:
        hint = f"{_suggest(name, list(sweeps.SWEEPS))} (python -m gptjax.sweep --list shows all)"
        raise ValueError(f"no sweep is called {parse.quote(name)}; {hint}")
    return sweeps.SWEEPS[name]()


def function(name: str) -> tuple[Callable[..., Any], bytes]:
    """Returns (the function FILE.py:NAME, the text of its file), which may import modules of the
    file's folder. Raises a one-line ValueError if there is none."""
    file, _, member = name.rpartition(":")
    if not file or not member:
        raise ValueError(f"{parse.one_line(name, 300)}: give FILE.py:FUNCTION")
    with _sibling_imports(file):
        members = _run(file)
    if member not in members or not callable(members[member]):
        found = [other for other, value in members.items() if _is_function_of(value, file)]
        raise ValueError(f"{file} has no function {member}; {_suggest(member, found)}")
    return members[member], parse.path(file).read_bytes()


def config_names() -> tuple[str, ...]:
    """Names of all configs, the smallest first within a family."""
    return tuple(CONFIGS)


def finetuning_names() -> tuple[str, ...]:
    """Names of the fine-tuning recipes."""
    return tuple(FINETUNING)


def sweep_names() -> tuple[str, ...]:
    """Names of the sweeps."""
    return tuple(sweeps.SWEEPS)


def aliases() -> dict[str, str]:
    """Aliases -> config names: what papers call a model that has another name here."""
    return dict(ladder.ALIASES)


def paper_figures(name: str) -> tuple[str | None, float | None]:
    """Returns (parameters, training compute in PF-days) as printed in the paper of this config;
    None for what it does not print.
    """
    return ladder.PAPER_FIGURES[name] if name in ladder.PAPER_FIGURES else (None, None)


def text_source(name: str) -> tuple[str, str] | None:
    """Returns (path, one line on how to get it) of the text that a config is meant for; None if it
    works with any text.
    """
    return small.TEXT_SOURCES[name] if name in small.TEXT_SOURCES else None


def _suggest(name: str, names: list[str]) -> str:
    """Suggests names that start with `name`, else the most similar ones, else all."""
    name = name[:100]
    matches = [
        known for known in names if name and known.startswith(name)
    ] or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(matches)}?" if matches else f"there are {', '.join(names)}"


# --- files of one's own ---------------------------------------------------------------------------


def is_in_file(name: str) -> bool:
    """Whether the name is of the form FILE.py:NAME."""
    return ":" in name or name.endswith(".py")


def _read_from_file(name: str, kind: type[Recipe]) -> Recipe:
    """Returns the recipe FILE.py:NAME, which must be of the given kind."""
    file, _, member = (name if ":" in name else f"{name}:").rpartition(":")
    shown, what = parse.one_line(name, 300), KINDS[kind][0]
    with _sibling_imports(file):
        members = _run(file)
        value = _call(file, members[member]) if member in members else None
    if member not in members:
        found = [
            other
            for other, value in members.items()
            if isinstance(value, kind) or _is_function_of(value, file)
        ]
        hint = _suggest(member, found) if found else f"it has no {what}, nor a function"
        raise ValueError(f"{shown}: say which {what} of {file}, as FILE.py:NAME; {hint}")
    if not isinstance(value, kind):
        other = next((KINDS[t] for t in KINDS if isinstance(value, t)), None)
        hint = f"a {other[0]}: {other[1]}={shown}" if other else f"a {type(value).__name__}"
        raise ValueError(f"{shown} must be a {what}, or a function that returns one; it is {hint}")
    return value


@contextlib.contextmanager
def _sibling_imports(file: str) -> Iterator[None]:
    """Lets the file import modules in its folder, as a program can."""
    folder = str(parse.path(file).resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _run(file: str) -> Mapping[str, Any]:
    """Returns the definitions of the file. Raises a one-line ValueError if it cannot be run."""
    path = parse.path(file)
    if not path.is_file():
        kind = "that is no file" if path.exists() else "there is no such file"
        hint = "give FILE.py:NAME, or a name alone (python -m gptjax.plan shows all)"
        raise ValueError(f"{parse.one_line(file, 300)}: {kind}; {hint}")
    try:
        return _run_state(str(path), path.stat().st_mtime_ns)
    except (Exception, SystemExit) as error:
        raise ValueError(_describe(file, error)) from None


@functools.lru_cache(maxsize=8)
def _run_state(path: str, modified: int) -> Mapping[str, Any]:
    """Returns the definitions of the file, which runs once per process unless it is modified."""
    return runpy.run_path(path, run_name="recipes")


def _call(file: str, value: Any) -> Any:
    """Returns the value, or its result if it is a function. Raises a one-line ValueError if it
    raises.
    """
    try:
        return value() if callable(value) else value
    except (Exception, SystemExit) as error:
        raise ValueError(_describe(file, error)) from None


def _is_function_of(value: Any, file: str) -> bool:
    code = getattr(value, "__code__", None)
    return code is not None and code.co_filename == str(parse.path(file))


def _describe(file: str, error: BaseException) -> str:
    """Describes an error in the file, with its line number."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or file}:{error.lineno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"{file}: is not UTF-8 text"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(parse.path(file))]
    where = f"{file}:{lines[-1]}" if lines else file
    return f"{where}: {type(error).__name__}: {parse.one_line(' '.join(str(error).split()), 300)}"
