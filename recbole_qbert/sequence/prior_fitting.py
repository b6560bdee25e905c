"""The fit of the co-occurrence prior to a model, on validation histories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior, NeighborPairs

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
