"""A prior over the next item from co-occurrence in training histories (item-kNN) and from likeness of content.

It is added to the scores of a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from recbole_qbert.data.cooccurrence import cosine, counts


@dataclass(frozen=True)
class NeighborPairs:
    """The co-occurring pairs that give items evidence in a batch of histories, without the weights (shrink and decay).

    Attributes:
        row: ``[E]`` int64, row of the batch.
        item: ``[E]`` int64, an item with evidence in that row; sorted by row and item, each combination once.
        pair: ``[P]`` int64, index into the pairs of ``CooccurrencePrior.pair``.
        age: ``[P]`` int64, age of the pair's history item; 0 is the newest.
        target: ``[P]`` int64, index of the ``E`` entry that the pair adds to.
    """

    row: Tensor
    item: Tensor
    pair: Tensor
    age: Tensor
    target: Tensor


class CooccurrencePrior(nn.Module):
    """Score items by how often they co-occur with the items of the history, and by how much they are like them.

    Evidence for item ``i`` is ``e_i = sum_j decay^age_j * (c_ij / (sqrt(c_ii c_jj) + shrink) + content_weight * s_ij)`` over
    the items ``j`` of the history, where ``c_ij`` is the number of training histories with both, ``s_ij`` is the likeness of
    the items' content and the newest item has age 0. Items of the history have no evidence. ``q`` is an item's share of all
    evidence, and its score is ``weight * log(q + epsilon)``.

    The paper is silent. The prior alone ranks better than most networks on small Amazon data sets, so it is offered, and
    results with it are always reported beside those without.

    Args:
        sequences: training histories as item rows.
        items: ``N``.
        shrink: lowers the evidence of pairs of rare items; at least 0.
        decay: weight of a history item relative to the next newer one, in (0, 1].
        content: ``[N, N]``, likeness of the content of item rows, of few pairs (``data.content_neighbors``); it is scaled to
            the mean evidence of co-occurrence without shrink. ``None`` for co-occurrence alone.
        content_weight: weight of the content, at least 0.

    Raises:
        ValueError: ``shrink``, ``decay`` or ``content_weight`` is outside its range.
    """

    pair: Tensor
    value: Tensor
    size: Tensor
    likeness: Tensor
    weight: Tensor
    epsilon: Tensor
    shrink: Tensor
    decay: Tensor
    content_weight: Tensor

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        items: int,
        shrink: float = 0.0,
        decay: float = 1.0,
        content: sp.spmatrix | None = None,
        content_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not shrink >= 0:
            raise ValueError(f"shrink is {shrink}; it is added to a count and must not be negative")
        if not 0 < decay <= 1:
            raise ValueError(f"decay is {decay}; it must be above 0 and at most 1")
        if not content_weight >= 0:
            raise ValueError(f"content_weight is {content_weight}; it is a weight of evidence and must not be negative")
        self.items = items
        count = counts(sequences, items)
        own_count = count.diagonal()
        pair, value, likeness = _union(cosine(count), content)
        # Rebuilt from the training data with the model, so not part of a checkpoint.
        self.register_buffer("pair", torch.from_numpy(pair), persistent=False)
        self.register_buffer("value", torch.from_numpy(value), persistent=False)
        size = np.sqrt(own_count[pair[0]] * own_count[pair[1]])
        self.register_buffer("size", torch.from_numpy(size), persistent=False)
        self.register_buffer("likeness", torch.from_numpy(likeness), persistent=False)
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("epsilon", torch.tensor(1e-3))
        self.register_buffer("shrink", torch.tensor(float(shrink)))
        self.register_buffer("decay", torch.tensor(float(decay)))
        self.register_buffer("content_weight", torch.tensor(float(content_weight)))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Load as torch does, but refuse a weight of content that is not there: ranking would differ without a word.

        A state of before version 0.3 knows no content, which is weight 0.
        """
        weight = state_dict.setdefault(f"{prefix}content_weight", torch.zeros(()))
        if float(weight) > 0 and not self.likeness.any():
            raise ValueError(
                f"the prior was fitted with likeness of content (content_weight {float(weight)}), and the data set has no "
                "features of its items here; bring the features of the training"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def drop_unused_pairs(self) -> None:
        """Drop the pairs that give no evidence while ``content_weight`` is 0, so that ranking does not pass over them."""
        if float(self.content_weight) == 0 and len(self.likeness):
            used = self.value > 0
            self.pair, self.value, self.size = self.pair[:, used], self.value[used], self.size[used]
            self.likeness = self.likeness[used]

    def evidence(self, sequences: Tensor, lengths: Tensor, with_history: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """List the evidence ``e`` where it is above 0.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned.
            lengths: ``[B]`` int64.
            with_history: also list the evidence of items of the history.

        Returns:
            ``(row, item, e)``, each ``[E]``, sorted by row and item, each combination once.
        """
        pairs = self.neighbor_pairs(sequences, lengths, with_history)
        return pairs.row, pairs.item, self._evidence(pairs)

    def neighbor_pairs(self, sequences: Tensor, lengths: Tensor, with_history: bool = False) -> NeighborPairs:
        """Find the entries of :meth:`evidence` and the pairs that each comes from.

        Args:
            sequences, lengths, with_history: as for :meth:`evidence`.
        """
        position = torch.arange(sequences.shape[1], device=sequences.device)
        real = position < lengths[:, None]
        row, column = real.nonzero(as_tuple=True)
        history, number = torch.unique(row * self.items + sequences[real], return_inverse=True)
        # An item that occurs twice in a history counts once, with the age of the newer occurrence.
        age = column.new_zeros(len(history))
        age.scatter_reduce_(0, number, lengths[row] - 1 - column, "amin", include_self=False)
        row, item = history // self.items, history % self.items
        # The neighbors of all items of all histories, in one list.
        first = torch.searchsorted(self.pair[0], item)
        count = torch.searchsorted(self.pair[0], item, right=True) - first
        start = count.cumsum(0) - count
        pair = torch.arange(int(count.sum()), device=item.device) + (first - start).repeat_interleave(count)
        key = row.repeat_interleave(count) * self.items + self.pair[1][pair]
        key, target, used = _number_keys(key, None if with_history else history, len(sequences) * self.items)
        pair, age = pair[used], age.repeat_interleave(count)[used]
        return NeighborPairs(key // self.items, key % self.items, pair, age, target)

    def shrunk(self, shrink: float | Tensor, pair: Tensor | slice = slice(None)) -> Tensor:
        """Return ``c_ij / (sqrt(c_ii c_jj) + shrink)`` of the pairs with these numbers, or of all, float32."""
        size = self.size[pair]  # 0 where an item is in no training history, and then the value is, too
        return self.value[pair] * (size / (size + shrink).clamp(min=1e-12))

    def _evidence(self, pairs: NeighborPairs) -> Tensor:
        """Evidence ``e`` of each entry, ``[E]``, with the present shrink, decay and weight of content."""
        value = self.shrunk(self.shrink, pairs.pair)
        if float(self.content_weight):
            value = value + self.content_weight * self.likeness[pairs.pair]
        return value.new_zeros(len(pairs.row)).index_add_(0, pairs.target, value * self.decay ** pairs.age.float())

    def shares(self, pairs: NeighborPairs, users: int) -> Tensor:
        """Compute the share ``q`` of each entry, ``[E]`` float32, for a batch of ``users`` rows."""
        evidence = self._evidence(pairs)
        total = evidence.new_zeros(users).index_add_(0, pairs.row, evidence)
        return evidence / total.clamp(min=1e-12)[pairs.row]

    def share(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Compute the shares ``q`` of all items, ``[B, N]`` float32; rows sum to 1 or 0. Takes histories as ``evidence``."""
        pairs = self.neighbor_pairs(sequences, lengths)
        share = self.shares(pairs, len(sequences))
        dense = share.new_zeros(len(sequences), self.items)
        dense[pairs.row, pairs.item] = share
        return dense

    @property
    def base_logit(self) -> float:
        """The prior's score of an item without evidence."""
        return float(self.weight * torch.log(self.epsilon))

    def sparse_logits(self, sequences: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the scores of the few items with evidence, less ``base_logit``: ``forward`` without a ``[B, N]``.

        Args:
            sequences, lengths: as for :meth:`evidence`.

        Returns:
            ``(items [B, H] int64, amounts [B, H] float32)``, padded with -1 and 0; no item twice in a row.
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
        """Compute the scores to add to log-probabilities, ``[B, N]`` float32; zeros while the weight is 0."""
        return self.weight * torch.log(self.share(sequences, lengths) + self.epsilon)


def _union(similar: sp.spmatrix, content: sp.spmatrix | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """List the pairs that co-occur or are alike, sorted by row and column.

    Args:
        similar: ``[N, N]``, cosine of co-occurrence.
        content: ``[N, N]``, likeness of content.

    Returns:
        ``(pair [2, P] int64, cosine [P] float32, likeness [P] float32)``; likeness has the mean row sum of the cosine.
    """
    similar = similar.tocoo()
    if content is None or not content.nnz:
        pair = np.stack([similar.row, similar.col]).astype(np.int64)
        return pair, similar.data, np.zeros(len(similar.data), np.float32)
    content, width = content.tocoo(), similar.shape[1]
    keys = [matrix.row.astype(np.int64) * width + matrix.col for matrix in (similar, content)]
    key, place = np.unique(np.concatenate(keys), return_inverse=True)
    value, likeness = np.zeros(len(key), np.float32), np.zeros(len(key), np.float32)
    value[place[: len(keys[0])]] = similar.data
    scale = float(similar.data.sum()) / max(float(content.data.sum()), 1e-12) if similar.nnz else 1.0
    likeness[place[len(keys[0]) :]] = content.data * scale
    return np.stack([key // width, key % width]), value, likeness


def _number_keys(key: Tensor, excluded: Tensor | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Number the different keys in ascending order, leaving some out.

    Args:
        key: ``[P]`` int64, each in ``[0, size)``.
        excluded: keys to leave out.
        size: end of the range of keys.

    Returns:
        ``(keys [E], number [U], used [P] bool)``: the different keys, the number of each key that is not left out, and which
        these are.
    """
    if size > 16 * len(key):  # marking all possible keys would be more work than sorting those that occur
        keys, number = key.unique(return_inverse=True)
        keep = torch.ones_like(keys, dtype=torch.bool) if excluded is None else ~torch.isin(keys, excluded)
        used = keep[number]
        return keys[keep], (keep.cumsum(0) - 1)[number[used]], used
    mark = torch.zeros(size, dtype=torch.bool, device=key.device)
    mark[key] = True
    if excluded is not None:
        mark[excluded] = False
    used = mark[key]
    return mark.nonzero()[:, 0], (mark.cumsum(0) - 1)[key[used]], used
