"""Numbers of items, which VIP5 writes as words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def item_numbers(items: Sequence[str], histories: Sequence[np.ndarray], order: str, seed: int) -> np.ndarray:
    """Number the items of a catalog from 1 on.

    P5 numbers items along whole histories, users shuffled, so that a user's new items have consecutive numbers, the test
    item included. Neither order here reads more than the training part and the items' tokens.

    Args:
        items: ``N`` item tokens.
        histories: training histories as rows of ``items``.
        order: ``random``: a seeded permutation of the sorted tokens; ``training``: as items first occur in the training
            histories, one user after another, and then the others by token.
        seed: of the permutation.

    Returns:
        ``[N]`` int64, each of 1 to ``N`` once.
    """
    by_token = np.argsort(np.array(items))
    if order == "random":
        sequence = np.random.default_rng(seed).permutation(by_token)
    else:
        joined = np.concatenate([*histories, by_token]).astype(np.int64)
        first = np.unique(joined, return_index=True)[1]
        sequence = joined[np.sort(first)]
    numbers = np.empty(len(items), dtype=np.int64)
    numbers[sequence] = np.arange(1, len(items) + 1)
    return numbers
