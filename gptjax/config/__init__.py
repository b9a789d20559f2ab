"""What is a run? Frozen dataclasses, counts and the override grammar; no jax in here."""
