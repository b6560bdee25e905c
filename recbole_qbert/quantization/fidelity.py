"""Measure what semantic IDs keep of the vectors: variance explained level by level, and nearest neighbors.

Usage and perplexity of codes cannot see a quantizer that was hardly trained: k-means spreads codes over any residual,
however small (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterable

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
def neighbors_kept(model: ResidualQuantizer, vectors: Tensor, codes: Tensor) -> float | None:
    """Compute the share of items' 10 nearest neighbors that are among the 10 nearest of the vectors that codes give.

    Args:
        model: a trained quantizer.
        vectors: ``[N, D]`` float32.
        codes: ``[N, K]`` int64.

    Returns:
        The mean over up to 1,000 items, evenly spaced; ``None`` for fewer than 12 items.
    """
    count = len(vectors)
    if count < NEIGHBORS + 2:
        return None
    rows = torch.linspace(0, count - 1, min(SAMPLE, count)).long().unique()
    true = _nearest(rows, vectors[rows], vectors.split(ROWS))
    kept = _nearest(rows, model.decode(codes[rows]), map(model.decode, codes.split(ROWS)))
    return float((true[:, :, None] == kept[:, None, :]).any(2).float().mean())


def _nearest(rows: Tensor, own: Tensor, parts: Iterable[Tensor]) -> Tensor:
    """Find the items of most like direction, ``[R, 10]`` rows, for items ``rows [R]`` with vectors ``own [R, D]``.

    Args:
        rows: row numbers of the items, which are not their own neighbors.
        own: their vectors.
        parts: vectors of all items, some rows at a time.
    """
    best, nearest, start = own.new_empty(len(rows), 0), rows.new_empty(len(rows), 0), 0
    for part in parts:
        similar = (own @ part.T) / part.norm(dim=1).clamp(min=1e-12)  # cosine, but for the length of the row itself
        itself = ((rows >= start) & (rows < start + len(part))).nonzero()[:, 0]
        similar[itself, rows[itself] - start] = -torch.inf
        numbers = torch.arange(start, start + len(part)).expand(len(rows), -1)
        best, place = torch.cat([best, similar], 1).topk(min(NEIGHBORS, best.shape[1] + len(part)), 1)
        nearest = torch.cat([nearest, numbers], 1).gather(1, place)
        start += len(part)
    return nearest
