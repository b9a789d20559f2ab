"""Who else reads it? Weights and tokenizers of Hugging Face and OpenAI."""
