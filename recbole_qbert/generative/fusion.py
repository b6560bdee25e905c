"""Two languages in one ranking: the lists of text and image codes, joined as MQL4GRec does (Zhai et al. 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_qbert.generative.item_ranker import ItemRanker
from recbole_qbert.generative.packed_tokens import PackedTokens

BELOW = 100.0  # mean log-probabilities of tokens lie far above its negative


class FusedRanker:
    """Rank items by the joined lists of two languages.

    An item's value in a language is its mean log-probability a token, the end mark counted. Each language lists its best
    items. An item in both lists gets the mean of its values plus a bonus, an item in one list its value there. All other
    items rank behind the lists, by their value in the first language.

    The released code takes the lists of a beam search and ranks strings. Here the lists are exact (unless the rankers are
    beams), and items are ranked.

    Args:
        first: ranker of the first language, which all items have.
        second: ranker of the second language.
        bonus: added to the value of an item in both lists.
        length: items in a list.
    """

    def __init__(self, first: ItemRanker, second: ItemRanker, bonus: float = 1.0, length: int = 20) -> None:
        self.first, self.second, self.bonus, self.length = first, second, bonus, length

    def scores(self, first: PackedTokens, second: PackedTokens) -> Tensor:
        """Score all items, ``[B, N]``, from the sources in both languages; -inf for items without an ID."""
        all_first = self.first.scores(first) / self._tokens(self.first)
        lists = self._lists(first, second)
        fused = all_first - BELOW
        values, items = self.join(*lists)
        rows = torch.arange(len(items), device=items.device)[:, None].expand_as(items)
        there = items >= 0
        fused[rows[there], items[there]] = values[there]
        return fused

    def rank(
        self, first: PackedTokens, second: PackedTokens, target: Tensor, most: int, exclude: Tensor | None = None
    ) -> Tensor:
        """Rank each target among all items, from 1, ties against the model; exact up to ``most``, as of ``ItemRanker``."""
        values, items = self.join(*self._lists(first, second))
        listed = items >= 0
        if exclude is not None:
            listed &= ~torch.stack([(items == column[:, None]) for column in exclude.T]).any(0)
        is_target = listed & (items == target[:, None])
        own = torch.where(is_target, values, -torch.inf).amax(1)
        ahead = (listed & ~is_target & (values >= own[:, None])).sum(1)
        ranks = torch.where(is_target.any(1), ahead + 1, most + 1).clamp(max=most + 1)
        # A target outside of the lists has a rank of note only where less than `most` others are in them.
        rest = (~is_target.any(1) & (listed.sum(1) < most)).nonzero()[:, 0]
        if len(rest):
            ranks[rest] = self._rank_behind(first, items, listed, target, exclude, rest).clamp(max=most + 1)
        return ranks

    def join(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Join two lists.

        Args:
            first: ``(values [B, n], items [B, n])`` of the first language; -1 where there are fewer.
            second: the same of the second language.

        Returns:
            ``(values [B, 2 n], items [B, 2 n])``; an item in both lists stands once, and -1 where it would stand again.
        """
        same = (first[1][:, :, None] == second[1][:, None, :]) & (first[1] >= 0)[:, :, None]
        other = torch.where(same, second[0][:, None, :], -torch.inf).amax(2)
        joined = torch.where(same.any(2), (first[0] + other) / 2 + self.bonus, first[0])
        again = same.any(1)
        values = torch.cat([joined, second[0].masked_fill(again, -torch.inf)], 1)
        return values, torch.cat([first[1], second[1].masked_fill(again, -1)], 1)

    def _lists(self, first: PackedTokens, second: PackedTokens) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        lists = []
        for ranker, source in ((self.first, first), (self.second, second)):
            scores, items = ranker.top_k(source, self.length)
            lists.append((scores / self._tokens(ranker), items))
        return lists[0], lists[1]

    def _rank_behind(
        self, first: PackedTokens, items: Tensor, listed: Tensor, target: Tensor, exclude: Tensor | None, rows: Tensor
    ) -> Tensor:
        """Rank targets behind the lists, for some rows of the batch."""
        scores = self.first.scores(first)[rows]
        taken = items[rows] if exclude is None else torch.cat([items[rows], exclude[rows]], 1)
        own = scores.gather(1, target[rows][:, None])
        spare = scores.new_full((len(rows), 1), -torch.inf)
        others = torch.cat([scores, spare], 1).scatter_(1, torch.where(taken < 0, scores.shape[1], taken), -torch.inf)
        others.scatter_(1, target[rows][:, None], -torch.inf)
        ahead = (others[:, :-1] >= own).sum(1) + listed[rows].sum(1)
        lost = own[:, 0] == -torch.inf
        if exclude is not None:
            lost |= (exclude[rows] == target[rows][:, None]).any(1)
        return torch.where(lost, scores.shape[1], ahead + 1)

    @staticmethod
    def _tokens(ranker: ItemRanker) -> int:
        """Return the number of tokens of an ID, the end mark counted."""
        return ranker.ids.shape[1] + 1
