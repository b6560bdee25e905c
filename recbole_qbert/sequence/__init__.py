"""Stage 3: the sequence model over semantic IDs (paper 3.5 and 3.6)."""
