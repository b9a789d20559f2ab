"""gptjax: GPT-1, GPT-2 and GPT-3 as their papers describe them, in JAX."""

__version__ = "0.1.0"
