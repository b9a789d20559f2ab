"""Recipes: configs as values, found by name with `registry`. Imported as `gptjax.configs`, which
is a link to this directory."""

if __name__ != "gptjax.configs":  # in a checkout Python would load a second copy of each module
    raise ImportError("import gptjax.configs instead of configs")
