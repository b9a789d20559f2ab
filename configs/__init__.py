"""Recipes: values only. gptjax/config/registry.py reads the three tables below.

CONFIGS maps a name to a function that returns a whole Config, ALIASES another name to a name, and PRINTED a name to what its paper prints
of it: (parameters, training compute in PF-days), None for what it does not print.
"""

from configs import ladder, small

CONFIGS = {**small.CONFIGS, **ladder.CONFIGS}
ALIASES = ladder.ALIASES
PRINTED = ladder.PRINTED
