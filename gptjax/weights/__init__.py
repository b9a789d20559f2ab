"""Weights of other projects: reading, writing, conversion of names and configs."""
