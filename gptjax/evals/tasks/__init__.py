"""Evaluation tasks: one file per task or family, each with a tuple TASKS."""
