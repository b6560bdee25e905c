"""Exact best items and ranks over catalogs of any size, from the codes of the items or from a dense matrix.

``ItemIndex`` is laid out once for a catalog and then asked with a batch of users' tables of code scores; ``DenseIndex``
is the same for vectors. No ``[B, N]`` is ever held. From codes, the answer is that of ``ranking.code_scores`` followed by
``ranking.top_k`` or ``rank_of``, to the bit, whatever the method, the batch and the number of threads.

A score is the sum over levels (in the order of ``ranking.add_up``, float32), plus the bias of the item, plus what the call
says of single items. The higher score comes first, among equal scores the lower item row. -inf means 'never an answer'.

Tables of a trained network with ``use_item_embedding: false``: the logits of a view are ``state . codebook``, less the
penalty of the history's items. What a softmax subtracts from them is one number a user, the same for all items, so the mean
over the views' log-probabilities ranks as the mean of their logits: one table ``einsum("bd,kmd->bkm", state, codebook)`` of
the mean state, and ``adjust=(history, -penalty)``, the penalty being the same in every view. (With ``loss: code`` the
tables are the mean of what ``SemanticSequenceModel.scores`` adds up.) A prior that is constant but for few items a user
goes the same way.

Methods: ``chunked`` gathers and adds with torch, a chunk of items at a time, on a CPU or a GPU. ``merged`` (compiled, CPU)
covers two levels with one look-up in a table merged for the user. ``pruned`` skips, besides, blocks of items that share two
leading codes and whose best imaginable score is below the k-th best, in the manner of RecJPQPrune and PQTopK (arXiv
2505.00560, 2408.09992, 2312.06165). The fewer levels and the more the first two of them matter, the more it skips; of eight
levels that matter alike, nothing, and looking costs some percent. ``auto`` is ``chunked`` on a GPU, otherwise ``merged``,
for large catalogs ``pruned``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_qbert.retrieval.base import Index, largest
from recbole_qbert.retrieval.numba_backend import MergedItems, unmergeable, width_of
from recbole_qbert.retrieval.torch_backend import LONGEST, ChunkedItems, Scorer
from recbole_qbert.sequence.scoring import check_codes, pad_missing_level, sum_levels

PRUNED_FROM = 1 << 18  # items; for fewer, looking at the blocks costs more than it saves (benchmarks/ranking.py)
METHODS = ("auto", "chunked", "merged", "pruned")


class ItemIndex(Index):
    """Items described by codes; ``queries`` are tables of code scores, ``[B, K, M]``, finite or -inf.

    Args:
        codes: ``[N, K]`` integers in ``[-1, M)``; -1 where an item lacks a level: nothing is added there.
        size: ``M``.
        bias: ``[N]`` float added to the items' scores.
        valid: ``[N]`` bool, items that can ever be answers (a padding row can not); all by default.
        method: see the module.

    Raises:
        ValueError: shapes do not fit, a code is out of range, or the method cannot be had (codes on a GPU, more codes a
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
            method = "chunked" if reason else "merged" if len(codes) < PRUNED_FROM else "pruned"
        self.method = method
        if self.method == "chunked":
            self._codes = _by_level(codes, size)
            self.chunked = ChunkedItems(self._codes, self._scorer, self.items, self.bias, self.valid)
            self.backend = self.chunked
        else:
            self._given = codes  # the caller's, for the rare pass over all scores
            self.chunked = ChunkedItems(codes, self._given_scorer, self.items, self.bias, self.valid)
            self.backend = MergedItems(codes, size, self.bias, self.valid, self.method == "pruned")

    def _queries(self, queries: Tensor) -> tuple[Tensor, float]:
        if queries.dim() != 3 or queries.shape[1:] != (self.levels, self.size):
            raise ValueError(f"tables have shape {tuple(queries.shape)}; they must be [B, {self.levels}, {self.size}]")
        queries = queries.detach().to(self.device, torch.float32)
        return queries, largest(queries.transpose(0, 1), "tables")

    def _scorer(self, tables: Tensor) -> Scorer:
        silent = pad_missing_level(tables)
        return lambda start, stop: sum_levels(silent, self._codes[:, start:stop].int())

    def _given_scorer(self, tables: Tensor) -> Scorer:
        silent = pad_missing_level(tables)
        return lambda start, stop: sum_levels(silent, _by_level(self._given[start:stop], self.size).int())


class DenseIndex(Index):
    """Items described by vectors, for networks with ``use_item_embedding: true``; ``queries`` are states, ``[B, D]``.

    A product is rounded as its library likes: scores, and the order of items that differ in the last bits, may change with
    the number of users in a call.

    Args:
        vectors: ``[N, D]`` float; kept as they are, where they are.
        bias, valid: as for :class:`ItemIndex`.

    Raises:
        ValueError: shapes do not fit, or a number is not finite.
    """

    def __init__(self, vectors: Tensor, *, bias: Tensor | None = None, valid: Tensor | None = None) -> None:
        if vectors.dim() != 2 or not vectors.is_floating_point():
            raise ValueError(f"vectors are {vectors.dtype} {tuple(vectors.shape)}; they must be float [N, D]")
        super().__init__(len(vectors), vectors.device, bias, valid)
        self.vectors = vectors.detach()
        self._longest = max([0.0, *(_longest(part, "vectors") for part in self.vectors.split(LONGEST))])
        self.chunked = ChunkedItems(self.vectors, self._scorer, self.items, self.bias, self.valid)
        self.backend = self.chunked

    def _queries(self, queries: Tensor) -> tuple[Tensor, float]:
        if queries.dim() != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"states have shape {tuple(queries.shape)}; they must be [B, {self.vectors.shape[1]}]")
        queries = queries.detach().to(self.device, self.vectors.dtype)
        return queries, _longest(queries, "states") * self._longest

    def _scorer(self, queries: Tensor) -> Scorer:
        return lambda start, stop: (queries @ self.vectors[start:stop].T).float()


def _by_level(codes: Tensor, size: int) -> Tensor:
    """``[K, N]`` in the smallest type that holds them; a missing code is the entry after the last."""
    width = width_of(codes, size)
    kept = torch.uint8 if width <= 1 << 8 else torch.int16 if width <= 1 << 15 else torch.int32
    return torch.stack([torch.where(level < 0, size, level.int()).to(kept) for level in codes.T])


def _longest(vectors: Tensor, name: str) -> float:
    """Length of the longest vector.

    Raises:
        ValueError: one is not finite.
    """
    if not vectors.numel():
        return 0.0
    longest = float(torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).max())
    if not longest < torch.inf:
        raise ValueError(f"{name} hold NaN or infinite numbers")
    return longest
