"""T5's relative position bias: one learned number for each head and bucket of distances (Raffel et al. 2020, 2.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def buckets(distance: Tensor, count: int, max_distance: int, two_sided: bool) -> Tensor:
    """Number the bucket of each distance.

    Half of the buckets of a direction hold one distance each; the others grow logarithmically up to ``max_distance``, from
    which on all distances share the last one. One-sided, keys behind the query share the bucket of distance 0.

    Args:
        distance: int64, position of the key less that of the query.
        count: number of buckets.
        max_distance: distance from which on all share a bucket.
        two_sided: half of the buckets are of keys behind the query; otherwise all are of keys before it.

    Returns:
        int64 of the shape of ``distance``.
    """
    if two_sided:
        count //= 2
        first, steps = torch.where(distance > 0, count, 0), distance.abs()
    else:
        first, steps = torch.zeros_like(distance), (-distance).clamp(min=0)
    single = count // 2
    growth = (steps.clamp(min=1).float() / single).log() / math.log(max_distance / single) * (count - single)
    wide = (single + growth.long()).clamp(max=count - 1)
    return first + torch.where(steps < single, steps, wide)


def distance_table(bias: Tensor, longest: int, max_distance: int, two_sided: bool) -> Tensor:
    """Expand the biases of buckets to those of distances.

    Args:
        bias: ``[H, buckets]`` float.
        longest: length of the longest row, ``L``.
        max_distance: as of ``buckets``.
        two_sided: as of ``buckets``.

    Returns:
        ``[H, 2 L - 1]``: biases of the distances ``-(L - 1) .. L - 1`` of a key from the query.
    """
    distance = torch.arange(1 - longest, longest, device=bias.device)
    return bias[:, buckets(distance, bias.shape[1], max_distance, two_sided)]
