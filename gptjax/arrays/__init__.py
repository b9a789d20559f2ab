"""What shape is it? Axis letters, names of leaves, digests."""
