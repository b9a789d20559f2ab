"""The GPT model: attention patterns and kernels, layers, KV cache."""
