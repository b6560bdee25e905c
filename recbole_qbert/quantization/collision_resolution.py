"""Stage 2: items that share a semantic ID get different ones, with as few changes as possible (paper 3.4, Eq. 10).

The published procedure (MQL4GRec) stops after two rounds and leaves duplicates. This one leaves none: it walks the tree of
IDs and always finds the free ID that greedy descent by distance reaches first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def reallocate(
    codes: np.ndarray, latents: np.ndarray, codebooks: np.ndarray, items: Sequence[str], taken: np.ndarray | None = None
) -> np.ndarray:
    """Make semantic IDs unique.

    An item whose ID no other item has keeps it. Of the items that share an ID, the one closest to its last-level code keeps
    it. The others, over the whole catalog, are reassigned in the order of their smallest distance to a last-level code (ties
    by item token). Each takes the nearest last-level code that gives an unused ID; if every ID under its prefix is taken, it
    takes the nearest code one level up that has an unused ID below it, and so on. Residuals are recomputed along the new
    path.

    Args:
        codes: ``[N, K]`` integer codes in ``[0, M)``.
        latents: ``[N, d]`` float, the vectors that were quantized.
        codebooks: ``[K, M, d]`` float.
        items: ``N`` item tokens; they break ties, so that the result does not depend on the order of the rows.
        taken: ``[T, K]`` different IDs of other items, which keep them; every item of ``items`` that has one is moved.

    Returns:
        ``[N, K]`` of the dtype of ``codes``, no two rows equal, none in ``taken``.

    Raises:
        ValueError: more items than IDs (``N + T > M ** K``), or shapes that do not fit.
    """
    count, levels = codes.shape
    size = codebooks.shape[1]
    if not (len(latents) == len(items) == count and codebooks.shape[0] == levels):
        raise ValueError(
            f"{count} rows of codes, {len(latents)} latents, {len(items)} items and {codebooks.shape[0]} codebooks "
            f"for {levels} levels do not fit together"
        )
    taken = np.empty((0, levels), codes.dtype) if taken is None else taken
    if count + len(taken) > size**levels:
        raise ValueError(
            f"{count + len(taken)} items cannot have different IDs of {levels} levels with {size} codes: there are "
            f"{size**levels}; raise rq_levels or rq_codes"
        )
    # float64 and row-wise sums: an item has the same distances to the last bit, whatever its row number.
    codebooks = codebooks.astype(np.float64)
    collisions = _collisions(codes)
    unique = np.ones(count, dtype=bool)
    for rows in collisions:
        unique[rows] = False
    reserved = {tuple(row) for row in taken.tolist()}
    waiting: list[tuple[float, str, int]] = []
    if reserved:
        for row in np.flatnonzero(unique):
            if tuple(codes[row].tolist()) in reserved:
                unique[row] = False
                smallest = float(_distances(latents[row], codebooks, codes[row, :-1]).min())
                waiting.append((smallest, items[row], int(row)))
    tree = _IDTree(np.concatenate([taken, codes[unique]]), size)
    result = codes.copy()
    for rows in collisions:
        ranked = []
        for row in rows:
            distance = _distances(latents[row], codebooks, codes[row, :-1])
            ranked.append((float(distance[codes[row, -1]]), items[row], int(row), float(distance.min())))
        ranked.sort()
        is_free = tuple(codes[rows[0]].tolist()) not in reserved
        if is_free:
            tree.take(tuple(codes[rows[0]].tolist()))
        waiting += [(smallest, item, row) for _, item, row, smallest in ranked[is_free:]]
    for _, _, row in sorted(waiting):
        result[row] = _assign(tree, latents[row], codebooks, codes[row])
    return result


def append_digit(codes: np.ndarray, items: Sequence[str]) -> np.ndarray:
    """Make semantic IDs unique by one more level that counts the items of an ID (TIGER, Rajput et al. 2023).

    An item alone on its codes gets 0, and so does the first of several. The paper does not say in which order they are
    counted; chosen: that of the item tokens, which does not depend on the order of the rows.

    Args:
        codes: ``[N, K]`` integer codes.
        items: ``N`` item tokens.

    Returns:
        ``[N, K + 1]`` of the dtype of ``codes``, no two rows equal.

    >>> append_digit(np.array([[7], [5], [7]]), ["c", "b", "a"]).tolist()
    [[7, 1], [5, 0], [7, 0]]
    """
    rank = np.argsort(np.argsort(np.asarray(items, dtype=object), kind="stable"))
    _, owner, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((rank, owner.ravel()))
    digit = np.empty(len(codes), dtype=codes.dtype)
    digit[order] = np.concatenate([np.arange(number) for number in count]) if len(count) else []
    return np.concatenate([codes, digit[:, None]], axis=1)


def _assign(tree: _IDTree, latent: np.ndarray, codebooks: np.ndarray, code: np.ndarray) -> list[int]:
    """Take the unused ID that descent by distance reaches from the longest prefix of ``code`` that has room."""
    levels = len(code)
    prefix = next(length for length in range(levels - 1, -1, -1) if tree.has_room(tuple(code[:length].tolist())))
    path = code[:prefix].tolist()
    for _ in range(prefix, levels):
        distance = _distances(latent, codebooks, np.asarray(path, dtype=np.int64))
        path.append(next(c for c in np.argsort(distance, kind="stable").tolist() if tree.has_room((*path, c))))
    tree.take(tuple(path))
    return path


def _distances(latent: np.ndarray, codebooks: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Squared distances of the residual after ``path`` to the codes of the next level (Eq. 10); ``[M]``."""
    level = len(path)
    residual = latent.astype(np.float64) - codebooks[np.arange(level), path].sum(0)
    return ((residual - codebooks[level]) ** 2).sum(1)


def _collisions(codes: np.ndarray) -> list[np.ndarray]:
    """Rows that share an ID: one array of two or more row numbers for each shared ID."""
    _, owner, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(owner.ravel(), kind="stable")
    parts = np.split(order, np.cumsum(count)[:-1])
    return [part for part in parts if len(part) > 1]


class _IDTree:
    """Count the taken IDs under each prefix.

    The IDs that are taken from the start lie in sorted arrays, level by level, which a catalog of millions fits; those that
    are taken later, which are few, in a dictionary.

    Args:
        codes: ``[T, K]`` different IDs that are taken.
        size: ``M``, codes of a level.
    """

    def __init__(self, codes: np.ndarray, size: int) -> None:
        count, self.levels = codes.shape
        self.size = size
        self.later: dict[tuple[int, ...], int] = {}
        # A prefix of a level has the key (number of the prefix without its last code) * M + last code.
        self.keys: list[np.ndarray] = []
        self.counts: list[np.ndarray] = [np.array([count])]
        number = np.zeros(count, dtype=np.int64)
        for level in range(self.levels):
            keys, number, counts = np.unique(
                number * size + codes[:, level].astype(np.int64), return_inverse=True, return_counts=True
            )
            self.keys.append(keys)
            self.counts.append(counts)

    def take(self, path: tuple[int, ...]) -> None:
        for end in range(self.levels + 1):
            self.later[path[:end]] = self.later.get(path[:end], 0) + 1

    def has_room(self, prefix: tuple[int, ...]) -> bool:
        taken = self._taken_from_the_start(prefix) + self.later.get(prefix, 0)
        return taken < self.size ** (self.levels - len(prefix))

    def _taken_from_the_start(self, prefix: tuple[int, ...]) -> int:
        number = 0
        for keys, code in zip(self.keys, prefix, strict=False):
            key = number * self.size + code
            number = int(np.searchsorted(keys, key))
            if number == len(keys) or keys[number] != key:
                return 0
        return int(self.counts[len(prefix)][number])
