"""A prior over the next item from co-occurrence in training histories, to be added to the scores of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


# Networks of items alone choose 10 on Instruments; 15, 25, 40 and 100 were all worse there (docs/results.md).
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
EPSILONS = (1e-4, 1e-3, 1e-2)
SHRINKS = (0.0, 10.0, 30.0)
DECAYS = (1.0, 0.8, 0.6)
TOP = 10
Batch = tuple[Callable[[], Tensor], Tensor, Tensor, Tensor]


@torch.no_grad()
def fit_prior(prior: CooccurrencePrior, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Fit a prior on the given (validation) batches by NDCG@10: shrink and decay for the prior alone, then its weight and
    epsilon beside the model. One after the other, for all together are 324 points.

    Args:
        prior: changed in place.
        batches: gives, each time it is called, ``(scores, sequences [B, L], lengths [B], target [B])``; ``scores()``, asked
            for once, are those without the prior, ``[B, N]``.

    Returns:
        ``shrink``, ``decay``, ``weight``, ``epsilon``, ``ndcg@10`` with it and ``ndcg@10_without``.
    """
    points = [(shrink, decay) for shrink in SHRINKS for decay in DECAYS]
    alone = torch.zeros(len(points))
    for _, sequences, lengths, target in batches():
        alone += _gains_alone(prior, prior.neighbor_pairs(sequences, lengths), points, target)
    shrink, decay = points[int(alone.argmax())]
    prior.shrink.fill_(shrink)
    prior.decay.fill_(decay)
    gain, users = torch.zeros(len(EPSILONS), len(WEIGHTS)), 0
    for scores, sequences, lengths, target in batches():
        gain += _gains(prior, prior.neighbor_pairs(sequences, lengths), scores(), target)
        users += len(target)
    row, column = divmod(int(gain.argmax()), len(WEIGHTS))
    prior.weight.fill_(WEIGHTS[column])
    prior.epsilon.fill_(EPSILONS[row])
    return {
        "shrink": shrink,
        "decay": decay,
        "weight": WEIGHTS[column],
        "epsilon": EPSILONS[row],
        "ndcg@10": float(gain[row, column]) / max(users, 1),
        "ndcg@10_without": float(gain[0, 0]) / max(users, 1),
    }


def _gains_alone(
    prior: CooccurrencePrior, pairs: NeighborPairs, points: Sequence[tuple[float, float]], target: Tensor
) -> Tensor:
    """NDCG@10, summed over a batch, of ranking by the shares alone: one of each ``(shrink, decay)``."""
    found = []
    for shrink, decay in points:
        prior.shrink.fill_(shrink)
        prior.decay.fill_(decay)
        share = prior.shares(pairs, len(target))
        wanted = _of_targets(pairs, share, target)
        rank = _count(pairs.row, ~(share < wanted[pairs.row]), len(target))
        found.append(_gain(torch.where(wanted > 0, rank, prior.items)))
    return torch.stack(found)


def _gains(prior: CooccurrencePrior, pairs: NeighborPairs, scores: Tensor, target: Tensor) -> Tensor:
    """NDCG@10, summed over a batch, of scores and prior together: ``[epsilons, weights]``; ``scores`` are ``[B, N]``."""
    share, own = prior.shares(pairs, len(target)), scores.gather(1, target[:, None])[:, 0]
    own_share = _of_targets(pairs, share, target)
    # Items without evidence all get the same: eleven of them say whether the target is among the first ten.
    others = scores.index_put((pairs.row, pairs.item), scores.new_tensor(-torch.inf))
    others = others.topk(min(TOP + 1, others.shape[1])).values
    # Of those with evidence, only who is ahead of the target in one of score and share and behind in the other depends on
    # the weight, and only in rows where not more than ten are ahead in both (the target is, too).
    score = scores[pairs.row, pairs.item]
    above, stronger = ~(score < own[pairs.row]), ~(share < own_share[pairs.row])
    always = _count(pairs.row, above & stronger, len(target))
    open_ = (above ^ stronger) & (always <= TOP)[pairs.row]
    row, score, share = pairs.row[open_], score[open_], share[open_]
    gain = torch.zeros(len(EPSILONS), len(WEIGHTS))
    for number, epsilon in enumerate(EPSILONS):
        evidence, own_evidence, floor = (torch.log(part + epsilon) for part in (share, own_share, torch.zeros_like(own)))
        for column, weight in enumerate(WEIGHTS):
            limit = own + weight * own_evidence
            better = ~(others + (weight * floor)[:, None] < limit[:, None])
            rank = always + better.sum(1) + _count(row, ~(score + weight * evidence < limit[row]), len(target))
            # A target that may not be ranked (at -inf) is behind all.
            gain[number, column] = _gain(torch.where(limit == -torch.inf, scores.shape[1], rank))
    return gain


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


def _of_targets(pairs: NeighborPairs, share: Tensor, target: Tensor) -> Tensor:
    """Each row's share of its target, 0 where it has none; ``[B]``."""
    own = pairs.item == target[pairs.row]
    return share.new_zeros(len(target)).index_put_((pairs.row[own],), share[own])


def _count(row: Tensor, true: Tensor, users: int) -> Tensor:
    """How often it is true in each row; ``[B]``."""
    return torch.bincount(row[true], minlength=users)


def _gain(rank: Tensor) -> Tensor:
    """Summed NDCG@10 of a batch, on the CPU."""
    return torch.where(rank <= TOP, 1 / torch.log2(rank + 1.0), 0.0).sum().cpu()
