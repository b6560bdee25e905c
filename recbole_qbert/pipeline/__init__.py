"""Stages 1 and 2 in order, with cached outputs."""
