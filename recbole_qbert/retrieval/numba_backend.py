"""Compiled CPU backend: pairs of codes are merged, and items with the same leading codes are stored side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.retrieval.numba_layout import Blocks, Bounds, Items, Users
from recbole_qbert.retrieval.torch_backend import Changes

# 1,024 codes and 'missing': merged tables of 4 MB a pair. Larger ones take longer to build than most catalogs to scan.
MAX_WIDTH = 1025
# An allowed subset below this share of the catalog is copied for the call and scanned whole: random access to an item costs
# about ten times as much as sequential access.
MAX_SUBSET_SHARE = 1 / 16
ZERO, MINUS_INF = np.float32(0), np.float32(-np.inf)


def unmergeable(codes: Tensor, size: int) -> str | None:
    """Explain why a catalog cannot be merged and what would help; None if it can.

    Args:
        codes: ``[N, K]`` integers in ``[-1, M)``.
        size: ``M``.
    """
    if codes.device.type != "cpu":
        return f"compiled ranking runs on the CPU and the codes are on {codes.device}; move them"
    if width_of(codes, size) > MAX_WIDTH:
        return f"{size} codes a level are too many to merge levels in pairs; use fewer"
    return None


def width_of(codes: Tensor, size: int) -> int:
    """Compute the number of entries of a level's table: ``size`` codes, and one more if some item lacks a level."""
    return size + bool(codes.numel() and int(codes.min()) < 0)


class MergedItems:
    """Rank a catalog in main memory with the compiled kernels.

    An item takes 2 bytes for each pair of levels (4 if a level has more than 256 values, counting 'missing'), 8 for the
    order and 4 for a bias.

    Args:
        codes: ``[N, K]`` integers in ``[-1, M)``.
        size: ``M``.
        bias: ``[N]`` float32 or None.
        valid: ``[N]`` bool, items that can be recommended; all when None.
        pruned: skip blocks (items with the same two leading codes) that cannot hold one of the best items.
    """

    def __init__(self, codes: Tensor, size: int, bias: Tensor | None, valid: Tensor | None, pruned: bool) -> None:
        from recbole_qbert.retrieval import numba_kernels  # imported late: numba is slow to import

        self.kernels = numba_kernels
        self.levels, self.width = codes.shape[1] + codes.shape[1] % 2, width_of(codes, size)
        rows = np.arange(len(codes)) if valid is None else np.flatnonzero(valid.numpy())
        order = np.argsort(self._pair(codes.numpy(), rows, 0), kind="stable")  # stable: rows ascend within a block
        rows = rows[order].astype(np.int32)
        pairs = [self._pair(codes.numpy(), rows, low) for low in range(0, self.levels, 2)]
        biases = np.empty(0, np.float32) if bias is None else bias.numpy()[rows]
        self.items = Items(np.stack(pairs), rows, biases, (0,) * len(pairs))
        self.place = np.full(len(codes), -1, np.int32)
        self.place[rows] = np.arange(len(rows), dtype=np.int32)
        self.no_blocks = Blocks(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
        self.blocks = self._build_blocks() if pruned else self.no_blocks

    def _pair(self, codes: np.ndarray, rows: np.ndarray, low: int) -> np.ndarray:
        """Merge the codes of two levels; a missing code is the last entry, a level past the end has code 0."""
        dtype = np.uint16 if self.width**2 <= 1 << 16 else np.uint32

        def entry(level: int) -> np.ndarray:
            if level == codes.shape[1]:
                return np.zeros(len(rows), dtype)
            code = codes[rows, level]
            return np.where(code < 0, self.width - 1, code).astype(dtype)

        return entry(low) * dtype(self.width) + entry(low + 1)

    def _build_blocks(self) -> Blocks:
        """Find the blocks and the part of their bounds that does not depend on the user."""
        width = self.width
        counts = [np.bincount(codes, minlength=width**2) for codes in self.items.codes]
        occurs = [(count > 0).reshape(width, width) for count in counts]
        # Codes that some item has, [2P, W]; only these count in a bound.
        self.present = np.stack([side for pair in occurs for side in (pair.any(1), pair.any(0))])
        start, ceiling = np.concatenate([[0], np.cumsum(counts[0])]), np.where(counts[0] > 0, ZERO, MINUS_INF)
        if len(self.items.bias):
            filled = np.flatnonzero(counts[0])
            ceiling[filled] = np.maximum.reduceat(self.items.bias, start[filled])
        row_ceiling = ceiling.reshape(width, width).max(1)
        return Blocks(start, ceiling if len(self.items.bias) else ceiling[:0], row_ceiling)

    def _bounds(self, tables: np.ndarray) -> Bounds:
        """Compute upper bounds of the blocks' scores.

        A bound is the score of an imaginary item with the block's two codes, the best code of any item at every other level,
        and the best bias of the block, added up in the order of a real score. If ``x <= y``, rounding to nearest never makes
        ``x + c > y + c``, so no item of the block scores higher: the bound needs no margin.

        Args:
            tables: ``[B, 2P, W]`` float32.
        """
        occurring = np.where(self.present, tables, MINUS_INF)
        best = occurring.max(2)
        one, two, rest = occurring[:, 0], occurring[:, 1], best[:, 2::2] + best[:, 3::2]
        row = one + best[:, [1]]
        for pair in range(rest.shape[1]):
            row = row + rest[:, [pair]]
        row = row + self.blocks.row_ceiling
        parts = (one, two, rest, row, np.argsort(-row, 1), np.argsort(-two, 1))
        return Bounds(*(np.ascontiguousarray(part) for part in parts))

    @property
    def nbytes(self) -> int:
        """Bytes of the catalog in memory, without the tables of blocks, which do not grow with it."""
        return sum(array.nbytes for array in (*self.items[:3], self.place))

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """Find the best items.

        Args:
            queries, k, changes, threads: as for ``Backend.top_k``.
        """
        items, blocks, allowed = self._allowed(changes)
        users, bounds = self._users(queries, changes, items, blocks)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def run(part: slice) -> None:
            self.kernels.top_k(items, blocks, _slice(users, part), _slice(bounds, part), allowed, scores[part], rows[part])

        run_in_threads(run, len(queries), threads)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """Rank targets.

        Args:
            queries, target, changes, threads: as for ``Backend.rank``.
        """
        items, blocks, allowed = self._allowed(changes)
        users, bounds = self._users(queries, changes, items, blocks)
        targets, worst, ranks = target.contiguous().numpy(), len(self.place), np.empty(len(queries), np.int64)
        places = self._places(items, targets)

        def run(part: slice) -> None:
            rest = (targets[part], places[part], worst, ranks[part])
            self.kernels.rank(items, blocks, _slice(users, part), _slice(bounds, part), allowed, *rest)

        run_in_threads(run, len(queries), threads)
        return torch.from_numpy(ranks)

    def _allowed(self, changes: Changes) -> tuple[Items, Blocks, np.ndarray]:
        """Select the items and blocks to scan, and a mask of allowed items, ``[N]`` bool, or ``[0]`` for all of them."""
        no_mask = np.empty(0, bool)
        if changes.allowed is None:
            return self.items, self.blocks, no_mask
        allowed = changes.allowed.numpy()
        if (np.count_nonzero(allowed) if allowed.dtype == bool else len(allowed)) > MAX_SUBSET_SHARE * len(self.place):
            return self.items, self.blocks, changes.mask(len(self.place)).numpy()
        rows = np.flatnonzero(allowed) if allowed.dtype == bool else allowed
        rows = rows[self.place[rows] >= 0]
        places, biases = self.place[rows], self.items.bias
        codes = np.ascontiguousarray(self.items.codes[:, places])
        subset = Items(codes, rows.astype(np.int32), biases[places] if len(biases) else biases, self.items.pairs)
        return subset, self.no_blocks, no_mask

    def _users(self, queries: Tensor, changes: Changes, items: Items, blocks: Blocks) -> tuple[Users, Bounds]:
        tables = np.zeros((len(queries), self.levels, self.width), np.float32)
        tables[:, : queries.shape[1], : queries.shape[2]] = queries.numpy()
        changed = np.ascontiguousarray(changes.items.numpy())
        users = (tables, changed, self._places(items, changed), np.ascontiguousarray(changes.amounts.numpy()))
        if len(blocks.start):
            return Users(*users), self._bounds(tables)
        no_floats, no_integers = np.empty((len(tables), 0), np.float32), np.empty((len(tables), 0), np.int64)
        return Users(*users), Bounds(no_floats, no_floats, no_floats, no_floats, no_integers, no_integers)

    def _places(self, items: Items, rows: np.ndarray) -> np.ndarray:
        """Find the positions of item rows in ``items``, int64; -1 for rows that are not there."""
        if items is self.items:
            return np.where(rows < 0, -1, self.place[rows]).astype(np.int64)
        if not len(items.rows):
            return np.full(rows.shape, -1)
        places = np.searchsorted(items.rows, rows).clip(max=len(items.rows) - 1)
        return np.where(items.rows[places] == rows, places, -1)


def _slice(arrays: Any, part: slice) -> Any:
    """Slice each array of a named tuple."""
    return type(arrays)(*(array[part] for array in arrays))


def run_in_threads(run: Callable[[slice], None], batch: int, threads: int) -> None:
    """Run over slices of the users, one a thread; the kernels release Python's lock."""
    threads = max(1, min(threads, batch))
    parts = [slice(batch * part // threads, batch * (part + 1) // threads) for part in range(threads)]
    if threads == 1:
        run(parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, parts))
