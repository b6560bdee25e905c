"""Is one model better than another for the same users? Paired tests on per-user ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def gains(ranks_of_seeds: Sequence[Sequence[int]]) -> np.ndarray:
    """NDCG@10 of each user, mean over seeds; ``[U]``.

    Args:
        ranks_of_seeds: rank of each user's target, counted from 1, one list a seed, users in the same order.
    """
    ranks = np.array(ranks_of_seeds, dtype=float)
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean(0)


def paired_test(better: np.ndarray, worse: np.ndarray, draws: int = 20_000) -> float:
    """One-sided p-value of 'better is better' by random sign flips of the users' differences."""
    difference = better - worse
    random = np.random.default_rng(0)
    larger = 0
    for _ in range(draws // 1000):
        flips = random.integers(0, 2, (1000, len(difference)), dtype=np.int8) * 2 - 1
        larger += int(((flips @ difference) >= difference.sum()).sum())
    return (larger + 1) / (draws + 1)
