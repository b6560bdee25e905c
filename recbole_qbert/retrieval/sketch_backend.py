"""Compiled CPU backend for vectors: a scan of 4 bits a number decides which few items are scored exactly.

One user's product with a catalog reads every vector from memory, which takes longer than the arithmetic. The sketch of a
vector is an eighth of its size. It gives a bound of the score that is rigorous (``Sketch.round``), so no result changes. Few
items reach the k-th best score with it; other numbers of bits and principal axes are compared in benchmarks/bounds.py.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.retrieval.dense_backend import DenseItems
from recbole_qbert.retrieval.numba_backend import run_in_threads
from recbole_qbert.retrieval.torch_backend import Changes, best_of_parts

MIN_ITEMS = 1 << 11  # for fewer, the product is as fast, and there is nothing to compile
MAX_K = 1024  # the best items are a sorted list: inserting costs k
MAX_WIDTH = 4096  # for wider vectors, int16 leaves a query less than 3 bits a number
LARGEST_SUM = (1 << 15) - 1  # sums are int16
NORMS = (1e-6, 1e30)  # of queries and of the longest vector: in float32, bounds stay finite, and margins above underflow


class SketchedItems(DenseItems):
    """Rank a catalog of vectors in main memory; a sketch is made when it first pays.

    A sketch takes ``D / 2 + 5`` bytes an item.

    Args:
        vectors, bias, valid, max_norm: as for :class:`DenseItems`.
        always: use the sketch wherever it is possible, not only where it pays.
    """

    def __init__(
        self, vectors: Tensor, bias: Tensor | None, valid: Tensor | None, max_norm: float, always: bool = False
    ) -> None:
        super().__init__(vectors, bias, valid, max_norm)
        self.always = always

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """Find the best items; threads divide the users or, if there are too few, the items.

        Args:
            queries, k, changes, threads: as for ``Backend.top_k``.
        """
        if not self._uses_sketch(queries, k):
            return super().top_k(queries, k, changes, threads)
        sketch = self.sketch
        users = np.ascontiguousarray(queries.numpy())
        rounded, *bounds = sketch.round(users)
        changed, amounts = (np.ascontiguousarray(part.numpy()) for part in (changes.items, changes.amounts))
        allowed = self._allowed(changes)
        blocks = len(sketch.words)
        parts = min(max(1, threads // len(users)), blocks)
        scores = np.empty((parts, len(users), k), np.float32)
        rows = np.empty(scores.shape, np.int64)

        def scan(some: slice, part: int) -> None:
            sketch.kernels.top_k(
                sketch.words,
                sketch.scales,
                sketch.errors,
                sketch.vectors,
                sketch.bias,
                users[some],
                rounded[some],
                *(bound[some] for bound in bounds),
                changed[some],
                amounts[some],
                allowed,
                blocks * part // parts,
                blocks * (part + 1) // parts,
                scores[part, some],
                rows[part, some],
            )

        if parts == 1:  # threads divide the users
            run_in_threads(lambda some: scan(some, 0), len(users), threads)
        else:
            run_in_threads(lambda some: scan(slice(None), some.start), parts, parts)
        return best_of_parts(torch.from_numpy(scores), torch.from_numpy(rows))

    def _uses_sketch(self, queries: Tensor, k: int) -> bool:
        if k > MAX_K or queries.shape[1] > MAX_WIDTH or not self.max_norm <= NORMS[1]:
            return False
        if not self.always and self.items < MIN_ITEMS:
            return False
        norms = torch.linalg.vector_norm(queries, dim=1)
        return bool(((norms >= NORMS[0]) & (norms <= NORMS[1])).all())

    def _allowed(self, changes: Changes) -> np.ndarray:
        """Mask of the items to choose from, ``[N]`` bool, or ``[0]`` for all."""
        masks = [self.valid, None if changes.allowed is None else changes.mask(self.items)]
        given = [mask.numpy() for mask in masks if mask is not None]
        return functools.reduce(np.logical_and, given) if given else np.empty(0, bool)

    @functools.cached_property
    def sketch(self) -> Sketch:
        """The sketch; made at the first use, which takes about as long as ten products with one user."""
        sketch = Sketch(self.vectors, self.bias)
        self.nbytes += sketch.nbytes
        return sketch


class Sketch:
    """Vectors in 4 bits a number, and what bounds the error.

    Args:
        vectors: ``[N, D]`` float32; not copied.
        bias: ``[N]`` float32 or None.

    Attributes:
        words, scales, errors, vectors, bias: as the kernels take them (``sketch_kernels.top_k``).
        longest: largest norm of what is stored of a vector, over its scale.
        largest_error: largest distance between a vector and what is stored of it, over its scale.
    """

    def __init__(self, vectors: Tensor, bias: Tensor | None) -> None:
        from recbole_qbert.retrieval import sketch_kernels  # imported late: numba is slow to import

        self.kernels = sketch_kernels
        self.vectors = np.ascontiguousarray(vectors.numpy())
        self.bias = np.empty(0, np.float32) if bias is None else bias.numpy()
        items, width = self.vectors.shape
        blocks = -(-items // sketch_kernels.BLOCK)
        self.words = np.zeros((blocks, -(-width // 4), sketch_kernels.BLOCK), np.uint16)
        self.scales = np.zeros(blocks * sketch_kernels.BLOCK, np.float32)
        errors = np.zeros(len(self.scales), np.float32)
        self.longest = sketch_kernels.pack(self.vectors, self.words, self.scales, errors) * (1 + 1e-9)
        self.largest_error = float(errors.max(initial=0.0)) * (1 + 1e-6)
        steps = errors.astype(np.float64) * (1 + 1e-6) * 255 / max(self.largest_error, 1e-30)
        self.errors = np.ceil(steps).clip(max=255).astype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of the sketch, without the vectors."""
        return self.words.nbytes + self.scales.nbytes + self.errors.nbytes

    def round(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Round queries to integers, ``(rounded, steps, norms, margins)`` of ``sketch_kernels.top_k``.

        A query ``q`` is ``step * r + rest``, an item ``v`` is ``scale * (w + e)`` with ``|w| <= longest`` and ``|e|`` its
        error. So ``q . v = scale * (step * r . w + rest . w + q . e)``, and by Cauchy-Schwarz the last two are at most
        ``|rest| longest + |q| |e|``. ``step`` is the smallest for which ``|r . w| <= |r| longest`` fits int16. The margin
        also covers the rounding of the exact score (``width / LANES`` additions, a few more for the sum of the lanes) and of
        the bound.
        """
        width, padded = queries.shape[1], 4 * self.words.shape[1]
        exact = np.zeros((len(queries), padded))
        exact[:, :width] = queries
        norm = np.linalg.norm(exact, axis=1)
        steps = (norm / (LARGEST_SUM / max(self.longest, 1.0) - 0.5 * padded**0.5 - 1)).astype(np.float32)
        whole = np.rint(exact / steps[:, None].astype(np.float64))
        rest = np.linalg.norm(exact - whole * steps[:, None], axis=1)
        rounding = (width / self.kernels.LANES + 16) * 2.0**-23
        margins = rest * self.longest + norm * rounding * (self.largest_error + self.longest)
        norms = norm * (self.largest_error / 255)
        norms, margins = ((part * (1 + 1e-6)).astype(np.float32) for part in (norms, margins))
        return whole.astype(np.int16).view(np.uint16), steps, norms, margins
