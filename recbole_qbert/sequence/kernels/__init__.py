"""Compiled CPU kernels of stage 3."""
