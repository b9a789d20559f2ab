"""GPT-1's supervised tasks."""
