"""Exact top-k items and ranks over a catalog, from codes or from vectors (paper 3.6, inference)."""
