"""Generative recommendation: a packed T5 that writes an item's ID token by token, and exact ranks over all items."""
