"""Stage 1 without a network: the standardized vectors of all modalities side by side.

The paper injects them by attention (``network``). Concatenation loses nothing that a modality knows, needs no training, and
is what injection has to beat; docs/results.md compares both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.data.item_features import one_vector
from recbole_qbert.data.standardization import Standardization


@dataclass(frozen=True)
class Concatenation:
    """Fuse the modalities of items into one vector.

    Attributes:
        parts: modality -> its standardization, in the order of the result's columns.
    """

    parts: dict[str, Standardization]

    @classmethod
    def fit(cls, vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], width: int) -> Concatenation:
        """Fit the standardization of each modality on the items that have it.

        Args:
            vectors: modality -> ``[N, J, D_m]`` float32.
            present: modality -> ``[N, J]`` bool.
            width: principal axes kept of each modality.
        """
        parts = {}
        for name, matrix in vectors.items():
            vector, described = one_vector(matrix, present[name]), present[name].any(1)
            parts[name] = Standardization.fit(torch.from_numpy(vector if described.all() else vector[described]), width)
        return cls(parts)

    def __call__(self, vectors: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray]) -> np.ndarray:
        """Fuse items, ``[N, sum of widths]`` float32; a modality that an item lacks is zeros, its mean.

        Args:
            vectors: modality -> ``[N, J, D_m]`` float32; several vectors of an item are averaged.
            present: modality -> ``[N, J]`` bool.
        """
        count = len(next(iter(present.values())))
        fused = torch.empty(count, sum(part.width for part in self.parts.values()))
        start = 0
        for name, part in self.parts.items():
            columns = fused[:, start : start + part.width]
            columns.copy_(part(torch.from_numpy(one_vector(vectors[name], present[name]))))
            columns[torch.from_numpy(~present[name].any(1))] = 0.0
            start += part.width
        return fused.numpy()

    def tensors(self) -> dict[str, Tensor]:
        """Return the map as named tensors, to be saved: ``<column block>.<modality>.<key>``, since files keep no order."""
        return {
            f"{number}.{name}.{key}": value
            for number, (name, part) in enumerate(self.parts.items())
            for key, value in part.tensors().items()
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Concatenation:
        """Make the map from what ``tensors`` returned, in whatever order."""
        parts: dict[tuple[int, str], dict[str, Tensor]] = {}
        for title, value in tensors.items():
            number, name, key = title.split(".")
            parts.setdefault((int(number), name), {})[key] = value
        return cls({name: Standardization.of_tensors(parts[number, name]) for number, name in sorted(parts)})
