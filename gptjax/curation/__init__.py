"""Curation of text corpora: n-gram counts and decontamination."""
