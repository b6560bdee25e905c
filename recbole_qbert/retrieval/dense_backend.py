"""Torch backend for vectors: a matrix product finds the few items that may matter, and these are scored exactly.

A library's product is rounded otherwise for every shape, so equal vectors may get different scores, and a user's result
would depend on the batch. Scores are therefore those of ``scoring.row_dots``; the product only says which items need one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_qbert.retrieval.torch_backend import Changes, ChunkedItems, Scorer, chunks, row_keys, running_top_k, unpack_keys
from recbole_qbert.sequence.scoring import LANES, row_dots

SPARE = 16  # candidates beyond k: more than that have scores within the error of the k-th only if vectors repeat
MAX_NUMBERS = 1 << 24  # of vectors that are gathered at a time: 64 MB
# Relative rounding of a product's operands, by torch.get_float32_matmul_precision(): none, to TF32, to bfloat16.
OPERAND_ERROR = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}
UNIT = 2.0**-24  # relative rounding of one operation in float32


class DenseItems(ChunkedItems):
    """Rank a catalog of vectors on any device.

    Args:
        vectors: ``[N, D]`` float32.
        bias: ``[N]`` float32 added to the scores, or None.
        valid: ``[N]`` bool, items that can be recommended; all when None.
        max_norm: norm of the longest vector.
    """

    def __init__(self, vectors: Tensor, bias: Tensor | None, valid: Tensor | None, max_norm: float) -> None:
        super().__init__(vectors, self._product, len(vectors), bias, valid)
        self.vectors, self.max_norm = vectors, max_norm

    def _product(self, queries: Tensor) -> Scorer:
        def score(start: int, stop: int) -> Tensor:
            with torch.autocast(queries.device.type, enabled=False):
                return queries @ self.vectors[start:stop].T

        return score

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """Find the best items; torch has its own setting for threads.

        Args:
            queries, k, changes, threads: as for ``Backend.top_k``.
        """
        del threads
        count = min(k + SPARE, self.items)
        rough, rows = running_top_k(self._changed(queries, changes), len(queries), self.items, count, queries.device)
        # An item among the k best has at least the k-th rough score less the error, and so a rough score of at least that
        # less the error once more.
        limit = rough[:, k - 1 : k] - 2 * self._error(queries, changes)
        last = rough[:, -1:]
        complete = ((last < limit) | (last == -torch.inf))[:, 0] | (count == self.items)
        scores, best = self._best(queries, rows, k, changes)
        for user in (~complete).nonzero()[:, 0].tolist():
            one = slice(user, user + 1)
            own = Changes(changes.items[one], changes.amounts[one], changes.allowed)
            score = self._changed(queries[one], own)
            spans = chunks(1, self.items, queries.device)
            found = [(score(*span)[0] >= limit[user]).nonzero()[:, 0] + span[0] for span in spans]
            scores[one], best[one] = self._best(queries[one], torch.cat(found)[None], k, own)
        return scores, best

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """Rank targets; torch has its own setting for threads.

        Args:
            queries, target, changes, threads: as for ``Backend.rank``.
        """
        del threads
        user = torch.arange(len(target), device=target.device)
        own = self._exact(queries, user, target, changes)
        error, score = self._error(queries, changes), self._changed(queries, changes)
        low, high = own[:, None] - error, own[:, None] + error
        rank = torch.zeros_like(target)
        for start, stop in chunks(len(target), self.items, target.device):
            rough = score(start, stop)
            reached = rough >= low
            rank += reached.sum(1)
            user, row = (reached & (rough <= high)).nonzero(as_tuple=True)  # few: only these need exact scores
            lower = self._exact(queries, user, row + start, changes) < own[user]
            rank -= torch.bincount(user[lower], minlength=len(rank))
        return torch.where(own > -torch.inf, rank, self.items)

    def _error(self, queries: Tensor, changes: Changes) -> Tensor:
        """Bound the difference between rough and exact scores that are finite, ``[B, 1]`` float32.

        A sum of ``D`` products in any order is off by at most ``D u |q| |v|`` and terms of second order (Higham, Accuracy
        and Stability of Numerical Algorithms, 3.1); the exact score adds up ``D / LANES`` and a few more. The bias and the
        amount are added to both, with one rounding of a sum each.
        """
        width = queries.shape[1]
        norm = torch.linalg.vector_norm(queries, dim=1, keepdim=True, dtype=torch.float64) * self.max_norm
        largest = norm
        for added in (changes.amounts, None if self.bias is None else self.bias[None]):
            if added is not None and added.shape[1]:
                largest = largest + added.masked_fill(added == -torch.inf, 0.0).abs().amax(1, keepdim=True)
        operands = OPERAND_ERROR[torch.get_float32_matmul_precision()]
        error = norm * (operands + (width + width / LANES + 8) * UNIT) + largest * (4 * UNIT)
        return (error * 1.001).float() + width * torch.finfo(torch.float32).tiny

    def _exact(self, queries: Tensor, user: Tensor, row: Tensor, changes: Changes) -> Tensor:
        """Score pairs of users and items exactly: ``user [P]`` and ``row [P]`` to ``[P]`` float32."""
        step = max(1, MAX_NUMBERS // max(1, queries.shape[1]))
        pairs = zip(user.split(step), row.split(step), strict=True)
        parts = [row_dots(queries[users], self.vectors[rows]) for users, rows in pairs]
        scores = torch.cat(parts) if parts else queries.new_empty(0)
        if self.bias is not None:
            scores = scores + self.bias[row]
        if changes.items.numel():  # in the order of users and of their items, so one search finds all pairs
            users = torch.arange(len(queries), device=row.device)[:, None]
            keys = (changes.items + users * (self.items + 1)).flatten()
            wanted = row + user * (self.items + 1)
            at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            is_changed = keys[at] == wanted
            scores = torch.where(is_changed, scores + changes.amounts.flatten()[at], scores)
        for allowed in (self.valid, None if changes.allowed is None else changes.mask(self.items)):
            scores = scores if allowed is None else scores.masked_fill(~allowed[row], -torch.inf)
        return scores

    def _best(self, queries: Tensor, rows: Tensor, k: int, changes: Changes) -> tuple[Tensor, Tensor]:
        """Find the ``k`` best of ``rows [B, C]``, each row once, -1 where there is none; ``k <= C``."""
        user = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
        scores = self._exact(queries, user.flatten(), rows.clamp(min=0).flatten(), changes).view(rows.shape)
        scores = scores.masked_fill(rows < 0, -torch.inf)
        return unpack_keys(row_keys(scores, rows.clamp(min=0)).topk(k, 1).values)
