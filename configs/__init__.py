"""Recipes: values only. gptjax/config/registry.py reads the tables below.

CONFIGS maps a name to a function that returns a whole Config, ALIASES another name to a name, and
PAPER_FIGURES a name to what its paper prints of it: (parameters, training compute in PF-days), None
for what it does not print. TEXT_SOURCES maps the name of a config that is of a certain text to
where that is looked for and how to get it, in a line. FINETUNING maps a name to a function that
returns a Finetuning, SWEEPS a name to one that returns a Sweep.
"""

from configs import finetuning, ladder, small, sweeps

CONFIGS = {**small.CONFIGS, **ladder.CONFIGS}
ALIASES = ladder.ALIASES
PAPER_FIGURES = ladder.PAPER_FIGURES
TEXT_SOURCES = small.TEXT_SOURCES
FINETUNING = finetuning.FINETUNING
SWEEPS = sweeps.SWEEPS
