"""Sharding: dimension letters, mesh axes, and which devices hold each array."""
