"""Interests of MISSRec: clusters of adapted item vectors, found anew before every epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recbole_qbert.quantization.kmeans import nearest_center

ROWS = 2048  # points whose distances to all centers are in memory at a time


def number_of_interests(points: int, ratio: float) -> int:
    """Return the number of clusters of so many points, at least 1."""
    return max(math.ceil(ratio * points), 1)


@torch.no_grad()
def cluster(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cluster points by one pass of k-means, which is what the release's mini-batch k-means amounts to.

    Points are drawn as centers; each point goes to the nearest one; centers become the means of their points, and a center
    without points becomes the zero vector (it occurs with equal points only); each point goes to the nearest mean.

    Args:
        points: ``[P, D]`` float.
        count: ``K``, at most ``P``.
        generator: of the draw, on the CPU.

    Returns:
        ``(owner [P] int64 in [0, K), centers [K, D])``.
    """
    drawn = points[torch.randperm(len(points), generator=generator)[:count].to(points.device)]
    owner = _nearest(points, drawn)
    members = torch.bincount(owner, minlength=count).clamp(min=1)
    centers = torch.zeros_like(drawn).index_add_(0, owner, points) / members[:, None]
    return _nearest(points, centers), centers


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    return torch.cat([nearest_center(part, centers) for part in points.split(ROWS)])


def distinct(interests: Tensor) -> Tensor:
    """Keep each interest of a row once.

    Args:
        interests: ``[B, W]`` int64, 0 for none.

    Returns:
        ``[B, W']`` int64: the different numbers of each row, ascending, then 0; ``W'`` at least 1.

    >>> distinct(torch.tensor([[3, 3, 0, 5], [0, 0, 0, 0]]))
    tensor([[3, 5],
            [0, 0]])
    """
    ordered = interests.sort(1).values
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    behind = torch.iinfo(ordered.dtype).max
    ordered = ordered.masked_fill(repeated | (ordered == 0), behind).sort(1).values
    width = max(int((ordered < behind).sum(1).max()), 1) if len(ordered) else 1
    return ordered[:, :width].masked_fill(ordered[:, :width] == behind, 0)
