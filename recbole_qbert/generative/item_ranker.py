"""Ranks and best items of a catalog under one language of IDs.

An item's score is ``log p(ID | source)``, the sum over its tokens. There is one definition and three ways to it:

* ``exact`` scores every item;
* ``cutoff`` finds what is at or above a score, so that ranks up to a cut-off and the best items are exact;
* ``beam`` is what the published systems do: only what a beam search finds has a rank.

Items that share an ID share its score; ties count against the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_qbert.generative.decoding import Sources
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.search import (
    MOST_PREFIXES,
    Found,
    at_least,
    best,
    everything,
    top_places,
    walk,
)
from recbole_qbert.generative.t5 import T5, Encoded, shift
from recbole_qbert.generative.trie import Trie

WAYS = ("cutoff", "exact", "beam")
#: Scores of one item differ by less than this between computations in batches of other shapes.
TOLERANCE = 1e-4


class ItemRanker:
    """Score, rank and find items.

    Args:
        network: the network, in evaluation mode.
        ids: ``[N, K]`` int64 tokens of each item; -1 behind the end of an ID; rows of -1 have none.
        way: one of ``WAYS``.
        beams: width of a beam search.
        trie: the trie of ``ids``, if the caller has it.

    Raises:
        ValueError: ``way`` is none.
    """

    def __init__(self, network: T5, ids: Tensor, way: str = "cutoff", beams: int = 20, trie: Trie | None = None) -> None:
        if way not in WAYS:
            raise ValueError(f"ranking is {way!r}; it must be one of {', '.join(WAYS)}")
        self.network, self.ids, self.way, self.beams = network, ids, way, beams
        self.trie = (Trie.of(ids.cpu().numpy()) if trie is None else trie).to(ids.device)

    # ------------------------------------------------------------------------------------------------------ all items
    @torch.no_grad()
    def scores(self, source: PackedTokens) -> Tensor:
        """Score all items, ``[B, N]`` float in the order of the batch; -inf for an item without an ID."""
        sources = self._encode(source)
        scores = sources.mask.new_full((len(sources), len(self.ids)), -torch.inf)
        users = torch.arange(len(sources), device=scores.device)
        for part in users.split(max(1, MOST_PREFIXES // self.trie.widest)):
            user, item, score = walk(self.network, self.trie, sources, everything(), part).items(self.trie)
            scores[user, item] = score
        return source.unsorted(scores)

    @torch.no_grad()
    def item_scores(self, source: PackedTokens, items: Tensor) -> Tensor:
        """Score one item a row, ``[B]``; equal to that of :meth:`scores` up to rounding."""
        encoded = self.network.encode(source)
        return source.unsorted(self._forced(encoded, items[source.order]))

    # ---------------------------------------------------------------------------------------------------------- ranks
    @torch.no_grad()
    def rank(self, source: PackedTokens, target: Tensor, most: int, exclude: Tensor | None = None) -> Tensor:
        """Rank each target among all items, counting from 1, ties against the model.

        Args:
            source: the sources.
            target: ``[B]`` int64 items.
            most: largest rank that must be exact.
            exclude: ``[B, X]`` int64 items that are ranked behind all others; padded with -1.

        Returns:
            ``[B]`` int64. The way ``cutoff`` returns ``most + 1`` for every larger rank; ``beam`` returns ``N`` for a target
            that it has not found.

        Raises:
            ValueError: the beam is narrower than ``most``.
        """
        if self.way == "exact":
            return self._rank_all(self.scores(source), target, exclude)
        if self.way == "beam" and self.beams < most:
            raise ValueError(f"beams is {self.beams}, but ranks up to {most} are wanted; set beams to {most} or more")
        target, exclude = target[source.order], None if exclude is None else exclude[source.order]
        if self.way == "beam":
            ranks = self._rank_found(walk(self.network, self.trie, self._encode(source), best(self.beams)), target, exclude)
            return source.unsorted(ranks.masked_fill(ranks == 0, len(self.ids)))
        return source.unsorted(self._rank_up_to(source, target, most, exclude))

    def _rank_up_to(self, source: PackedTokens, target: Tensor, most: int, exclude: Tensor | None) -> Tensor:
        """Rank exactly up to ``most``, in packed order."""
        encoded = self.network.encode(source)
        floor = self._forced(encoded, target) - TOLERANCE
        sources = Sources.of(self.network, encoded)
        ranks = target.new_full((len(target),), most + 1)
        open_ = (floor > -torch.inf) & ~_contains(exclude, target)
        # A beam search finds enough better items for most targets beyond the cut-off; their scores are exact.
        users = open_.nonzero()[:, 0]
        user, item, score = walk(self.network, self.trie, sources, best(most + 1), users).items(self.trie)
        better = (score > floor[user] + 2 * TOLERANCE) & (item != target[user]) & ~_contains_at(exclude, user, item)
        enough = torch.zeros_like(ranks).index_add_(0, user[better], torch.ones_like(user[better])) >= most
        users = (open_ & ~enough).nonzero()[:, 0]
        found = walk(self.network, self.trie, sources, at_least(floor), users)
        exact = self._rank_found(found, target, exclude)[users]
        ranks[users] = torch.where(exact == 0, most + 1, exact).clamp(max=most + 1)
        return ranks

    def _rank_found(self, found: Found, target: Tensor, exclude: Tensor | None) -> Tensor:
        """Rank targets among the items of found IDs, ``[B]``; 0 for a target that is not among them, or is excluded."""
        user, item, score = found.items(self.trie)
        own = score.new_full((len(target),), torch.inf)
        hit = item == target[user]
        own[user[hit]] = score[hit]
        counts = (score >= own[user]) & ~hit & ~_contains_at(exclude, user, item)
        ranks = torch.zeros_like(target).index_add_(0, user[counts], torch.ones_like(user[counts])) + 1
        return ranks.masked_fill((own == torch.inf) | _contains(exclude, target), 0)

    def _rank_all(self, scores: Tensor, target: Tensor, exclude: Tensor | None) -> Tensor:
        own = scores.gather(1, target[:, None])
        ahead = scores >= own
        ahead[torch.arange(len(target)), target] = False
        if exclude is not None:
            ahead &= ~_scatter(ahead, exclude)
        ranks = ahead.sum(1) + 1
        return ranks.masked_fill((own[:, 0] == -torch.inf) | _contains(exclude, target), len(self.ids))

    # ----------------------------------------------------------------------------------------------------- best items
    @torch.no_grad()
    def top_k(self, source: PackedTokens, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the ``k`` best items, best first; of equal scores the item with the lower node first.

        With the way ``beam`` they are those that a beam search finds.

        Args:
            source: the sources.
            k: how many.
            exclude: ``[B, X]`` int64 items that are left out; padded with -1.

        Returns:
            ``(scores [B, k] float, items [B, k] int64)``; -inf and -1 where there are fewer.
        """
        sources = self._encode(source)
        exclude = None if exclude is None else exclude[source.order]
        if self.way == "exact":
            found = walk(self.network, self.trie, sources, everything())
            return _unsorted(source, self._best_of(found, len(sources), k, exclude))
        extra = 0 if exclude is None else exclude.shape[1]
        width = self.beams if self.way == "beam" else k + extra
        found = walk(self.network, self.trie, sources, best(width))
        scores, items = self._best_of(found, len(sources), k, exclude)
        if self.way == "cutoff":
            found = walk(self.network, self.trie, sources, at_least(scores[:, -1] - TOLERANCE))
            scores, items = self._best_of(found, len(sources), k, exclude)
        return _unsorted(source, (scores, items))

    def _best_of(self, found: Found, count: int, k: int, exclude: Tensor | None) -> tuple[Tensor, Tensor]:
        user, item, score = found.items(self.trie)
        allowed = ~_contains_at(exclude, user, item)
        user, item, score = user[allowed], item[allowed], score[allowed]
        places = top_places(user, score, count, k)
        missing = places < 0
        if not len(item):
            return score.new_full(places.shape, -torch.inf), places
        places = places.clamp(min=0)
        return score[places].masked_fill(missing, -torch.inf), item[places].masked_fill(missing, -1)

    # ---------------------------------------------------------------------------------------------------------- parts
    def _encode(self, source: PackedTokens) -> Sources:
        return Sources.of(self.network, self.network.encode(source))

    def _forced(self, encoded: Encoded, items: Tensor) -> Tensor:
        """Score one item a row by forcing its tokens, in packed order; -inf for an item without an ID."""
        ids = self.ids[items]
        tokens = ids.clamp(min=0)
        logits = self.network.logits(self.network.decode(shift(tokens), encoded))
        own = logits.gather(2, tokens[:, :, None])[:, :, 0] - logits.logsumexp(2)
        return own.masked_fill(ids < 0, 0.0).sum(1).masked_fill(ids[:, 0] < 0, -torch.inf)


def _contains(exclude: Tensor | None, item: Tensor) -> Tensor:
    """Tell for each row whether its item, ``[B]``, is excluded."""
    if exclude is None:
        return torch.zeros_like(item, dtype=torch.bool)
    return (exclude == item[:, None]).any(1)


def _contains_at(exclude: Tensor | None, user: Tensor, item: Tensor) -> Tensor:
    """Tell whether items are excluded for their users, both ``[E]``."""
    if exclude is None or not exclude.shape[1]:
        return torch.zeros_like(item, dtype=torch.bool)
    result = torch.zeros_like(item, dtype=torch.bool)
    for column in exclude.T:  # [E, X] at once would take much memory
        result |= column[user] == item
    return result


def _scatter(like: Tensor, exclude: Tensor) -> Tensor:
    """Mark excluded items, ``[B, N]`` bool."""
    marked = torch.zeros(like.shape[0], like.shape[1] + 1, dtype=torch.bool, device=like.device)
    return marked.scatter_(1, torch.where(exclude < 0, like.shape[1], exclude), True)[:, :-1]


def _unsorted(source: PackedTokens, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return source.unsorted(pair[0]), source.unsorted(pair[1])
