"""Exact top-k items and ranks over a catalog, from codes or from vectors."""
