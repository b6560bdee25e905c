"""Nearest items by features: evidence on the next item that needs no interaction, so new and rare items have it, too."""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn import functional as F

log = logging.getLogger(__name__)
NEIGHBORS = 20  # (measured) of an item
POWER = 3  # (measured) of the cosine: near items count far more than those that are merely of the same shelf
LARGEST = 200_000  # items up to which all pairs are compared: minutes of two cores


def nearest(vectors: np.ndarray) -> sp.csr_matrix | None:
    """Find the 20 nearest other items of each item.

    Args:
        vectors: ``[N, D]`` float32, modalities side by side; zeros for an item without features.

    Returns:
        ``[N, N]`` float32: ``max(cosine, 0) ** 3`` at the nearest items; ``None`` for a catalog so large that comparing all
        pairs would take hours.
    """
    count = len(vectors)
    if count > LARGEST:
        log.warning("%d items: content evidence is left out, which compares all pairs (at most %d items)", count, LARGEST)
        return None
    matrix = F.normalize(torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)), dim=1)
    wanted = min(NEIGHBORS, max(count - 1, 0))
    columns, values = [], []
    for start in range(0, count, 1024):
        similar: Tensor = matrix[start : start + 1024] @ matrix.T
        similar[torch.arange(len(similar)), torch.arange(start, start + len(similar))] = -1.0  # not the item itself
        top = similar.topk(wanted, 1)
        columns.append(top.indices)
        values.append(top.values.clamp(min=0) ** POWER)
    if not columns:
        return sp.csr_matrix((count, count), dtype=np.float32)
    column, value = torch.cat(columns).flatten().numpy(), torch.cat(values).flatten().numpy()
    result = sp.csr_matrix((value, column, np.arange(count + 1) * wanted), shape=(count, count))
    result.eliminate_zeros()
    result.sort_indices()
    return result
