"""What an ensemble of trained networks expects next, as soft targets for one network (born-again training).

The paper is silent. Chosen because the variance between seeds is the largest error of a network on small data sets: an
ensemble averages it out, and one network that learns the ensemble's softmax keeps most of the gain at the cost of one
network in use (Furlanello et al. 2018; Du et al. 2023 for recommendation).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recbole_qbert.sequence.model import SemanticSequenceModel

TOP = 64  # items kept of a softmax: nearly all of its mass, in a few hundred bytes a position


@dataclass(frozen=True)
class SoftTargets:
    """Shares of items at each supervised position of training rows, in the causal view.

    Attributes:
        start: ``[U]`` int64, number of the first position of each row among the ``P`` positions of all rows.
        items: ``[P, K]`` int32.
        shares: ``[P, K]`` float32; a row sums to 1.
        weight: weight of the soft targets relative to the true item's.
    """

    start: Tensor
    items: Tensor
    shares: Tensor
    weight: float

    def rows(self, rows: Tensor) -> SoftTargets:
        """Return the soft targets of a batch, with the rows ``[B]`` of the training part."""
        return replace(self, start=self.start[rows])

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the items ``[Q, K]`` int64 and shares ``[Q, K]`` at numbers ``[Q]`` of positions."""
        return self.items[positions].long(), self.shares[positions]


@torch.no_grad()
def of_ensemble(
    networks: Sequence[SemanticSequenceModel], sequences: Tensor, lengths: Tensor, weight: float, rows_at_once: int = 128
) -> SoftTargets:
    """Compute the mean softmax of networks at every position of training rows, cut to its ``TOP`` items.

    Args:
        networks: trained networks over the same catalog, in evaluation mode.
        sequences: ``[U, L]`` int64 training histories, left-aligned.
        lengths: ``[U]`` int64; at least one of them is above 1.
        weight: weight of the soft targets relative to the true item's.
        rows_at_once: rows that are computed together.
    """
    tables = [network.item_table() for network in networks]
    count = (lengths - 1).clamp(min=0)
    items, shares = [], []
    for batch in (count > 0).nonzero()[:, 0].split(rows_at_once):
        visible = count[batch]
        history = sequences[batch, : int(visible.max())]
        softmax = (_softmax(n, table, history, visible) for n, table in zip(networks, tables, strict=True))
        expected = functools.reduce(torch.add, softmax)  # one at a time: a row has an entry for every item
        top = expected.topk(min(TOP, expected.shape[1]), 1)
        # An item without a share (padding, in a small catalog) must not enter a loss, where it would be 0 times infinity.
        items.append(torch.where(top.values > 0, top.indices, top.indices[:, :1]).int())
        shares.append(top.values / top.values.sum(1, keepdim=True))
    return SoftTargets(count.cumsum(0) - count, torch.cat(items), torch.cat(shares), weight)


def _softmax(network: SemanticSequenceModel, table: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
    """Softmax over the catalog at every position of ``history [B, L]``, row by row: ``[Q, N]``."""
    position = torch.arange(history.shape[1], device=history.device)
    real = position < lengths[:, None]
    row, newest, source = (real[:, :, None] & (position[None, :] <= position[:, None])).nonzero(as_tuple=True)
    number = real.flatten().cumsum(0).view_as(real) - 1
    marks = torch.zeros(int(lengths.sum()), len(table), device=table.device)
    marks[number[row, newest], history[row, source]] = 1.0  # items of the history so far
    logits = network.causal_states(history, lengths, table) @ table.T - network.penalty * marks
    return logits.masked_fill(~network.valid, -torch.inf).softmax(1)
