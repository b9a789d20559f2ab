"""GPT-1: supervised fine-tuning."""
