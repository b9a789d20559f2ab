"""How does it speak? Choosing tokens and decoding."""
