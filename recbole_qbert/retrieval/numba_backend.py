"""Items laid out for the compiled kernels: pairs of codes merged, items of the same leading codes side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.retrieval.numba_layout import Blocks, Bounds, Items, Users
from recbole_qbert.retrieval.torch_backend import Changes

# 1,024 codes and 'missing': merged tables of 4 MB a pair. Larger ones take longer to make than most catalogs to scan.
WIDEST = 1025
# An allowed subset below this share of the catalog is laid out anew for the call and scanned whole: picking an item out
# costs about ten times as much as running over it.
SMALL_SHARE = 1 / 16
ZERO, NEVER = np.float32(0), np.float32(-np.inf)


def unmergeable(codes: Tensor, size: int) -> str | None:
    """Why a catalog cannot be laid out like this here, and what would help; None when it can."""
    if codes.device.type != "cpu":
        return f"compiled ranking is for the CPU and the codes lie on {codes.device}; move them"
    if width_of(codes, size) > WIDEST:
        return f"{size} codes a level are too many to merge levels in pairs; use fewer"
    return None


def width_of(codes: Tensor, size: int) -> int:
    """Entries of a level's table: the codes, and one more if some item lacks a level."""
    return size + bool(codes.numel() and int(codes.min()) < 0)


class MergedItems:
    """A catalog in main memory, in the order that the kernels want.

    It takes 2 bytes an item and pair of levels (4 where a level has more than 256 values, 'missing' being one), 8 for the
    order and 4 for a bias.

    Args:
        codes: ``[N, K]`` integers in ``[-1, M)``.
        size: ``M``.
        bias: ``[N]`` float32 or None.
        valid: ``[N]`` bool, items that can be answers; None: all.
        pruned: skip blocks (items of the same first two codes) that cannot hold an answer.
    """

    def __init__(self, codes: Tensor, size: int, bias: Tensor | None, valid: Tensor | None, pruned: bool) -> None:
        from recbole_qbert.retrieval import numba_kernels  # numba takes a moment to import

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
        self.blocks = self._lay_out() if pruned else self.no_blocks

    def _pair(self, codes: np.ndarray, rows: np.ndarray, low: int) -> np.ndarray:
        """Merged codes of two levels; a missing code is the last entry, a level past the end has code 0 throughout."""
        kind = np.uint16 if self.width**2 <= 1 << 16 else np.uint32

        def entry(level: int) -> np.ndarray:
            if level == codes.shape[1]:
                return np.zeros(len(rows), kind)
            code = codes[rows, level]
            return np.where(code < 0, self.width - 1, code).astype(kind)

        return entry(low) * kind(self.width) + entry(low + 1)

    def _lay_out(self) -> Blocks:
        """Where blocks start, and what bounds them whoever the user is."""
        width = self.width
        counts = [np.bincount(codes, minlength=width**2) for codes in self.items.codes]
        there = [(count > 0).reshape(width, width) for count in counts]
        # Codes that some item has, [2P, W]: the others bound nothing.
        self.present = np.stack([side for pair in there for side in (pair.any(1), pair.any(0))])
        start, ceiling = np.concatenate([[0], np.cumsum(counts[0])]), np.where(counts[0] > 0, ZERO, NEVER)
        if len(self.items.bias):
            filled = np.flatnonzero(counts[0])
            ceiling[filled] = np.maximum.reduceat(self.items.bias, start[filled])
        row_ceiling = ceiling.reshape(width, width).max(1)
        return Blocks(start, ceiling if len(self.items.bias) else ceiling[:0], row_ceiling)

    def _bounds(self, tables: np.ndarray) -> Bounds:
        """What bounds a block's scores: the score of an imagined item that has the block's two codes, at every other level
        the best code that any item has, and the best bias of the block; added up in the order of a real score.

        Rounding to nearest never makes ``x + c > y + c`` of ``x <= y``, so term by term no item of the block scores higher:
        the bound is exact and needs no margin.

        Args:
            tables: ``[B, 2P, W]`` float32.
        """
        known = np.where(self.present, tables, NEVER)
        best = known.max(2)
        one, two, rest = known[:, 0], known[:, 1], best[:, 2::2] + best[:, 3::2]
        row = one + best[:, [1]]
        for pair in range(rest.shape[1]):
            row = row + rest[:, [pair]]
        row = row + self.blocks.row_ceiling
        parts = (one, two, rest, row, np.argsort(-row, 1), np.argsort(-two, 1))
        return Bounds(*(np.ascontiguousarray(part) for part in parts))

    @property
    def nbytes(self) -> int:
        """Bytes held for the catalog; tables of blocks, which do not grow with it, left out."""
        return sum(array.nbytes for array in (*self.items[:3], self.place))

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """``(scores, rows)``, both ``[B, k]``."""
        items, blocks, allowed = self._allowed(changes)
        users, bounds = self._users(queries, changes, items, blocks)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def run(some: slice) -> None:
            self.kernels.top_k(items, blocks, _of(users, some), _of(bounds, some), allowed, scores[some], rows[some])

        _share_out(run, len(queries), threads)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """``[B]`` int64."""
        items, blocks, allowed = self._allowed(changes)
        users, bounds = self._users(queries, changes, items, blocks)
        wanted, worst, ranks = target.contiguous().numpy(), len(self.place), np.empty(len(queries), np.int64)
        places = self._places(items, wanted)

        def run(some: slice) -> None:
            asked = (wanted[some], places[some], worst, ranks[some])
            self.kernels.rank(items, blocks, _of(users, some), _of(bounds, some), allowed, *asked)

        _share_out(run, len(queries), threads)
        return torch.from_numpy(ranks)

    def _allowed(self, changes: Changes) -> tuple[Items, Blocks, np.ndarray]:
        """The items and blocks to look through, and the mask of what is allowed of them, ``[N]`` or ``[0]``."""
        everything = np.empty(0, bool)
        if changes.allowed is None:
            return self.items, self.blocks, everything
        given = changes.allowed.numpy()
        if (np.count_nonzero(given) if given.dtype == bool else len(given)) > SMALL_SHARE * len(self.place):
            return self.items, self.blocks, changes.mask(len(self.place)).numpy()
        rows = np.flatnonzero(given) if given.dtype == bool else given
        rows = rows[self.place[rows] >= 0]
        places, biases = self.place[rows], self.items.bias
        codes = np.ascontiguousarray(self.items.codes[:, places])
        subset = Items(codes, rows.astype(np.int32), biases[places] if len(biases) else biases, self.items.pairs)
        return subset, self.no_blocks, everything

    def _users(self, queries: Tensor, changes: Changes, items: Items, blocks: Blocks) -> tuple[Users, Bounds]:
        tables = np.zeros((len(queries), self.levels, self.width), np.float32)
        tables[:, : queries.shape[1], : queries.shape[2]] = queries.numpy()
        special = np.ascontiguousarray(changes.items.numpy())
        users = (tables, special, self._places(items, special), np.ascontiguousarray(changes.amounts.numpy()))
        if len(blocks.start):
            return Users(*users), self._bounds(tables)
        nothing, nowhere = np.empty((len(tables), 0), np.float32), np.empty((len(tables), 0), np.int64)
        return Users(*users), Bounds(nothing, nothing, nothing, nothing, nowhere, nowhere)

    def _places(self, items: Items, rows: np.ndarray) -> np.ndarray:
        """Where item rows stand among ``items``, int64; -1 for those that are not there."""
        if items is self.items:
            return np.where(rows < 0, -1, self.place[rows]).astype(np.int64)
        if not len(items.rows):
            return np.full(rows.shape, -1)
        places = np.searchsorted(items.rows, rows).clip(max=len(items.rows) - 1)
        return np.where(items.rows[places] == rows, places, -1)


def _of(parts: Any, some: slice) -> Any:
    """The part of some users of a tuple of arrays."""
    return type(parts)(*(part[some] for part in parts))


def _share_out(run: Callable[[slice], None], batch: int, threads: int) -> None:
    """Run over slices of the users, one a thread; the kernels let go of Python's lock."""
    threads = max(1, min(threads, batch))
    parts = [slice(batch * part // threads, batch * (part + 1) // threads) for part in range(threads)]
    if threads == 1:
        run(parts[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, parts))
