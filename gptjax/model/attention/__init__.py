"""Attention: one reference definition, and several kernels that compute it."""
