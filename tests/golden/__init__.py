"""Losses that were written down, and what writes them."""
