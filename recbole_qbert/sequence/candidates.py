"""The items that the softmax of a training step runs over: all of them (``loss: item``), or a sample (``loss: sampled``).

A sample holds the items of the batch's rows and some that are drawn uniformly, so that a step costs the same however large
the catalog is. Every item that another row or the uniform draw brought in counts ``1 / pi`` times, ``pi`` being the
probability that it is in the sample; the items of the position's own row, which are in the sample for certain, count once.
So the sum that the softmax divides by is estimated without bias (Horvitz and Thompson 1952; the logQ correction of Bengio
and Senecal 2008 with probabilities of sets, not of draws), and a sample of all items gives the full softmax exactly.

The paper's softmaxes run over codes and items in full; the paper is silent on catalogs for which that is too much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Candidates:
    """Items of a softmax.

    Attributes:
        items: ``[C]`` int64, ascending; the first is padding (0) and never an answer.
        vectors: ``[C, D]`` float.
        log_weight: ``[C]`` float, logarithm of how often an item counts that the position's own row does not hold; ``None``
            where all items are candidates.
    """

    items: Tensor
    vectors: Tensor
    log_weight: Tensor | None = None

    def columns(self, items: Tensor) -> Tensor:
        """Return the places of ``items`` (any shape, all of them candidates) among the candidates."""
        return items if self.log_weight is None else torch.searchsorted(self.items, items.contiguous())


class CandidateSampler(nn.Module):
    """Draws the candidates of a batch of training rows.

    Args:
        rows: ``[U, L]`` int64, all training rows; a batch is drawn from them without replacement. 0 is padding.
        items: ``N``, size of the catalog with the padding.
        uniform: items that are drawn uniformly beside those of the batch; from ``N - 1`` on, all items are candidates.
    """

    holders: Tensor

    def __init__(self, rows: Tensor, items: int, uniform: int) -> None:
        super().__init__()
        ordered = rows.sort(1).values
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        self.register_buffer("holders", torch.bincount(ordered[first], minlength=items), persistent=False)
        self.rows, self.uniform = len(rows), uniform

    def draw(self, batch: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw the candidates of a batch.

        Args:
            batch: ``[B, L]`` int64 training rows.
            generator: random numbers; torch's global generator when ``None``.

        Returns:
            ``items [C]`` and ``log_weight [C]`` of :class:`Candidates`.
        """
        items, padding = len(self.holders), batch.new_zeros(1)
        if self.uniform >= items - 1:
            return torch.arange(items, device=batch.device), torch.zeros(items, device=batch.device)
        drawn = torch.randint(1, items, (self.uniform,), generator=generator, device=batch.device)
        candidates = torch.cat([padding, batch.flatten(), drawn]).unique()
        absent = self._log_absent(self.holders[candidates], len(batch) - 1)
        absent += self.uniform * math.log1p(-1 / (items - 1))
        weight = -torch.log(-torch.expm1(absent))
        weight[0] = 0.0
        return candidates, weight.float()

    def _log_absent(self, holders: Tensor, others: int) -> Tensor:
        """Log-probability that none of ``others`` further rows of the batch is one of the ``holders [C]``; float64.

        The batch holds a given row and ``others`` of the remaining ones, without replacement, so that the number of holders
        among them is hypergeometric.
        """
        remaining = self.rows - 1
        without = (remaining - holders).double()
        total = torch.tensor(float(remaining), dtype=torch.float64, device=holders.device)
        log = _log_falling(without.clamp(min=others), others) - _log_falling(total, others)
        return torch.where(without >= others, log, -torch.inf)


def _log_falling(count: Tensor, factors: int) -> Tensor:
    """Logarithm of ``count (count - 1) … (count - factors + 1)``."""
    return torch.lgamma(count + 1) - torch.lgamma(count - factors + 1)
