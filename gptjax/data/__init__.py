"""Training data: sources of text, tokenizers, shard directories, rows and batches."""
