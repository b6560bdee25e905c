"""Stage 1: dynamic cross-modal injection (paper 3.3)."""
