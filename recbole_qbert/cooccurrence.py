"""What the training interactions say about items: co-occurrence counts, item vectors, and a prior over the next item.

The paper names 'structural features' (3.1) and never defines them; we read them as this. Only the training part of the
interactions may come in: whatever calls these functions passes training sequences and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from recbole_qbert.ranking import rank_of


def counts(sequences: Sequence[np.ndarray], items: int) -> sp.csr_matrix:
    """How many sequences hold both items; ``[N, N]`` float32, symmetric, the diagonal counts sequences with the item.

    Args:
        sequences: item rows of each user's training history; an item twice in one counts once.
        items: ``N``.
    """
    owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
    row = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences]) if len(sequences) else np.empty(0, np.int64)
    holds = sp.csr_matrix((np.ones(len(row), np.float32), (owner, row)), shape=(len(sequences), items))
    holds.data[:] = 1.0
    return (holds.T @ holds).tocsr()


def cosine(count: sp.csr_matrix) -> sp.csr_matrix:
    """Cosine of the items' user sets: ``c_ij / sqrt(c_ii c_jj)``, zero on the diagonal."""
    scale = 1.0 / np.sqrt(np.maximum(count.diagonal(), 1.0))
    similar = sp.diags(scale) @ count @ sp.diags(scale)
    similar.setdiag(0.0)
    similar.eliminate_zeros()
    return similar.tocsr().astype(np.float32)


def vectors(sequences: Sequence[np.ndarray], items: int, width: int, seed: int) -> np.ndarray:
    """Item vectors from the training interactions: truncated SVD of the positive pointwise mutual information.

    Args:
        sequences: training histories as item rows.
        items: ``N``.
        width: ``D``; cut to ``N - 1`` for tiny catalogues and filled up with zeros.
        seed: of the randomised SVD.

    Returns:
        ``[N, D]`` float32; zeros for items that never co-occur in training (cold items).
    """
    from sklearn.utils.extmath import randomized_svd  # slow to import, needed once

    count = counts(sequences, items)
    alone = count.diagonal()
    count.setdiag(0.0)
    count.eliminate_zeros()
    pairs = count.tocoo()
    information = np.log(pairs.data * max(len(sequences), 1) / (alone[pairs.row] * alone[pairs.col]))
    keep = information > 0
    positive = sp.csr_matrix((information[keep], (pairs.row[keep], pairs.col[keep])), shape=count.shape)
    result = np.zeros((items, width), dtype=np.float32)
    rank = min(width, items - 1)
    if positive.nnz and rank > 0:
        left, strength, _ = randomized_svd(positive, n_components=rank, random_state=seed)
        result[:, :rank] = left * np.sqrt(strength)
    return result


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
        position = torch.arange(sequences.shape[1], device=sequences.device)
        real = position < lengths[:, None]
        row, place = real.nonzero(as_tuple=True)
        held, where = torch.unique(row * self.items + sequences[real], return_inverse=True)
        trust = self.decay ** (lengths[row] - 1 - place).float()
        # An item twice in a history counts once, as the newer one.
        trust = trust.new_zeros(len(held)).scatter_reduce_(0, where, trust, "amax")
        row, item = held // self.items, held % self.items
        # The neighbours of all items of all histories, in one list.
        first = torch.searchsorted(self.pair[0], item)
        count = torch.searchsorted(self.pair[0], item, right=True) - first
        start = count.cumsum(0) - count
        place = torch.arange(int(count.sum()), device=item.device) + (first - start).repeat_interleave(count)
        value = self.value[place] * (self.size[place] / (self.size[place] + self.shrink))
        key = row.repeat_interleave(count) * self.items + self.pair[1][place]
        key, where = key.unique(return_inverse=True)
        found = value.new_zeros(len(key)).index_add_(0, where, value * trust.repeat_interleave(count))
        if not with_history:
            new = ~torch.isin(key, held)
            key, found = key[new], found[new]
        return key // self.items, key % self.items, found

    def _shares(self, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``evidence`` with ``q`` in place of ``e``."""
        row, item, found = self.evidence(sequences, lengths)
        total = found.new_zeros(len(sequences)).index_add_(0, row, found)
        return row, item, found / total.clamp(min=1e-12)[row]

    def share(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """``q``: each item's share of the evidence; ``[B, N]`` float32, rows sum to 1 or 0; arguments of ``evidence``."""
        row, item, share = self._shares(sequences, lengths)
        dense = share.new_zeros(len(sequences), self.items)
        dense[row, item] = share
        return dense

    @property
    def floor(self) -> float:
        """What is added to the score of an item without evidence."""
        return float(self.weight * torch.log(self.epsilon))

    def lifts(self, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is added above ``floor`` to the few items with evidence: ``forward`` without a ``[B, N]``.

        Returns:
            ``(items [B, H] int64, amounts [B, H] float32)``, -1 and 0 in unused places; no item twice in a row.
        """
        row, item, share = self._shares(sequences, lengths)
        size = torch.bincount(row, minlength=len(sequences))
        column = torch.arange(len(row), device=row.device) - (size.cumsum(0) - size)[row]
        items = item.new_full((len(sequences), int(size.max()) if len(size) else 0), -1)
        amounts = share.new_zeros(items.shape)
        items[row, column] = item
        amounts[row, column] = self.weight * (torch.log(share + self.epsilon) - torch.log(self.epsilon))
        return items, amounts

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """What to add to log-probabilities, ``[B, N]``; zeros while the weight is 0."""
        return self.weight * torch.log(self.share(sequences, lengths) + self.epsilon)


# The prototype's best weight lay at the edge of a grid that ended at 2.4; this one ends where the prior stands alone.
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
EPSILONS = (1e-4, 1e-3, 1e-2)
SHRINKS = (0.0, 10.0, 30.0)
DECAYS = (1.0, 0.8, 0.6)
Batch = tuple[Callable[[], Tensor], Tensor, Tensor, Tensor]


@torch.no_grad()
def fit(prior: CooccurrencePrior, batches: Callable[[], Iterable[Batch]]) -> dict[str, float]:
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
        for number, (shrink, decay) in enumerate(points):
            prior.shrink.fill_(shrink)
            prior.decay.fill_(decay)
            alone[number] += _gain(prior.share(sequences, lengths), target)
    shrink, decay = points[int(alone.argmax())]
    prior.shrink.fill_(shrink)
    prior.decay.fill_(decay)
    gain = torch.zeros(len(EPSILONS), len(WEIGHTS))
    users = 0
    for scores, sequences, lengths, target in batches():
        share, plain = prior.share(sequences, lengths), scores()
        users += len(target)
        for row, epsilon in enumerate(EPSILONS):
            evidence = torch.log(share + epsilon)
            for column, weight in enumerate(WEIGHTS):
                gain[row, column] += _gain(plain + weight * evidence, target)
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


def _gain(scores: Tensor, target: Tensor) -> Tensor:
    """Summed NDCG@10 of a batch, on the CPU."""
    rank = rank_of(scores, target)
    return torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0).sum().cpu()
