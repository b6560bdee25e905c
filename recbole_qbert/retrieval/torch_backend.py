"""Best items and ranks over a catalog that is scored a chunk at a time: memory O(B x chunk), on a CPU or a GPU.

Order is total: the higher score first, among equal scores the lower item row. -inf means 'never an answer'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Scorer = Callable[[int, int], Tensor]  # item rows [start, stop) -> their scores, [B, stop - start] float32, to keep

LONGEST = 1 << 16  # items a chunk on a CPU: more leave its cache
SHORTEST = 1 << 10  # fewer are all overhead
SCORES = 1 << 22  # at a time on a CPU: 16 MB
SCORES_ELSEWHERE = 1 << 26  # at a time on a GPU, which wants few and large steps: 256 MB

LAST = (1 << 32) - 1  # rows fit 32 bits
LOWEST = -2139095041  # -inf in the order of _keys


@dataclass(frozen=True)
class Changes:
    """What differs from the scores of the index for the users of one call.

    Attributes:
        items: ``[B, H]`` int64 item rows, ascending, each once in a row, unused places (-1) first.
        amounts: ``[B, H]`` float32, added to the scores of these items; -inf takes the item out.
        allowed: items that may be answers: ``[N]`` bool, or ``[A]`` int64 ascending rows; None: all.
    """

    items: Tensor
    amounts: Tensor
    allowed: Tensor | None

    def mask(self, items: int) -> Tensor:
        """``allowed`` as ``[N]`` bool."""
        if self.allowed is None:
            return torch.ones(items, dtype=torch.bool, device=self.items.device)
        if self.allowed.dtype == torch.bool:
            return self.allowed
        return torch.zeros(items, dtype=torch.bool, device=self.allowed.device).index_fill_(0, self.allowed, True)


class ChunkedItems:
    """A catalog whose scores a function computes a chunk at a time.

    Args:
        kept: ``[..., N]`` or ``[N, ...]``, what the scorer reads.
        scorer: from the queries of a batch, ``[B, ...]``, to the function that scores item rows.
        items: ``N``.
        bias: ``[N]`` float32 added to the scores, or None.
        valid: ``[N]`` bool, items that can be answers, or None.
    """

    def __init__(
        self, kept: Tensor, scorer: Callable[[Tensor], Scorer], items: int, bias: Tensor | None, valid: Tensor | None
    ) -> None:
        self.scorer, self.items, self.bias, self.valid = scorer, items, bias, valid
        self.nbytes = sum(part.nbytes for part in (kept, bias, valid) if part is not None)

    def top_k(self, queries: Tensor, k: int, changes: Changes, threads: int) -> tuple[Tensor, Tensor]:
        """``(scores, rows)``, both ``[B, k]``; torch has its own setting for threads."""
        del threads
        return running_top_k(self._changed(queries, changes), len(queries), self.items, k, queries.device)

    def rank(self, queries: Tensor, target: Tensor, changes: Changes, threads: int) -> Tensor:
        """``[B]`` int64."""
        del threads
        return running_rank(self._changed(queries, changes), self.items, target)

    def log_sum_exp(self, queries: Tensor, changes: Changes) -> Tensor:
        """``[B]`` float32."""
        return running_log_sum_exp(self._changed(queries, changes), len(queries), self.items, queries.device)

    def _changed(self, queries: Tensor, changes: Changes) -> Scorer:
        plain, allowed = self.scorer(queries), self.valid
        if changes.allowed is not None:
            allowed = changes.mask(self.items) if allowed is None else changes.mask(self.items) & allowed

        def score(start: int, stop: int) -> Tensor:
            scores = plain(start, stop)
            if self.bias is not None:
                scores += self.bias[start:stop]
            user, place = ((changes.items >= start) & (changes.items < stop)).nonzero(as_tuple=True)
            if len(user):
                scores[user, changes.items[user, place] - start] += changes.amounts[user, place]
            return scores if allowed is None else scores.masked_fill_(~allowed[start:stop], -torch.inf)

        return score


def chunks(batch: int, items: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Item rows ``[start, stop)`` of each chunk, in ascending order."""
    at_once = SCORES if device.type == "cpu" else SCORES_ELSEWHERE
    step = max(SHORTEST, min(LONGEST if device.type == "cpu" else items, at_once // max(batch, 1)))
    for start in range(0, items, step):
        yield start, min(start + step, items)


def running_top_k(score: Scorer, batch: int, items: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The ``k`` best of ``items`` items, ``k <= items``.

    Returns:
        ``(scores [B, k] float32, rows [B, k] int64)``, best first; -inf and -1 in places that no item fills.
    """
    best = torch.full((batch, k), LOWEST << 32, device=device)
    for start, stop in chunks(batch, items, device) if k else ():
        part, rows = score(start, stop), torch.arange(start, stop, device=device)
        if start:
            # Rows ascend, so a later item with a score equal to the k-th best loses to it: strictly better ones only.
            better = (part > _unpack(best[:, -1:])[0]).any(0).nonzero()[:, 0]
            if not len(better):
                continue
            part, rows = part[:, better], rows[better]
        best = torch.cat([best, _best_keys(part, rows, k)], 1).topk(k, 1).values
    return _unpack(best)


def running_rank(score: Scorer, items: int, target: Tensor) -> Tensor:
    """Rank of each user's target, counted from 1, ties against the model; as ``ranking.rank_of`` of the whole matrix.

    The target's score is read from the same chunk as its rivals': computed apart, a dense product may round it otherwise.

    Args:
        score: scorer of ``[B, stop - start]``.
        items: ``N``.
        target: ``[B]`` int64 item rows.
    """
    reached = torch.empty(len(target), 1, device=target.device)
    parts = list(chunks(len(target), items, target.device))
    if len(parts) == 1:
        scores = score(0, items)
        return (~(scores < scores.gather(1, target[:, None]))).sum(1)
    for start, stop in parts:
        user = ((target >= start) & (target < stop)).nonzero()[:, 0]
        if len(user):
            reached[user, 0] = score(start, stop)[user, target[user] - start]
    rank = torch.zeros_like(target)
    for start, stop in parts:
        rank += (~(score(start, stop) < reached)).sum(1)
    return rank


def running_log_sum_exp(score: Scorer, batch: int, items: int, device: torch.device) -> Tensor:
    """``log(sum_i exp(score_i))`` over ``items`` items, ``[B]``; -inf where none can be an answer."""
    total = torch.full((batch,), -torch.inf, device=device)
    for start, stop in chunks(batch, items, device):
        total = torch.logaddexp(total, score(start, stop).logsumexp(1))
    return total


def _best_keys(scores: Tensor, rows: Tensor, k: int) -> Tensor:
    """Keys of each user's ``k`` best of ``scores [B, n]``, in any order; all keys where there are few.

    ``topk`` of the scores is quick, but takes whichever it likes of those that equal the k-th; where it had a choice, the
    keys decide.
    """
    if scores.shape[1] <= k:
        return _keys(scores, rows)
    values, places = scores.topk(k + 1, 1)
    keys = _keys(values[:, :k], rows[places[:, :k]])
    choice = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
    if bool(choice.any()):
        keys[choice] = _keys(scores[choice], rows).topk(k, 1).values
    return keys


def _keys(scores: Tensor, rows: Tensor) -> Tensor:
    """One int64 for score and row, larger for what comes first: no two items are equal, so ``topk`` has no choice."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    return (rising.long() << 32) + (LAST - rows)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    rising = (keys >> 32).int()
    scores = (rising ^ ((rising >> 31) & 0x7FFFFFFF)).view(torch.float32)
    return scores, torch.where(scores > -torch.inf, LAST - (keys & LAST), -1)
