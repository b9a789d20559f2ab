"""How do many runs compare? The points of a sweep: where they stand, and running them."""
