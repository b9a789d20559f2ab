"""Output of a run: console, metrics, plots, profiles."""
