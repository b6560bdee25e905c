"""What the training interactions say about items: co-occurrence counts, item vectors, and a prior over the next item.

The paper names 'structural features' (3.1) and never defines them; we read them as this. Only the training part of the
interactions may come in: whatever calls these functions passes training sequences and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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

    ``q`` is the summed cosine co-occurrence of an item with the items of the history, zero for history items, normalised
    over the catalogue; the prior's score is ``weight * log(q + epsilon)``. The paper is silent; this evidence alone ranks
    better than most networks on small Amazon sets, so it is offered, and always reported beside the figures without it.

    Args:
        sequences: training histories as item rows.
        items: ``N``.
    """

    pair: Tensor
    value: Tensor
    weight: Tensor
    epsilon: Tensor

    def __init__(self, sequences: Sequence[np.ndarray], items: int) -> None:
        super().__init__()
        self.items = items
        similar = cosine(counts(sequences, items)).tocoo()
        # Rebuilt from the training data with the model, so not part of a checkpoint.
        self.register_buffer(
            "pair", torch.from_numpy(np.stack([similar.row, similar.col]).astype(np.int64)), persistent=False
        )
        self.register_buffer("value", torch.from_numpy(similar.data), persistent=False)
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("epsilon", torch.tensor(1e-3))

    def share(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """``q``: each item's share of the co-occurrence with the history; ``[B, N]`` float32, rows sum to 1 or 0.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned.
            lengths: ``[B]`` int64.
        """
        real = torch.arange(sequences.shape[1], device=sequences.device) < lengths[:, None]
        history = torch.zeros(self.items, len(sequences), device=sequences.device)
        user = torch.arange(len(sequences), device=sequences.device)[:, None].expand_as(sequences)
        history[sequences[real], user[real]] = 1.0
        shape = (self.items, self.items)
        similar = torch.sparse_coo_tensor(self.pair, self.value, shape, is_coalesced=True, check_invariants=False)
        score = (similar @ history).T  # the matrix is symmetric
        score = score.masked_fill(history.T > 0, 0.0)
        return score / score.sum(1, keepdim=True).clamp(min=1e-12)

    @property
    def floor(self) -> float:
        """What is added to the score of an item that never occurred with the history."""
        return float(self.weight * torch.log(self.epsilon))

    def lifts(self, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What is added above ``floor``, for the few items where that is something; ``forward`` without a ``[B, N]``.

        Args:
            sequences, lengths: as for :meth:`share`.

        Returns:
            ``(items [B, H] int64, amounts [B, H] float32)``, -1 and 0 in unused places; no item twice in a row.
        """
        batch = len(sequences)
        real = torch.arange(sequences.shape[1], device=sequences.device) < lengths[:, None]
        user, _ = real.nonzero(as_tuple=True)
        held = torch.unique(user * self.items + sequences[real])  # a history is a set
        user, item = held // self.items, held % self.items
        # All neighbours of all items of all histories, in one list.
        first = torch.searchsorted(self.pair[0], item)
        count = torch.searchsorted(self.pair[0], item, right=True) - first
        start = count.cumsum(0) - count
        place = torch.arange(int(count.sum()), device=item.device) + (first - start).repeat_interleave(count)
        key = user.repeat_interleave(count) * self.items + self.pair[1][place]
        key, where = key.unique(return_inverse=True)
        evidence = self.value.new_zeros(len(key)).index_add_(0, where, self.value[place])
        new = ~torch.isin(key, held)
        key, evidence = key[new], evidence[new]
        owner = key // self.items
        share = evidence / evidence.new_zeros(batch).index_add_(0, owner, evidence).clamp(min=1e-12)[owner]
        amount = self.weight * (torch.log(share + self.epsilon) - torch.log(self.epsilon))
        size = torch.bincount(owner, minlength=batch)
        column = torch.arange(len(key), device=key.device) - (size.cumsum(0) - size)[owner]
        items = key.new_full((batch, int(size.max())), -1)
        amounts = amount.new_zeros(items.shape)
        items[owner, column], amounts[owner, column] = key % self.items, amount
        return items, amounts

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """What to add to log-probabilities, ``[B, N]``; zeros while the weight is 0."""
        return self.weight * torch.log(self.share(sequences, lengths) + self.epsilon)


# The prototype's best weight lay at the edge of a grid that ended at 2.4; this one ends where the prior stands alone.
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
EPSILONS = (1e-4, 1e-3, 1e-2)


@torch.no_grad()
def fit_weight(prior: CooccurrencePrior, batches: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]) -> dict[str, float]:
    """Set the prior's weight and epsilon to the pair with the best NDCG@10 on the given (validation) batches.

    Args:
        prior: changed in place.
        batches: ``(scores [B, N] without the prior, sequences [B, L], lengths [B], target [B])``.

    Returns:
        ``weight``, ``epsilon``, ``ndcg@10`` with it and ``ndcg@10_without``.
    """
    gain = torch.zeros(len(EPSILONS), len(WEIGHTS))
    users = 0
    for scores, sequences, lengths, target in batches:
        share = prior.share(sequences, lengths)
        users += len(target)
        for row, epsilon in enumerate(EPSILONS):
            evidence = torch.log(share + epsilon)
            for column, weight in enumerate(WEIGHTS):
                rank = rank_of(scores + weight * evidence, target)
                gain[row, column] += torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0.0).sum().cpu()
    row, column = divmod(int(gain.argmax()), len(WEIGHTS))
    prior.weight.fill_(WEIGHTS[column])
    prior.epsilon.fill_(EPSILONS[row])
    return {
        "weight": WEIGHTS[column],
        "epsilon": EPSILONS[row],
        "ndcg@10": float(gain[row, column]) / max(users, 1),
        "ndcg@10_without": float(gain[0, 0]) / max(users, 1),
    }
