"""Evaluation: GPT-2's and GPT-3's tasks, log-likelihoods, scoring, contamination."""
