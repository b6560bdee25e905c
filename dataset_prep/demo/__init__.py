"""Generate a synthetic demo: three small shops with product pictures."""
