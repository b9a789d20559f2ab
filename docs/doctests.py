"""Shows the examples in docstrings as code: an extension of griffe, which reads them for mkdocs."""

from typing import Any

import griffe  # pyright: ignore[reportMissingImports]

from docs import hooks


class Doctests(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = hooks.fence_examples(obj.docstring.value)
