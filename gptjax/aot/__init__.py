"""What will it cost on chips that are not here? Ahead-of-time compilation."""
