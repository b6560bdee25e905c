"""The fit of the co-occurrence prior to a model, on validation histories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior, NeighborPairs
from recbole_qbert.sequence.kernels.evidence_ranks import ranks_by_evidence

# Models without semantic IDs choose weight 10 on Instruments; 15, 25, 40 and 100 were all worse there (docs/results.md).
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
EPSILONS = (1e-4, 1e-3, 1e-2)
SHRINKS = (0.0, 10.0, 30.0)
DECAYS = (1.0, 0.8, 0.6)
CONTENTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)
TOP = 10
Batch = tuple[Callable[[], Tensor], Tensor, Tensor, Tensor]


@torch.no_grad()
def fit_prior(prior: CooccurrencePrior, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
    """Fit a prior to a model on validation batches by NDCG@10.

    Shrink and decay are chosen for the prior alone, then, where it has content, shrink and the weight of content; at last
    weight and epsilon for prior and model together, with that content and with none. One after the other, because the full
    grid has 1,944 points. The paper is silent.

    Args:
        prior: changed in place.
        batches: yields, each time it is called, ``(scores, sequences [B, L], lengths [B], target [B])``. ``scores()``, which
            is called once a batch, returns the model's scores without the prior, ``[B, N]``.

    Returns:
        ``shrink``, ``decay``, ``content_weight``, ``weight``, ``epsilon``, ``ndcg@10`` with the prior and
        ``ndcg@10_without``.
    """
    evidence = [_best_alone(prior, batches, [Evidence(shrink, decay) for shrink in SHRINKS for decay in DECAYS])]
    if prior.likeness.any():
        decay = evidence[0].decay
        grid = [Evidence(shrink, decay, content) for shrink in SHRINKS for content in CONTENTS]
        best = _best_alone(prior, batches, grid)
        evidence += [best] if best.content_weight else []
    ndcg, users = torch.zeros(len(evidence), len(EPSILONS), len(WEIGHTS)), 0
    for scores, sequences, lengths, target in batches():
        of_model, pairs = scores(), prior.neighbor_pairs(sequences, lengths)
        no_evidence = _without_evidence(pairs, of_model)
        for number, choice in enumerate(evidence):
            choice.give_to(prior)
            ndcg[number] += _ndcg_with_scores(prior, pairs, of_model, no_evidence, target)
        users += len(target)
    number, row, column = (int(n) for n in torch.unravel_index(ndcg.argmax(), ndcg.shape))
    evidence[number].give_to(prior)
    prior.drop_unused_pairs()
    prior.weight.fill_(WEIGHTS[column])
    prior.epsilon.fill_(EPSILONS[row])
    return {
        **vars(evidence[number]),
        "weight": WEIGHTS[column],
        "epsilon": EPSILONS[row],
        "ndcg@10": float(ndcg[number, row, column]) / max(users, 1),
        "ndcg@10_without": float(ndcg[0, 0, 0]) / max(users, 1),
    }


@dataclass(frozen=True)
class Evidence:
    """A choice of what the evidence of a prior is made of."""

    shrink: float
    decay: float
    content_weight: float = 0.0

    def give_to(self, prior: CooccurrencePrior) -> None:
        """Set the choice in a prior."""
        for name, value in vars(self).items():
            getattr(prior, name).fill_(value)


def _best_alone(prior: CooccurrencePrior, batches: Callable[[], Iterable[Batch]], grid: Sequence[Evidence]) -> Evidence:
    """Return the choice with which the prior alone ranks best."""
    channels = _Channels(prior, grid)
    ndcg = torch.zeros(len(grid))
    for _, sequences, lengths, target in batches():
        ndcg += torch.stack([_ndcg(rank) for rank in channels.ranks(sequences, lengths, target)])
    return grid[int(ndcg.argmax())]


class _Channels:
    """The evidence of a grid of choices as sums of few channels, so that one pass over the pairs serves all choices.

    Args:
        prior: the pairs of items.
        grid: ``K`` choices.
    """

    def __init__(self, prior: CooccurrencePrior, grid: Sequence[Evidence]) -> None:
        shrinks, self.decays = sorted({one.shrink for one in grid}), sorted({one.decay for one in grid})
        values = [prior.shrunk(shrink) for shrink in shrinks] + [prior.likeness] * any(one.content_weight for one in grid)
        self.values = torch.stack(values, 1).cpu().numpy()
        self.first = torch.searchsorted(prior.pair[0].cpu(), torch.arange(prior.items + 1)).numpy()
        self.neighbor = prior.pair[1].cpu().numpy()
        mixture = np.zeros((len(grid), len(values), len(self.decays)), np.float32)
        for number, one in enumerate(grid):
            decay = self.decays.index(one.decay)
            mixture[number, -1, decay] = one.content_weight  # of the likeness, which is last, or 0
            mixture[number, shrinks.index(one.shrink), decay] = 1.0
        self.mixture = mixture.reshape(len(grid), -1)

    def ranks(self, sequences: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Return the rank of each target by evidence alone, ``[K, B]`` int64; the number of items without evidence."""
        powers = np.array(self.decays, np.float32)[:, None] ** np.arange(sequences.shape[1], dtype=np.float32)
        ranks = np.empty((len(self.mixture), len(target)), np.int64)
        asked = (one.cpu().numpy() for one in (sequences, lengths, target))
        ranks_by_evidence(self.first, self.neighbor, self.values, powers, self.mixture, *asked, ranks)
        return torch.from_numpy(ranks)


def _without_evidence(pairs: NeighborPairs, scores: Tensor) -> Tensor:
    """Return the best eleven of ``scores [B, N]`` of items without evidence, to which a prior adds the same.

    They tell if the target is in the top ten.
    """
    without = scores.index_put((pairs.row, pairs.item), scores.new_tensor(-torch.inf))
    return without.topk(min(TOP + 1, without.shape[1])).values


def _ndcg_with_scores(
    prior: CooccurrencePrior, pairs: NeighborPairs, scores: Tensor, no_evidence: Tensor, target: Tensor
) -> Tensor:
    """NDCG@10, summed over a batch, of ``scores [B, N]`` and prior together: ``[epsilons, weights]``."""
    share, target_score = prior.shares(pairs, len(target)), scores.gather(1, target[:, None])[:, 0]
    target_share = _target_shares(pairs, share, target)
    # Of the items with evidence, only those that are ahead of the target in one of score and share, but not in both, depend
    # on the weight, and they matter only in rows where at most ten are ahead in both (the target is one of these).
    score = scores[pairs.row, pairs.item]
    score_ahead, share_ahead = ~(score < target_score[pairs.row]), ~(share < target_share[pairs.row])
    always_ahead = _count_by_row(pairs.row, score_ahead & share_ahead, len(target))
    depends = (score_ahead ^ share_ahead) & (always_ahead <= TOP)[pairs.row]
    row, score, share = pairs.row[depends], score[depends], share[depends]
    ndcg = torch.zeros(len(EPSILONS), len(WEIGHTS))
    for number, epsilon in enumerate(EPSILONS):
        log_share, target_log_share = torch.log(share + epsilon), torch.log(target_share + epsilon)
        base_logit = torch.log(torch.zeros_like(target_score) + epsilon)
        for column, weight in enumerate(WEIGHTS):
            limit = target_score + weight * target_log_share
            ahead = ~(no_evidence + (weight * base_logit)[:, None] < limit[:, None])
            with_evidence = _count_by_row(row, ~(score + weight * log_share < limit[row]), len(target))
            rank = always_ahead + ahead.sum(1) + with_evidence
            # A target that is never ranked (at -inf) is behind all items.
            ndcg[number, column] = _ndcg(torch.where(limit == -torch.inf, scores.shape[1], rank))
    return ndcg


def _target_shares(pairs: NeighborPairs, share: Tensor, target: Tensor) -> Tensor:
    """Share of each row's target, ``[B]``; 0 where it has no evidence."""
    is_target = pairs.item == target[pairs.row]
    return share.new_zeros(len(target)).index_put_((pairs.row[is_target],), share[is_target])


def _count_by_row(row: Tensor, condition: Tensor, users: int) -> Tensor:
    """Number of true entries in each row, ``[B]``."""
    return torch.bincount(row[condition], minlength=users)


def _ndcg(rank: Tensor) -> Tensor:
    """Sum of NDCG@10 over a batch, on the CPU."""
    return torch.where(rank <= TOP, 1 / torch.log2(rank + 1.0), 0.0).sum().cpu()
