"""Measure what semantic IDs keep of the vectors: variance explained level by level, and nearest neighbors.

Usage and perplexity of codes cannot see a quantizer that was hardly trained: k-means spreads codes over any residual,
however small (docs/decisions.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_qbert.quantization.residual_quantizer import ROWS, ResidualQuantizer

NEIGHBORS = 10
SAMPLE = 1000  # items whose neighbors are compared; the share is known to about one percent


@torch.no_grad()
def explained_variance(model: ResidualQuantizer, vectors: Tensor, codes: Tensor) -> list[float]:
    """Compute the share of the variance of vectors that the first 1, 2, …, K levels of their codes explain.

    Args:
        model: a trained quantizer.
        vectors: ``[N, D]`` float32 with mean 0.
        codes: ``[N, K]`` int64.

    Returns:
        ``K`` numbers; at most 1, below 0 where the rebuilt vectors are farther away than the mean is.
    """
    total = vectors.square().sum().clamp(min=1e-12)
    left = torch.zeros(codes.shape[1], dtype=torch.float64)
    for part, part_codes in zip(vectors.split(ROWS), codes.split(ROWS), strict=True):  # no second copy of a large catalog
        for level in range(codes.shape[1]):
            left[level] += (part - model.decode(part_codes[:, : level + 1])).square().sum()
    return (1 - left / total).tolist()


@torch.no_grad()
def neighbors_kept(vectors: Tensor, rebuilt: Tensor) -> float | None:
    """Compute the share of items' 10 nearest neighbors that are among the 10 nearest of the rebuilt vectors.

    Args:
        vectors: ``[N, D]`` float32.
        rebuilt: ``[N, D]`` float32, the vectors as their codes give them.

    Returns:
        The mean over up to 1,000 items, evenly spaced; ``None`` for fewer than 12 items.
    """
    count = len(vectors)
    if count < NEIGHBORS + 2:
        return None
    rows = torch.linspace(0, count - 1, min(SAMPLE, count)).long().unique()
    nearest = []
    for matrix in (vectors, rebuilt):
        length = matrix.norm(dim=1).clamp(min=1e-12)
        picked = []
        for own in rows.split(64):
            similar = (matrix[own] @ matrix.T) / length  # cosine, but for the length of the row itself
            picked.append(similar.scatter(1, own[:, None], -torch.inf).topk(NEIGHBORS, 1).indices)
        nearest.append(torch.cat(picked))
    return float((nearest[0][:, :, None] == nearest[1][:, None, :]).any(2).float().mean())
