"""Safety of input and output: personal data, credentials and secrets that must not leave."""
