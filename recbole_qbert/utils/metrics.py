"""HR and NDCG with one relevant item per user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def ndcg(ranks: np.ndarray, k: int) -> np.ndarray:
    """Return NDCG@k of each rank: ``1 / log2(rank + 1)`` up to rank ``k``, 0 beyond.

    >>> ndcg(np.array([1, 3, 11]), 10).tolist()
    [1.0, 0.5, 0.0]
    """
    return (ranks <= k) / np.log2(ranks + 1.0)


def metrics_from_ranks(rank: np.ndarray, topk: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Return mean HR and NDCG over users; names as RecBole's (``hit@10``, ``ndcg@10``)."""
    hits = {f"hit@{k}": float((rank <= k).mean()) for k in topk}
    return hits | {f"ndcg@{k}": float(ndcg(rank, k).mean()) for k in topk}
