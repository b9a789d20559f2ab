"""Text generation: sampling, autoregressive decoding, beam search, streaming."""
