"""Standardization of vectors before they are fused or quantized: mean 0, principal axes, mean squared length 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SAMPLE = 65_536  # rows that the axes are computed from; more change them by less than the noise
ROWS = 65_536  # rows at a time, so that a large catalog is not held twice


@dataclass(frozen=True)
class Standardization:
    """A linear map that gives the vectors of every encoder the same scale and a bounded width.

    Attributes:
        mean: ``[D]`` float32.
        scale: ``[]`` float32.
        axes: ``[D, A]`` float32, the ``A`` principal axes of most variance; ``None`` where ``D`` is small enough.
    """

    mean: Tensor
    scale: Tensor
    axes: Tensor | None = None

    @property
    def width(self) -> int:
        """Width ``A`` of the result."""
        return len(self.mean) if self.axes is None else self.axes.shape[1]

    @classmethod
    def fit(cls, vectors: Tensor, width: int) -> Standardization:
        """Compute the map of a catalog.

        Args:
            vectors: ``[N, D]`` float32.
            width: largest width of the result, ``A``.
        """
        mean = vectors.mean(0) if len(vectors) else vectors.new_zeros(vectors.shape[1])
        axes = None
        if vectors.shape[1] > width:
            sample = (vectors[:: -(-len(vectors) // SAMPLE) or 1] - mean).double()
            axes = torch.linalg.eigh(sample.T @ sample)[1][:, -width:].flip(1)
            # Eigenvectors have no sign of their own: the largest entry is made positive, on whatever machine.
            axes = (axes * axes.gather(0, axes.abs().argmax(0)[None]).sign()).float()
        unscaled = cls(mean, mean.new_ones(()), axes)
        squares = torch.cat([unscaled(part).square().sum(1) for part in vectors.split(ROWS)])
        scale = squares.mean().sqrt() if len(vectors) else mean.new_ones(())
        return cls(mean, scale.clamp(min=1e-6), axes)

    def __call__(self, vectors: Tensor) -> Tensor:
        """Map ``[N, D]`` to ``[N, A]`` (``[N, D]`` without axes)."""
        result = vectors.new_empty(len(vectors), self.width)
        for part, standardized in zip(vectors.split(ROWS), result.split(ROWS), strict=True):
            centered = part - self.mean
            torch.div(centered if self.axes is None else centered @ self.axes, self.scale, out=standardized)
        return result

    def tensors(self) -> dict[str, Tensor]:
        """Return the map as named tensors, to be saved."""
        tensors = {"mean": self.mean, "scale": self.scale}
        return tensors if self.axes is None else tensors | {"axes": self.axes}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Standardization:
        """Make the map from what ``tensors`` returned; other names are ignored."""
        return cls(tensors["mean"], tensors["scale"], tensors.get("axes"))
