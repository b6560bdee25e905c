"""Masks that hide positions of a sequence: random, span, tail and multi-region (paper 3.5).

Masks are drawn on items, not on single codes: an item's K codes are hidden together, because showing three of the four
codes of an item gives the fourth away. Every function is a few tensor operations over the whole batch and takes its random
numbers from a ``torch.Generator`` (the global one when ``None``, which RecBole seeds). In every row, at least one position
is hidden and at least one stays visible; a row of length 0 or 1, where this is impossible, has no mask.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

STRATEGIES = ("random", "span", "tail", "multi_region")


def draw(lengths: Tensor, width: int, ratios: Mapping[str, float], generator: torch.Generator | None = None) -> Tensor:
    """Draw one strategy for each row, all with the same probability, and hide that strategy's share of the row.

    The paper gives 'probabilities of 0.3 (span), 0.15 (multi-position) and 0.1 (tail)', 'jointly sampled'. We read the
    numbers as the share of positions that a strategy hides (Figure 5 calls the same number the mask ratio) and 'jointly'
    as one strategy a row; the paper is silent beyond that.

    Args:
        lengths: ``[B]`` int64, number of items in each row; rows are left-aligned.
        width: ``L``, number of positions of the result.
        ratios: strategy name -> share of a row's positions to hide, in (0, 1).
        generator: source of random numbers.

    Returns:
        ``[B, L]`` bool, true where an item is hidden.

    Raises:
        ValueError: no strategy, an unknown one, or a share outside (0, 1).
    """
    if not ratios:
        raise ValueError(f"there is no mask strategy; choose from {', '.join(STRATEGIES)}")
    for name, ratio in ratios.items():
        if name not in STRATEGIES:
            raise ValueError(f"unknown mask strategy {name!r}; choose from {', '.join(STRATEGIES)}")
        if not 0 < ratio < 1:
            raise ValueError(f"mask ratio of {name} is {ratio}; it must lie between 0 and 1")
    drawn = [_DRAW[name](lengths, width, ratio, generator) for name, ratio in ratios.items()]
    if len(drawn) == 1:
        return drawn[0]
    choice = torch.randint(len(drawn), (len(lengths),), generator=generator, device=lengths.device)
    return torch.stack(drawn)[choice, torch.arange(len(lengths), device=lengths.device)]


def hidden_count(lengths: Tensor, ratio: float) -> Tensor:
    """Count the positions to hide in each row, ``[B]`` int64: ``ratio`` of the row, at least 1, at most ``length - 1``."""
    count = (lengths * ratio).round().long().clamp(min=1)
    return torch.minimum(count, lengths - 1).clamp(min=0)


def random(lengths: Tensor, width: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide each position with probability ``ratio``, as BERT does; at least one is hidden and one stays visible.

    Args:
        lengths, width, generator: as for :func:`draw`.
        ratio: share of positions to hide.
    """
    noise = _noise(lengths, width, generator)
    rank = noise.argsort(1).argsort(1)  # a uniformly random order of the row's real positions; padding sorts last
    count = (noise < ratio).sum(1)  # the number of hidden positions is binomial, as with independent draws
    count = torch.minimum(count.clamp(min=1), lengths - 1).clamp(min=0)
    return rank < count[:, None]


def span(lengths: Tensor, width: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide one run of consecutive positions with a uniformly random start.

    Args:
        lengths, width, generator: as for :func:`draw`.
        ratio: share of positions to hide.
    """
    count = hidden_count(lengths, ratio)
    start = (_uniform(lengths, generator) * (lengths - count + 1)).floor().long()
    position = torch.arange(width, device=lengths.device)
    return (position >= start[:, None]) & (position < (start + count)[:, None])


def tail(lengths: Tensor, width: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide the last positions of the row, as at inference; nothing is random.

    Args:
        lengths, width, generator: as for :func:`draw`.
        ratio: share of positions to hide.
    """
    del generator
    count = hidden_count(lengths, ratio)
    position = torch.arange(width, device=lengths.device)
    return (position >= (lengths - count)[:, None]) & (position < lengths[:, None])


def multi_region(lengths: Tensor, width: int, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide several blocks that do not touch, of one or two positions each, until the share is reached.

    A layout without touching blocks is a choice of gaps around the visible positions, at most one block a gap. Choosing the
    gaps uniformly makes all such layouts equally likely.

    Args:
        lengths, width, generator: as for :func:`draw`.
        ratio: share of positions to hide.
    """
    count = hidden_count(lengths, ratio)
    visible = lengths - count
    # Blocks of two where they fit; never more blocks than gaps (visible + 1), so that no two blocks touch.
    blocks = torch.minimum(((count + 1) // 2).clamp(min=2), torch.minimum(count, visible + 1)).clamp(min=1)
    blocks = torch.where(count > 0, blocks, torch.zeros_like(blocks))
    gaps = torch.rand(len(lengths), width + 1, generator=generator, device=lengths.device)
    gap = torch.arange(width + 1, device=lengths.device)
    gaps = gaps.masked_fill(gap > visible[:, None], 2.0)
    chosen = gaps.argsort(1).argsort(1) < blocks[:, None]  # gap g lies before visible position g
    base, extra = count // blocks.clamp(min=1), count % blocks.clamp(min=1)
    # Which blocks are one position longer is random, too.
    order = torch.rand(gaps.shape, generator=generator, device=lengths.device).masked_fill(~chosen, 2.0)
    longer = order.argsort(1).argsort(1) < extra[:, None]
    size = torch.where(chosen, base[:, None] + longer.long(), torch.zeros_like(chosen, dtype=torch.long))
    start = gap + size.cumsum(1) - size  # first position of the block of gap g, counting hidden positions before it
    edge = torch.zeros(len(lengths), 2 * width + 3, dtype=torch.long, device=lengths.device)
    edge.scatter_add_(1, start, chosen.long())
    edge.scatter_add_(1, start + size, -chosen.long())
    position = torch.arange(width, device=lengths.device)
    return (edge.cumsum(1)[:, :width] > 0) & (position < lengths[:, None])


def _uniform(lengths: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(len(lengths), generator=generator, device=lengths.device, dtype=torch.float64)


def _noise(lengths: Tensor, width: int, generator: torch.Generator | None) -> Tensor:
    noise = torch.rand(len(lengths), width, generator=generator, device=lengths.device)
    return noise.masked_fill(torch.arange(width, device=lengths.device) >= lengths[:, None], 2.0)


_DRAW = {"random": random, "span": span, "tail": tail, "multi_region": multi_region}
