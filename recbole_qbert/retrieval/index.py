"""Exact best items and ranks over catalogs of any size, from the codes of the items or from a dense matrix.

``ItemIndex`` is built once for a catalog and searched with a batch of users' tables of code scores; ``DenseIndex`` is the
same for vectors. A ``[B, N]`` matrix never exists. The result equals ``scoring.code_scores``, or ``dot_scores``, followed by
``scoring.top_k`` or ``rank_of`` to the bit, whatever the method, the batch and the number of threads.

A score is the sum over levels or the product (float32, in the order of ``scoring.sum_levels`` or ``row_dots``), plus the
bias of the item, plus the adjustments of the call. The higher score comes first, among equal scores the lower item row. An
item at -inf is never recommended.

Tables of a trained network with ``use_item_embedding: false``: the logits of a view are ``state . codebook``, less the
penalty of the history's items. A softmax subtracts the same number from all logits of a user, so the mean of the views'
log-probabilities ranks as the mean of their logits: one table ``einsum("bd,kmd->bkm", state, codebook)`` of the mean state,
and ``adjust=(history, -penalty)``, since the penalty is the same in every view. (With ``loss: code``, the tables are the
mean of those that ``SemanticSequenceModel.scores`` adds up.) A prior that is constant except for a few items a user is added
by ``adjust``, too.

Methods: ``chunked`` gathers and adds with torch, one chunk of items at a time, on a CPU or a GPU. ``merged`` (compiled, CPU)
reads two levels with one look-up in a table that is merged for the user. ``pruned`` also skips blocks of items that share
their two leading codes if an upper bound of their scores is below the k-th best, similar to RecJPQPrune and PQTopK (arXiv
2505.00560, 2408.09992, 2312.06165). It skips more the fewer levels there are and the more the first two contribute; with
eight levels that contribute alike it skips nothing, and the bounds cost some percent. ``auto`` is ``chunked`` on a GPU,
otherwise ``merged``, and ``pruned`` for large catalogs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_qbert.retrieval.base import Index, max_magnitude
from recbole_qbert.retrieval.dense_backend import DenseItems
from recbole_qbert.retrieval.numba_backend import MergedItems, unmergeable, width_of
from recbole_qbert.retrieval.sketch_backend import SketchedItems
from recbole_qbert.retrieval.torch_backend import MAX_CHUNK, ChunkedItems, Scorer
from recbole_qbert.sequence.scoring import check_codes, pad_missing_level, sum_levels

MIN_PRUNED_ITEMS = 1 << 18  # for fewer items, pruning costs more than it saves (benchmarks/ranking.py)
METHODS = ("auto", "chunked", "merged", "pruned")
DENSE_METHODS = ("auto", "product", "sketch")


class ItemIndex(Index):
    """Items described by codes; ``queries`` are tables of code scores, ``[B, K, M]``, finite or -inf.

    Args:
        codes: ``[N, K]`` integers in ``[-1, M)``; -1 where an item lacks a level, which adds nothing.
        size: ``M``.
        bias: ``[N]`` float added to the items' scores.
        valid: ``[N]`` bool, items that can be recommended (padding cannot); all by default.
        method: ``auto``, ``chunked``, ``merged`` or ``pruned``; see the module.

    Raises:
        ValueError: shapes do not fit, a code is out of range, or the method is not possible (codes on a GPU, more codes a
            level than can be merged).
    """

    def __init__(
        self,
        codes: Tensor,
        size: int,
        *,
        bias: Tensor | None = None,
        valid: Tensor | None = None,
        method: str = "auto",
    ) -> None:
        if codes.dim() != 2 or not codes.shape[1] or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype} {tuple(codes.shape)}; they must be integers [N, K]")
        check_codes(codes, size)
        super().__init__(len(codes), codes.device, bias, valid)
        self.levels, self.size = codes.shape[1], size
        if method not in METHODS:
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
        reason = unmergeable(codes, size) if method != "chunked" else None
        if reason and method != "auto":
            raise ValueError(f"method {method}: {reason}; or choose the method chunked")
        if method == "auto":
            method = "chunked" if reason else "merged" if len(codes) < MIN_PRUNED_ITEMS else "pruned"
        self.method = method
        if self.method == "chunked":
            self._codes = _by_level(codes, size)
            self.chunked = ChunkedItems(self._codes, self._scorer, self.items, self.bias, self.valid)
            self.backend = self.chunked
        else:
            self._caller_codes = codes  # not copied: only log_sum_exp reads them
            self.chunked = ChunkedItems(codes, self._caller_scorer, self.items, self.bias, self.valid)
            self.backend = MergedItems(codes, size, self.bias, self.valid, self.method == "pruned")

    def _queries(self, queries: Tensor) -> tuple[Tensor, float]:
        if queries.dim() != 3 or queries.shape[1:] != (self.levels, self.size):
            raise ValueError(f"tables have shape {tuple(queries.shape)}; they must be [B, {self.levels}, {self.size}]")
        queries = queries.detach().to(self.device, torch.float32)
        return queries, max_magnitude(queries.transpose(0, 1), "tables")

    def _scorer(self, tables: Tensor) -> Scorer:
        padded = pad_missing_level(tables)
        return lambda start, stop: sum_levels(padded, self._codes[:, start:stop].int())

    def _caller_scorer(self, tables: Tensor) -> Scorer:
        padded = pad_missing_level(tables)
        return lambda start, stop: sum_levels(padded, _by_level(self._caller_codes[start:stop], self.size).int())


class DenseIndex(Index):
    """Items described by vectors, for networks with ``use_item_embedding: true``; ``queries`` are states, ``[B, D]``.

    Scores are those of ``scoring.dot_scores``, to the bit, whatever the method, the batch and the number of threads.

    Methods: ``product`` finds the few items that may be among the best, or beside a target, by a matrix product (torch, on a
    CPU or a GPU). ``sketch`` (compiled, CPU) finds the best items by a scan of 4 bits a number, wherever its bounds hold.
    ``auto`` is ``sketch`` on a CPU where it is faster. Ranks and ``log_sum_exp`` always take the product.

    Args:
        vectors: ``[N, D]`` float; neither copied nor moved if they are float32.
        bias, valid: as for :class:`ItemIndex`.
        method: ``auto``, ``product`` or ``sketch``.

    Raises:
        ValueError: shapes do not fit, a number is not finite, or the method is not possible (vectors on a GPU).
    """

    def __init__(
        self, vectors: Tensor, *, bias: Tensor | None = None, valid: Tensor | None = None, method: str = "auto"
    ) -> None:
        if vectors.dim() != 2 or not vectors.is_floating_point():
            raise ValueError(f"vectors are {vectors.dtype} {tuple(vectors.shape)}; they must be float [N, D]")
        if method not in DENSE_METHODS:
            raise ValueError(f"method is {method!r}; it must be one of {', '.join(DENSE_METHODS)}")
        on_cpu = vectors.device.type == "cpu"
        if method == "sketch" and not on_cpu:
            raise ValueError(
                f"method sketch: compiled ranking runs on the CPU and the vectors are on {vectors.device}; move them, or "
                "choose the method product"
            )
        super().__init__(len(vectors), vectors.device, bias, valid)
        self.vectors = vectors.detach().float()
        self._max_norm = max([0.0, *(_max_norm(part, "vectors") for part in self.vectors.split(MAX_CHUNK))])
        self.chunked = DenseItems(self.vectors, self.bias, self.valid, self._max_norm)
        if on_cpu and method != "product":
            self.chunked = SketchedItems(self.vectors, self.bias, self.valid, self._max_norm, always=method == "sketch")
        self.backend = self.chunked

    def _queries(self, queries: Tensor) -> tuple[Tensor, float]:
        if queries.dim() != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"states have shape {tuple(queries.shape)}; they must be [B, {self.vectors.shape[1]}]")
        queries = queries.detach().to(self.device, torch.float32)
        return queries, _max_norm(queries, "states") * self._max_norm


def _by_level(codes: Tensor, size: int) -> Tensor:
    """Transpose codes to ``[K, N]`` in the smallest possible type; a missing code is the entry after the last."""
    width = width_of(codes, size)
    dtype = torch.uint8 if width <= 1 << 8 else torch.int16 if width <= 1 << 15 else torch.int32
    return torch.stack([torch.where(level < 0, size, level.int()).to(dtype) for level in codes.T])


def _max_norm(vectors: Tensor, name: str) -> float:
    """Norm of the longest vector.

    Raises:
        ValueError: a vector is not finite.
    """
    if not vectors.numel():
        return 0.0
    norm = float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).max())
    if not norm < torch.inf:
        raise ValueError(f"{name} hold NaN or infinite numbers")
    return norm
