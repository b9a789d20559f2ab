"""Recipes: values only. CONFIGS maps a name to a function that returns a whole Config; gptjax/config/registry.py reads it."""

from configs import small

CONFIGS = {**small.CONFIGS}
ALIASES: dict[str, str] = {}
