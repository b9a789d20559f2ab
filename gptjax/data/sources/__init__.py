"""Text -> documents."""
