"""A synthetic demo: three small shops with product pictures."""
