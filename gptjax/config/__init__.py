"""Configs: frozen dataclasses, the override grammar, and counts of parameters and FLOPs. No jax in
here.
"""
