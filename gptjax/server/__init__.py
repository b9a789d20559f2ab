"""A server with OpenAI's HTTP API: continuous batching, routes, limits."""
