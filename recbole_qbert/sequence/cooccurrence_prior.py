"""A prior over the next item from co-occurrence in training histories, to be added to the scores of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recbole_qbert.data.cooccurrence import cosine, counts


@dataclass(frozen=True)
class NeighborPairs:
    """What evidence a batch of histories has, all but the weights: neither shrink nor decay is in it.

    Attributes:
        row: of the batch, ``[E]``.
        item: that has evidence there, ``[E]``; by row and item, no pair twice.
        pair: of items, ``[P]`` numbers of ``CooccurrencePrior.pair``.
        age: of the pair's item of the history, ``[P]``; 0 is the newest.
        target: which of the ``E`` the pair adds to, ``[P]``.
    """

    row: Tensor
    item: Tensor
    pair: Tensor
    age: Tensor
    target: Tensor


class CooccurrencePrior(nn.Module):
    """A prior over the next item from co-occurrence with the history (item-kNN), to be added to a model's scores.

    Evidence for item ``i``: ``e_i = sum_j decay^age_j * c_ij / (sqrt(c_ii c_jj) + shrink)`` over the items ``j`` of the
    history, where ``c_ij`` training histories hold both and the newest item's age is 0; none for items of the history.
    ``q`` is an item's share of all evidence, and the prior's score ``weight * log(q + epsilon)``. The paper is silent; this
    alone ranks better than most networks on small Amazon sets, so it is offered, and always reported beside the figures
    without it.

    Args:
        sequences: training histories as item rows.
        items: ``N``.
        shrink: takes trust from pairs of rare items, at least 0.
        decay: weight of an item of the history against the next newer one, in (0, 1].

    Raises:
        ValueError: ``shrink`` or ``decay`` is outside its range.
    """

    pair: Tensor
    value: Tensor
    size: Tensor
    weight: Tensor
    epsilon: Tensor
    shrink: Tensor
    decay: Tensor

    def __init__(self, sequences: Sequence[np.ndarray], items: int, shrink: float = 0.0, decay: float = 1.0) -> None:
        super().__init__()
        if not shrink >= 0:
            raise ValueError(f"shrink is {shrink}; it is added to a count and must not be negative")
        if not 0 < decay <= 1:
            raise ValueError(f"decay is {decay}; it must be above 0 and at most 1")
        self.items = items
        count = counts(sequences, items)
        alone = count.diagonal()
        similar = cosine(count).tocoo()  # rows ascend
        # Rebuilt from the training data with the model, so not part of a checkpoint.
        pair = np.stack([similar.row, similar.col]).astype(np.int64)
        self.register_buffer("pair", torch.from_numpy(pair), persistent=False)
        self.register_buffer("value", torch.from_numpy(similar.data), persistent=False)
        size = np.sqrt(alone[similar.row] * alone[similar.col])
        self.register_buffer("size", torch.from_numpy(size), persistent=False)
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("epsilon", torch.tensor(1e-3))
        self.register_buffer("shrink", torch.tensor(float(shrink)))
        self.register_buffer("decay", torch.tensor(float(decay)))

    def evidence(self, sequences: Tensor, lengths: Tensor, with_history: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """``e`` where it is above 0, for all rows in one list.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned.
            lengths: ``[B]`` int64.
            with_history: give items of the history their evidence, too.

        Returns:
            ``(row, item, e)``, each ``[E]``, by row and item, no pair twice.
        """
        pairs = self.neighbor_pairs(sequences, lengths, with_history)
        return pairs.row, pairs.item, self._sums(pairs)

    def neighbor_pairs(self, sequences: Tensor, lengths: Tensor, with_history: bool = False) -> NeighborPairs:
        """Where ``evidence`` is above 0, and from which pairs; arguments of ``evidence``."""
        position = torch.arange(sequences.shape[1], device=sequences.device)
        real = position < lengths[:, None]
        row, place = real.nonzero(as_tuple=True)
        held, where = torch.unique(row * self.items + sequences[real], return_inverse=True)
        # An item twice in a history counts once, as the newer one.
        age = place.new_zeros(len(held)).scatter_reduce_(0, where, lengths[row] - 1 - place, "amin", include_self=False)
        row, item = held // self.items, held % self.items
        # The neighbours of all items of all histories, in one list.
        first = torch.searchsorted(self.pair[0], item)
        count = torch.searchsorted(self.pair[0], item, right=True) - first
        start = count.cumsum(0) - count
        pair = torch.arange(int(count.sum()), device=item.device) + (first - start).repeat_interleave(count)
        key = row.repeat_interleave(count) * self.items + self.pair[1][pair]
        key, target, used = _numbered(key, None if with_history else held, len(sequences) * self.items)
        pair, age = pair[used], age.repeat_interleave(count)[used]
        return NeighborPairs(key // self.items, key % self.items, pair, age, target)

    def _sums(self, pairs: NeighborPairs) -> Tensor:
        """``e`` of each pair of pairs, ``[E]``, with the shrink and decay of now."""
        value = self.value[pairs.pair] * (self.size[pairs.pair] / (self.size[pairs.pair] + self.shrink))
        return value.new_zeros(len(pairs.row)).index_add_(0, pairs.target, value * self.decay ** pairs.age.float())

    def shares(self, pairs: NeighborPairs, users: int) -> Tensor:
        """``q`` of each pair of pairs, ``[E]``, of histories of ``users`` rows."""
        found = self._sums(pairs)
        total = found.new_zeros(users).index_add_(0, pairs.row, found)
        return found / total.clamp(min=1e-12)[pairs.row]

    def share(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """``q``: each item's share of the evidence; ``[B, N]`` float32, rows sum to 1 or 0; arguments of ``evidence``."""
        pairs = self.neighbor_pairs(sequences, lengths)
        share = self.shares(pairs, len(sequences))
        dense = share.new_zeros(len(sequences), self.items)
        dense[pairs.row, pairs.item] = share
        return dense

    @property
    def base_logit(self) -> float:
        """What is added to the score of an item without evidence."""
        return float(self.weight * torch.log(self.epsilon))

    def sparse_logits(self, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is added above ``base_logit`` to the few items with evidence: ``forward`` without a ``[B, N]``.

        Returns:
            ``(items [B, H] int64, amounts [B, H] float32)``, -1 and 0 in unused places; no item twice in a row.
        """
        pairs = self.neighbor_pairs(sequences, lengths)
        row, share = pairs.row, self.shares(pairs, len(sequences))
        size = torch.bincount(row, minlength=len(sequences))
        column = torch.arange(len(row), device=row.device) - (size.cumsum(0) - size)[row]
        items = pairs.item.new_full((len(sequences), int(size.max()) if len(size) else 0), -1)
        amounts = share.new_zeros(items.shape)
        items[row, column] = pairs.item
        amounts[row, column] = self.weight * (torch.log(share + self.epsilon) - torch.log(self.epsilon))
        return items, amounts

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """What to add to log-probabilities, ``[B, N]``; zeros while the weight is 0."""
        return self.weight * torch.log(self.share(sequences, lengths) + self.epsilon)


def _numbered(key: Tensor, without: Tensor | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Different keys in their order, ``[E]``, and for each used one its number there; some are left out.

    Args:
        key: ``[P]`` int64, each in ``[0, size)``.
        without: keys that are left out.
        size: end of the range of keys.

    Returns:
        ``(keys [E], number [U], used [P] bool)``; ``used`` is true ``U`` times.
    """
    if size > 16 * len(key):  # marks for all possible keys would be more work than sorting those that are there
        found, number = key.unique(return_inverse=True)
        kept = torch.ones_like(found, dtype=torch.bool) if without is None else ~torch.isin(found, without)
        used = kept[number]
        return found[kept], (kept.cumsum(0) - 1)[number[used]], used
    mark = torch.zeros(size, dtype=torch.bool, device=key.device)
    mark[key] = True
    if without is not None:
        mark[without] = False
    used = mark[key]
    return mark.nonzero()[:, 0], (mark.cumsum(0) - 1)[key[used]], used
