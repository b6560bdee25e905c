"""K-means clustering, from which the codebooks of stage 2 start."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, iterations: int) -> Tensor:
    """Lloyd's algorithm from a k-means++ start; ``[clusters, d]``.

    An empty cluster takes the point that lies farthest from its centre. With fewer distinct points than clusters the
    spare centres are points with a little noise, so that every level has ``clusters`` different codes.
    """
    centres = points[torch.randint(len(points), (1,))]
    distance = (points - centres).square().sum(1)
    for _ in range(clusters - 1):
        if float(distance.sum()) > 0:
            new = points[torch.multinomial(distance, 1)]
        else:
            new = points[torch.randint(len(points), (1,))]
            new = new + 0.01 * points.std().nan_to_num().clamp(min=1e-4) * torch.randn_like(new)
        centres = torch.cat([centres, new])
        distance = torch.minimum(distance, (points - new).square().sum(1))
    for _ in range(iterations):
        owner = nearest_center(points, centres)
        # Not cdist's own distances: they are rounded and would not be 0 for a point on its centre.
        distance = (points - centres[owner]).square().sum(1)
        count = torch.bincount(owner, minlength=clusters)
        moved = torch.zeros_like(centres).index_add_(0, owner, points) / count.clamp(min=1)[:, None]
        empty = (count == 0).nonzero()[:, 0]
        # A point that lies on its centre has no use for another one there.
        far = distance.topk(min(len(empty), int((distance > 0).sum()))).indices
        moved[empty] = centres[empty]
        moved[empty[: len(far)]] = points[far]
        if torch.allclose(moved, centres, rtol=0, atol=1e-6):
            break
        centres = moved
    return centres


def nearest_center(points: Tensor, centres: Tensor) -> Tensor:
    """Row of the nearest centre of each point, ``[N]``; in parts, because ``[N, M]`` of a large catalog would not fit."""
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in points.split(65_536)])
