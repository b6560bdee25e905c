"""Optimized product quantization: a rotated vector is cut into groups, and each group becomes one of M codes.

The non-parametric form of Ge et al. (Optimized Product Quantization, CVPR 2013), which VQ-Rec takes its item codes from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.quantization.kmeans import kmeans, lloyd, nearest_center

# Iterations of k-means in the first round, in each later round, and after the last (those of faiss 1.15).
FIRST, LATER, LAST = 40, 4, 25


@dataclass(frozen=True)
class ProductQuantizer:
    """A rotation and the centers of ``G`` groups of ``D / G`` dimensions.

    Attributes:
        mean: ``[D]``, subtracted before the rotation. It stands for the one coarse center of VQ-Rec's ``IVF1``.
        scale: ``[]``, root of the mean squared length, by which vectors are divided.
        rotation: ``[D, D]``, orthogonal.
        centers: ``[G, M, D / G]``.
    """

    mean: Tensor
    scale: Tensor
    rotation: Tensor
    centers: Tensor

    def rotate(self, vectors: Tensor) -> Tensor:
        """Center, scale and rotate vectors ``[N, D]``."""
        return (vectors - self.mean) / self.scale @ self.rotation.T

    def encode(self, vectors: Tensor) -> Tensor:
        """Find the nearest center of each group: ``[N, D]`` to ``[N, G]`` int64 codes in ``[0, M)``."""
        return _nearest(self.rotate(vectors), self.centers)

    def distortion(self, vectors: Tensor) -> float:
        """Return the mean squared distance of rotated vectors ``[N, D]`` to their centers, of vectors of mean length 1."""
        rotated = self.rotate(vectors)
        return float((rotated - _decode(_nearest(rotated, self.centers), self.centers)).square().sum(1).mean())

    def tensors(self) -> dict[str, Tensor]:
        """Return the quantizer as named tensors, to be saved."""
        return {"mean": self.mean, "scale": self.scale, "rotation": self.rotation, "centers": self.centers}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> ProductQuantizer:
        """Make the quantizer from what ``tensors`` returned."""
        return cls(**{name: tensors[name] for name in ("mean", "scale", "rotation", "centers")})


@torch.no_grad()
def fit(
    vectors: Tensor,
    groups: int,
    codes: int,
    *,
    rounds: int,
    sample: int,
    seed: int,
    progress: Callable[[range], Iterable[Any]] = iter,
) -> ProductQuantizer:
    """Fit rotation and centers in turns, so that each turn lowers the distortion.

    A round improves the centers of every group by k-means, then takes the orthogonal matrix that brings the vectors nearest
    to their centers (Procrustes). After the last round k-means goes on from these centers; faiss starts k-means anew there,
    which may end with a higher distortion.

    Args:
        vectors: ``[N, D]`` float, finite.
        groups: ``G``; must divide ``D``.
        codes: ``M`` of each group; at most ``N``.
        rounds: number of rounds; 0 leaves the first rotation, which is random.
        sample: number of random vectors that are used of more.
        seed: of the rotation, the sample and k-means.
        progress: wraps the range of rounds in a progress bar.

    Raises:
        ValueError: ``groups`` does not divide the width, or there are fewer vectors than codes.
    """
    count, width = vectors.shape
    if width % groups:
        divisors = ", ".join(str(number) for number in range(1, width + 1) if width % number == 0)
        raise ValueError(
            f"opq_groups is {groups}, which does not divide the width {width} of the vectors; it may be {divisors}"
        )
    if count < codes:
        raise ValueError(
            f"opq_codes is {codes}, but only {count} items of the training part have vectors; set it to at most {count}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if count > sample:
            vectors = vectors[torch.randperm(count)[:sample]]
        mean = vectors.mean(0)
        scale = (vectors - mean).square().sum(1).mean().sqrt().clamp(min=torch.finfo(vectors.dtype).tiny)
        points = (vectors - mean) / scale
        rotation = torch.linalg.qr(torch.randn(width, width, dtype=vectors.dtype))[0]
        centers = torch.stack([kmeans(block, codes, FIRST) for block in _blocks(points @ rotation.T, groups)])
        for number in progress(range(rounds)):
            rotated = points @ rotation.T
            if number:
                centers = _improved(rotated, centers, LATER)
            left, _, right = torch.linalg.svd(_decode(_nearest(rotated, centers), centers).T @ points)
            rotation = left @ right
        centers = _improved(points @ rotation.T, centers, LAST)
    return ProductQuantizer(mean, scale, rotation, centers)


def _blocks(rotated: Tensor, groups: int) -> Tensor:
    """Cut vectors ``[N, D]`` into groups, ``[G, N, D / G]``."""
    return rotated.view(len(rotated), groups, -1).transpose(0, 1)


def _improved(rotated: Tensor, centers: Tensor, iterations: int) -> Tensor:
    blocks = _blocks(rotated, len(centers))
    return torch.stack([lloyd(block, own, iterations) for block, own in zip(blocks, centers, strict=True)])


def _nearest(rotated: Tensor, centers: Tensor) -> Tensor:
    blocks = _blocks(rotated, len(centers))
    return torch.stack([nearest_center(block, own) for block, own in zip(blocks, centers, strict=True)], 1)


def _decode(codes: Tensor, centers: Tensor) -> Tensor:
    """Put the centers of codes ``[N, G]`` side by side, ``[N, D]``."""
    return torch.cat([own[code] for own, code in zip(centers, codes.T, strict=True)], 1)
