"""Stage 2: give items that share a semantic ID different ones, moving as little as possible (paper 3.4, Eq. 10).

The published procedure (MQL4GRec) stops after two rounds and leaves duplicates. This one ends: it walks the tree of IDs
and always finds the free ID that greedy descent by distance reaches first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def reallocate(
    codes: np.ndarray, latents: np.ndarray, codebooks: np.ndarray, items: Sequence[str], taken: np.ndarray | None = None
) -> np.ndarray:
    """Make semantic IDs unique.

    Items that are alone on their ID keep it. Of the items that share one, the closest to its last-level code keeps it;
    the others, over the whole catalog, are placed in the order of their smallest distance to a last-level code (ties by
    item token): each takes the nearest last-level code that leaves its ID unused; if every ID under its prefix is taken,
    one level up the nearest code with room below, and so on. Residuals are recomputed along the new path.

    Args:
        codes: ``[N, K]`` integer codes in ``[0, M)``.
        latents: ``[N, d]`` float, what was quantized.
        codebooks: ``[K, M, d]`` float.
        items: ``N`` item tokens; they break ties, so that the result does not depend on the order of the rows.
        taken: ``[T, K]`` different IDs that belong to others and stay theirs: all items that share one are moved.

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
    others = [] if taken is None else [tuple(row) for row in taken.tolist()]
    if count + len(others) > size**levels:
        raise ValueError(
            f"{count + len(others)} items cannot have different IDs of {levels} levels with {size} codes: there are "
            f"{size**levels}; raise rq_levels or rq_codes"
        )
    # float64 and row-wise sums: the same item gives the same distances to the last bit wherever its row stands.
    latents, codebooks = latents.astype(np.float64), codebooks.astype(np.float64)
    tree = _Tree(levels, size)
    for path in others:
        tree.take(path)
    shared = _groups(codes)
    alone = np.ones(count, dtype=bool)
    for rows in shared:
        alone[rows] = False
    owned = set(others)
    waiting: list[tuple[float, str, int]] = []
    for row in np.flatnonzero(alone):
        if tuple(codes[row].tolist()) in owned:
            smallest = float(_distances(latents[row], codebooks, codes[row, :-1]).min())
            waiting.append((smallest, items[row], int(row)))
        else:
            tree.take(tuple(codes[row].tolist()))
    result = codes.copy()
    for rows in shared:
        ranked = []
        for row in rows:
            distance = _distances(latents[row], codebooks, codes[row, :-1])
            ranked.append((float(distance[codes[row, -1]]), items[row], int(row), float(distance.min())))
        ranked.sort()
        keeps = tuple(codes[rows[0]].tolist()) not in owned
        if keeps:
            tree.take(tuple(codes[rows[0]].tolist()))
        waiting += [(smallest, item, row) for _, item, row, smallest in ranked[keeps:]]
    for _, _, row in sorted(waiting):
        result[row] = _place(tree, latents[row], codebooks, codes[row])
    return result


def _place(tree: _Tree, latent: np.ndarray, codebooks: np.ndarray, code: np.ndarray) -> list[int]:
    """The free ID that descent by distance reaches, keeping as long a prefix of ``code`` as has room; takes it."""
    levels = len(code)
    keep = next(keep for keep in range(levels - 1, -1, -1) if tree.room(tuple(code[:keep].tolist())))
    path = code[:keep].tolist()
    for _ in range(keep, levels):
        distance = _distances(latent, codebooks, np.asarray(path, dtype=np.int64))
        path.append(next(c for c in np.argsort(distance, kind="stable").tolist() if tree.room((*path, c))))
    tree.take(tuple(path))
    return path


def _distances(latent: np.ndarray, codebooks: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Squared distance of the residual left by ``path`` to every code of the next level (Eq. 10); ``[M]``."""
    level = len(path)
    residual = latent - codebooks[np.arange(level), path].sum(0)
    return ((residual - codebooks[level]) ** 2).sum(1)


def _groups(codes: np.ndarray) -> list[np.ndarray]:
    """Rows that share an ID, one array of row numbers (two or more) a shared ID."""
    _, owner, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(owner.ravel(), kind="stable")
    parts = np.split(order, np.cumsum(count)[:-1])
    return [part for part in parts if len(part) > 1]


class _Tree:
    """How many IDs are taken under each prefix."""

    def __init__(self, levels: int, size: int) -> None:
        self.levels, self.size = levels, size
        self.taken: dict[tuple[int, ...], int] = {}

    def take(self, path: tuple[int, ...]) -> None:
        for end in range(self.levels + 1):
            self.taken[path[:end]] = self.taken.get(path[:end], 0) + 1

    def room(self, prefix: tuple[int, ...]) -> bool:
        return self.taken.get(prefix, 0) < self.size ** (self.levels - len(prefix))
