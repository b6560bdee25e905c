"""Prediction targets of the causal and the masked view of a training batch, and the history that each target has.

The rows of a batch are split into buckets of like length, so that attention pads no short row to the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recbole_qbert.sequence.packing import PackedSequences


@dataclass(frozen=True)
class LengthBucket:
    """Rows of like length.

    Attributes:
        rows: ``[B]`` int64, their row numbers in the batch.
        lengths: ``[B]`` int64.
        items: ``[B, L]`` int64.
        packed: positions of their items among the packed tokens.
    """

    rows: Tensor
    lengths: Tensor
    items: Tensor
    packed: PackedSequences


@dataclass
class ViewTargets:
    """Supervised tokens of one view, one entry a bucket in each list.

    Attributes:
        causal: whether this is the causal view.
        total: supervised positions of the whole batch, including those of other processes.
        supervised: ``[T]`` bool, true at packed tokens that are supervised.
        items: ``[P]`` int64, the item to predict at each supervised token.
        rows: ``[P]`` int64, row in the batch of each supervised token.
        history: ``(number of the supervised token among all buckets, item of its history)``, both ``[S]`` int64.
        numbers: number of each supervised position among those of all training rows, where soft targets need it.
        count: supervised tokens so far.
    """

    causal: bool
    total: int
    supervised: list[Tensor] = field(default_factory=list)
    items: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    history: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    numbers: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, bucket: LengthBucket, supervised: Tensor, items: Tensor, history: Tensor) -> None:
        """Append a bucket.

        Args:
            bucket: the rows.
            supervised: ``[B, L]`` bool, supervised positions.
            items: ``[B, L]`` int64, the item to predict at each position.
            history: ``[B, L, L]`` bool, for each position the positions of its history, each item once.
        """
        number = supervised.flatten().cumsum(0).view_as(supervised) - 1 + self.count
        row, position, source = (supervised[:, :, None] & history).nonzero(as_tuple=True)
        self.history.append((number[row, position], bucket.items[row, source]))
        self.supervised.append(supervised.flatten()[bucket.packed.position])
        self.items.append(items[supervised])
        self.rows.append(bucket.rows[:, None].expand_as(supervised)[supervised])
        self.count += len(self.items[-1])


def rows_by_length(lengths: Tensor) -> Iterator[Tensor]:
    """Yield the row numbers of each bucket of like length (up to 8, 16, 32, … items); rows of one item are left out."""
    bucket = lengths.clamp(min=8).sub(1).log2().floor()
    for value in bucket[lengths > 1].unique().tolist():
        yield ((bucket == value) & (lengths > 1)).nonzero()[:, 0]


def length_bucket(sequences: Tensor, lengths: Tensor, rows: Tensor) -> LengthBucket:
    """Cut some rows of a batch to the longest of them.

    Args:
        sequences: ``[B, L]`` int64 items of the batch, left-aligned.
        lengths: ``[B]`` int64.
        rows: row numbers of the bucket, int64.
    """
    length = lengths[rows]
    items = sequences[rows, : int(length.max())]
    return LengthBucket(rows, length, items, PackedSequences.of(length, items.shape[1]))


def causal_targets(buckets: Sequence[LengthBucket], lengths: Tensor, start: Tensor | None = None) -> ViewTargets:
    """Predict every item but the first from those before it.

    Args:
        buckets: rows of the batch.
        lengths: ``[B]``, of the whole batch.
        start: ``[B]`` int64, number of each row's first position among those of all training rows (``SoftTargets``).
    """
    targets = ViewTargets(True, int((lengths - 1).clamp(min=0).sum()))
    for bucket in buckets:
        position = torch.arange(bucket.items.shape[1], device=bucket.items.device)
        supervised = position < (bucket.lengths - 1)[:, None]
        history = (position[None, :] <= position[:, None]) & _first_occurrence(bucket.items, supervised)[:, None, :]
        targets.add(bucket, supervised, bucket.items.roll(-1, 1), history)
        if start is not None:
            targets.numbers.append((start[bucket.rows][:, None] + position)[supervised])
    return targets


def masked_targets(buckets: Sequence[LengthBucket], hidden: Tensor) -> ViewTargets:
    """Predict the items at ``hidden [B, L]`` of the batch from the other items of their row."""
    targets = ViewTargets(False, int(hidden.sum()))
    for bucket in buckets:
        width = bucket.items.shape[1]
        supervised = hidden[bucket.rows, :width]
        visible = ~supervised & (torch.arange(width, device=hidden.device) < bucket.lengths[:, None])
        history = _first_occurrence(bucket.items, visible)[:, None, :].expand(-1, width, -1)
        targets.add(bucket, supervised, bucket.items, history)
    return targets


def _first_occurrence(items: Tensor, real: Tensor) -> Tensor:
    """True at the first real occurrence of each item in its row, ``[B, L]``: a history counts each item once."""
    same = (items[:, :, None] == items[:, None, :]) & real[:, None, :]
    earlier = same.tril(-1).any(2)
    return real & ~earlier
