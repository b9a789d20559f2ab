"""What does it compute? Attention patterns, layers, and the GPT."""
