"""Ahead-of-time compilation: memory and step time on chips that are not present."""
