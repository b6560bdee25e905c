"""K-means clustering, from which the codebooks of stage 2 start."""

from __future__ import annotations

import torch
from torch import Tensor

# Vectors at a time: memory of larger intermediate results goes back to the system after every use, which is slow.
ROWS = 8192


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, iterations: int) -> Tensor:
    """Cluster points by Lloyd's algorithm from a k-means++ start.

    An empty cluster moves to the point that is farthest from its center. With fewer distinct points than clusters, the
    spare centers are points with a little noise, so that all centers differ.

    Args:
        points: ``[N, d]`` float.
        clusters: number of clusters.
        iterations: maximum number of iterations.

    Returns:
        ``[clusters, d]`` centers.
    """
    return lloyd(points, _spread_start(points, clusters), iterations)


def _spread_start(points: Tensor, clusters: int) -> Tensor:
    """Draw the centers that k-means++ starts from, ``[clusters, d]``."""
    centers = points[torch.randint(len(points), (1,))]
    distance = _squared_distances(points, centers)
    for _ in range(clusters - 1):
        if float(distance.sum()) > 0:
            new = points[torch.multinomial(distance, 1)]
        else:
            new = points[torch.randint(len(points), (1,))]
            new = new + 0.01 * points.std().nan_to_num().clamp(min=1e-4) * torch.randn_like(new)
        centers = torch.cat([centers, new])
        distance = torch.minimum(distance, _squared_distances(points, new))
    return centers


@torch.no_grad()
def lloyd(points: Tensor, centers: Tensor, iterations: int) -> Tensor:
    """Improve centers by Lloyd's algorithm; an empty cluster moves to the point that is farthest from its center.

    Args:
        points: ``[N, d]`` float.
        centers: ``[clusters, d]`` float; not changed.
        iterations: maximum number of iterations.

    Returns:
        ``[clusters, d]`` centers.
    """
    clusters = len(centers)
    for _ in range(iterations):
        owner = nearest_center(points, centers)
        # Not cdist's own distances: they are rounded and would not be 0 for a point on its center.
        distance = _squared_distances(points, centers, owner)
        count = torch.bincount(owner, minlength=clusters)
        moved = torch.zeros_like(centers).index_add_(0, owner, points) / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        # A point at distance 0 from its center does not need another center there.
        farthest = distance.topk(min(len(empty), int((distance > 0).sum()))).indices
        moved[empty] = centers[empty]
        moved[empty[: len(farthest)]] = points[farthest]
        if torch.allclose(moved, centers, rtol=0, atol=1e-6):
            break
        centers = moved
    return centers


def nearest_center(points: Tensor, centers: Tensor) -> Tensor:
    """Find the nearest center of each point, ``[N]`` int64."""
    return torch.cat([torch.cdist(part, centers).argmin(1) for part in points.split(ROWS)])


def _squared_distances(points: Tensor, centers: Tensor, owner: Tensor | None = None) -> Tensor:
    """Compute the squared distance of each point to the center ``owner`` ``[N]``, or to the only center; ``[N]``."""
    owner = torch.zeros(len(points), dtype=torch.int64, device=points.device) if owner is None else owner
    parts = zip(points.split(ROWS), owner.split(ROWS), strict=True)
    return torch.cat([(part - centers[own]).square().sum(1) for part, own in parts])
