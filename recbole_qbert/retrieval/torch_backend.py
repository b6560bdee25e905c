"""Top-k items and ranks over a catalog that is scored one chunk at a time: memory O(B x chunk), on a CPU or a GPU.

The order is total: the higher score first, among equal scores the lower item row. An item at -inf is never recommended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Scorer = Callable[[int, int], Tensor]  # item rows [start, stop) -> their scores, a new tensor [B, stop - start] float32

MAX_CHUNK = 1 << 16  # items of a chunk on a CPU: more do not fit its cache
MIN_CHUNK = 1 << 10  # for fewer items, the overhead of a chunk dominates
MAX_SCORES_CPU = 1 << 22  # scores of a chunk on a CPU: 16 MB
MAX_SCORES_GPU = 1 << 26  # scores of a chunk on a GPU, which is fastest with few and large steps: 256 MB

MAX_ROW = (1 << 32) - 1  # rows fit 32 bits
MINUS_INF_KEY = -2139095041  # -inf in the order of row_keys


@dataclass(frozen=True)
class Changes:
    """Changes of the index's scores for the users of one call.

    Attributes:
        items: ``[B, H]`` int64 item rows, ascending, each once in a row, unused entries (-1) first.
        amounts: ``[B, H]`` float32, added to the scores of these items; -inf excludes the item.
        allowed: items to choose from: ``[N]`` bool, or ``[A]`` int64 ascending rows; all when None.
    """

    items: Tensor
    amounts: Tensor
    allowed: Tensor | None

    def mask(self, items: int) -> Tensor:
        """Return ``allowed`` as ``[N]`` bool for ``N = items``."""
        if self.allowed is None:
            return torch.ones(items, dtype=torch.bool, device=self.items.device)
        if self.allowed.dtype == torch.bool:
            return self.allowed
        return torch.zeros(items, dtype=torch.bool, device=self.allowed.device).index_fill_(0, self.allowed, True)


class ChunkedItems:
    """A catalog whose scores a function computes a chunk at a time.

    Args:
        stored: ``[..., N]`` or ``[N, ...]``, the tensor that the scorer reads.
        scorer: turns the queries of a batch, ``[B, ...]``, into the function that scores item rows.
        items: ``N``.
        bias: ``[N]`` float32 added to the scores, or None.
        valid: ``[N]`` bool, items that can be recommended, or None.
    """

    def __init__(
        self, stored: Tensor, scorer: Callable[[Tensor], Scorer], items: int, bias: Tensor | None, valid: Tensor | None
    ) -> None:
        self.scorer, self.items, self.bias, self.valid = scorer, items, bias, valid
        self.nbytes = sum(part.nbytes for part in (stored, bias, valid) if part is not None)

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """Find the best items; torch has its own setting for threads.

        Args:
            queries, k, changes, threads: as for ``Backend.top_k``.
        """
        del threads
        return running_top_k(self._changed(queries, changes), len(queries), self.items, k, queries.device)

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """Rank targets; torch has its own setting for threads.

        Args:
            queries, target, changes, threads: as for ``Backend.rank``.
        """
        del threads
        return running_rank(self._changed(queries, changes), self.items, target)

    def log_sum_exp(self, queries: Tensor, changes: Changes) -> Tensor:
        """Compute ``log(sum_i exp(score_i))`` of each user, ``[B]`` float32."""
        return running_log_sum_exp(self._changed(queries, changes), len(queries), self.items, queries.device)

    def _changed(self, queries: Tensor, changes: Changes) -> Scorer:
        plain, allowed = self.scorer(queries), self.valid
        if changes.allowed is not None:
            allowed = changes.mask(self.items) if allowed is None else changes.mask(self.items) & allowed

        def score(start: int, stop: int) -> Tensor:
            scores = plain(start, stop)
            if self.bias is not None:
                scores += self.bias[start:stop]
            user, number = ((changes.items >= start) & (changes.items < stop)).nonzero(as_tuple=True)
            if len(user):
                scores[user, changes.items[user, number] - start] += changes.amounts[user, number]
            return scores if allowed is None else scores.masked_fill_(~allowed[start:stop], -torch.inf)

        return score


def chunks(batch: int, items: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Yield the item rows ``[start, stop)`` of each chunk, in ascending order.

    Args:
        batch: ``B``.
        items: ``N``.
        device: device of the scores, on which the size of a chunk depends.
    """
    max_scores = MAX_SCORES_CPU if device.type == "cpu" else MAX_SCORES_GPU
    step = max(MIN_CHUNK, min(MAX_CHUNK if device.type == "cpu" else items, max_scores // max(batch, 1)))
    for start in range(0, items, step):
        yield start, min(start + step, items)


def running_top_k(score: Scorer, batch: int, items: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Find the ``k`` best items chunk by chunk.

    Args:
        score: scores item rows ``[start, stop)``, ``[B, stop - start]``.
        batch: ``B``.
        items: ``N``.
        k: number of items, at most ``N``.
        device: device of the scores.

    Returns:
        ``(scores [B, k] float32, rows [B, k] int64)``, best first; -inf and -1 where no item remains.
    """
    best = torch.full((batch, k), MINUS_INF_KEY << 32, device=device)
    for start, stop in chunks(batch, items, device) if k else ():
        part, rows = score(start, stop), torch.arange(start, stop, device=device)
        if start:
            # Rows ascend, so a later item whose score equals the k-th best comes behind it: only better ones matter.
            better = (part > unpack_keys(best[:, -1:])[0]).any(0).nonzero()[:, 0]
            if not len(better):
                continue
            part, rows = part[:, better], rows[better]
        best = torch.cat([best, _best_keys(part, rows, k)], 1).topk(k, 1).values
    return unpack_keys(best)


def running_rank(score: Scorer, items: int, target: Tensor) -> Tensor:
    """Rank each user's target, counting from 1, ties against the model; the same as ``scoring.rank_of`` of all scores.

    The target's score is read from the same chunk as those of other items: a separate product may be rounded otherwise.

    Args:
        score: scores item rows ``[start, stop)``, ``[B, stop - start]``.
        items: ``N``.
        target: ``[B]`` int64 item rows.

    Returns:
        ``[B]`` int64.
    """
    target_score = torch.empty(len(target), 1, device=target.device)
    parts = list(chunks(len(target), items, target.device))
    if len(parts) == 1:
        scores = score(0, items)
        return (~(scores < scores.gather(1, target[:, None]))).sum(1)
    for start, stop in parts:
        user = ((target >= start) & (target < stop)).nonzero()[:, 0]
        if len(user):
            target_score[user, 0] = score(start, stop)[user, target[user] - start]
    rank = torch.zeros_like(target)
    for start, stop in parts:
        rank += (~(score(start, stop) < target_score)).sum(1)
    return rank


def running_log_sum_exp(score: Scorer, batch: int, items: int, device: torch.device) -> Tensor:
    """Compute ``log(sum_i exp(score_i))`` over all items.

    Args:
        score, batch, items, device: as for :func:`running_top_k`.

    Returns:
        ``[B]`` float32; -inf where no item can be recommended.
    """
    total = torch.full((batch,), -torch.inf, device=device)
    for start, stop in chunks(batch, items, device):
        total = torch.logaddexp(total, score(start, stop).logsumexp(1))
    return total


def _best_keys(scores: Tensor, rows: Tensor, k: int) -> Tensor:
    """Keys of each user's ``k`` best of ``scores [B, n]``, in any order; all keys if ``n <= k``.

    ``topk`` of the scores is fast, but arbitrary among those that equal the k-th; for users with such ties, ``topk`` of the
    keys decides.
    """
    if scores.shape[1] <= k:
        return row_keys(scores, rows)
    values, columns = scores.topk(k + 1, 1)
    keys = row_keys(values[:, :k], rows[columns[:, :k]])
    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
    if bool(tied.any()):
        keys[tied] = row_keys(scores[tied], rows).topk(k, 1).values
    return keys


def row_keys(scores: Tensor, rows: Tensor) -> Tensor:
    """Combine score and row into one int64, larger for the item that comes first; no two keys are equal."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    return (rising.long() << 32) + (MAX_ROW - rows)


def best_of_parts(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the best of the best items of several parts of a catalog.

    Args:
        scores: ``[parts, B, k]`` float32; -inf where a part has fewer items.
        rows: ``[parts, B, k]`` int64, a row in one part at most; -1 where there is no item.

    Returns:
        ``(scores [B, k], rows [B, k])``, best first.
    """
    if len(scores) == 1:
        return scores[0], rows[0]
    keys = torch.cat(list(row_keys(scores, rows.clamp(min=0))), 1)
    return unpack_keys(keys.topk(scores.shape[2], 1).values)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    rising = (keys >> 32).int()
    scores = (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores, torch.where(scores > -torch.inf, MAX_ROW - (keys & MAX_ROW), -1)
