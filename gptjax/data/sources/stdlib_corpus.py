"""The embedded corpus: the help topics of CPython, the sources of its standard library, and the
docstrings of its built-in modules.

It is there so that training works on a machine with no data, and so that a small model has
something coherent to learn: Python and how its documentation is written. Hence what is left out:
tests (a third of all source, and mostly data), the encodings' character tables and
pydoc_data/topics.py (the topics are documents of their own). About 10 million characters with 3.11
and 3.13. The text differs between Python versions, so a run records version, size and digest.
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator

from gptjax.data import unicode
from gptjax.data.sources.document import Document

EXCLUDE_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "pydoc_data",
    "__phello__",
}
CHARACTER_TABLE_PATTERN = re.compile(
    r"^(decoding_table|decoding_map|codec = _codecs_)", re.MULTILINE
)
# Not imported: readline writes to the terminal, the others exist to be tested.
SKIP_IMPORT_PATTERN = re.compile(r"readline|xx|_test|_ctypes_test|_xx|_interp")


def documents() -> Iterator[Document]:
    """Yields every document, in an order and with keys that do not depend on the machine. No module
    with Python source is imported."""
    named_texts = [*topics(), *sources(), *docstrings()]
    total = sum(len(text) for _, text in named_texts)
    seen: set[str] = set()
    n_read = 0
    for name, text in named_texts:
        n_read += len(text)
        if text.strip() and text not in seen:
            seen.add(text)
            yield Document(unicode.replace_surrogates(text), document_key(name), n_read / total)


def document_key(name: str) -> str:
    """Returns the key of a document: its module's name without the prefix that marks a second
    implementation in C or in Python (_pydecimal and _decimal have the key of decimal), so that all
    are in the same split.
    """
    return re.sub(r"^(_py|_)(?=[a-z])", "", name)


def topics() -> Iterator[tuple[str, str]]:
    """Yields the help topics as (name, text)."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield f"help({name})", texts[name]


def sources() -> Iterator[tuple[str, str]]:
    """Yields the standard library's sources as (module name, text)."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = []
    for folder, folders, files in os.walk(root):
        # Installed packages hold ten times as many files: they are not even listed.
        folders[:] = set(folders) - EXCLUDE_FOLDERS
        paths += [pathlib.Path(folder, file) for file in files if file.endswith(".py")]
    for path in sorted(paths):
        parts = path.relative_to(root).with_suffix("").parts
        # The two prefixes: how this machine's Python was built.
        if EXCLUDE_FOLDERS.isdisjoint(parts) and not parts[0].startswith(
            ("config-", "_sysconfigdata")
        ):
            text = path.read_text(encoding="utf-8", errors="replace")
            if parts[0] != "encodings" or not CHARACTER_TABLE_PATTERN.search(text):
                yield ".".join(part for part in parts if part != "__init__") or "__init__", text


def docstrings() -> Iterator[tuple[str, str]]:
    """Yields the docstrings of the modules that have no Python source as (module name, text)."""
    for name in sorted(sys.stdlib_module_names):
        if name in sys.builtin_module_names or is_extension(name):
            if not SKIP_IMPORT_PATTERN.match(name):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # some are deprecated, and say so on import
                        module = importlib.import_module(name)
                except ImportError:  # its shared library is not on this machine
                    continue
                yield name, "\n\n".join(module_docs(module))


def is_extension(name: str) -> bool:
    """Whether this module of the standard library is compiled from C; does not import it."""
    spec = importlib.util.find_spec(name)
    return spec is not None and isinstance(spec.loader, importlib.machinery.ExtensionFileLoader)


def module_docs(module) -> Iterator[str]:
    """Yields the docstrings of a module, its functions, its classes and their methods, each with
    its signature."""
    if module.__doc__:
        yield f'"""{module.__doc__.strip()}"""'
    names = vars(module)
    for name in sorted(name for name in names if not name.startswith("__")):
        # sys keeps the originals of hooks that a program has replaced, as __excepthook__.
        value = names.get(f"__{name}__", names[name])
        # Skips plain values, and what other code has put into the module.
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            if isinstance(value.__doc__, str):
                yield format_doc("class", name, value, value.__doc__)
            for method, member in sorted(vars(value).items()):
                if (
                    inspect.isroutine(member)
                    and not method.startswith("__")
                    and isinstance(member.__doc__, str)
                ):
                    yield format_doc("def", f"{name}.{method}", member, member.__doc__)
        elif inspect.isbuiltin(value) and isinstance(value.__doc__, str):
            yield format_doc("def", name, value, value.__doc__)


def format_doc(keyword: str, name: str, value, doc: str) -> str:
    """Returns one function or class as text: `def name(signature):` and its indented docstring."""
    signature = re.sub(
        r"\$(module|type)(, /)?(, )?", "", getattr(value, "__text_signature__", None) or "(...)"
    ).replace("$", "")
    lines = inspect.cleandoc(doc).split("\n")
    return (
        f"{keyword} {name}{signature}:\n"
        + "\n".join(f"    {line}".rstrip() for line in ['"""' + lines[0], *lines[1:]])
        + '\n    """'
    )
