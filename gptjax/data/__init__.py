"""What does a run read? Tokenizers, corpora, shard directories, packing, mixing, and the
pipeline that yields batches."""
