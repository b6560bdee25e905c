"""Stage 2: residual quantization into semantic IDs (paper 3.4)."""
