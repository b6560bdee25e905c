"""Fusion depth: what gates learn, the best common depth, and the test of whether a depth per item means anything.

The paper is silent on how gates are trained. Here every layer's output has the loss (deep supervision), so what an item
gains by going on is known. Once the layers stand still, each gate learns to tell that gain from the item's vector; a gate
that learns beside the layers follows what they did some steps ago.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.injection.network import DynamicInjection

STEPS = 300  # of the gates' training; each is a small MLP
BATCH = 512  # items in each
DEALS = 50  # random permutations of the learned depths; their standard deviation is known to 10 %


@dataclass(frozen=True)
class DepthTest:
    """Losses of held-out items at several depths, without the cost of layers.

    Depth per item means something only where ``learned`` is below ``permuted`` by more than the spread of the latter.

    Attributes:
        items: number of items.
        learned: mean loss at the depths that the gates choose.
        permuted: mean loss when the same depths are dealt out to the items at random, mean over deals.
        permuted_sd: standard deviation over deals.
        share: share of the items to which the gates give depth 1, 2, …, layers.
        fixed: mean loss at depth 1, 2, …, layers for all items alike.
        common: the common depth of the lowest loss, cost of layers included.
        oracle: mean loss with the best depth of each item, which nothing that has not seen the loss can reach.
        beats_permuted: whether ``learned`` is below ``permuted`` by more than two standard deviations.
        beats_common: whether ``learned`` is below the best common depth's loss, cost of layers included in both.
    """

    items: int
    learned: float
    permuted: float
    permuted_sd: float
    share: list[float]
    fixed: list[float]
    common: int
    oracle: float
    beats_permuted: bool
    beats_common: bool

    def sentence(self) -> str:
        """Say in one line what the test shows."""
        verdict = "is" if self.beats_permuted else "is NOT"
        also = "" if self.beats_common else f"; depth {self.common} for all items is at least as good"
        return (
            f"loss of {self.items} held-out items {self.learned:.4f} at the learned depth, {self.permuted:.4f} "
            f"({self.permuted_sd:.4f}) at the same depths dealt out at random, {self.fixed[self.common - 1]:.4f} at the "
            f"best common depth, {self.common}, {self.oracle:.4f} by an oracle: depth per item {verdict} better than "
            f"chance{also}"
        )


def fit_gates(network: DynamicInjection, vectors: Tensor, losses: Tensor) -> None:
    """Train the gates of a network on what its layers, which do not change, are worth.

    Args:
        network: its gates are trained.
        vectors: ``[L, N, D]`` output of every layer.
        losses: ``[L, N]`` loss of each item at each depth.
    """
    config, count = network.config, vectors.shape[1]
    if not len(network.gates) or not count:
        return
    optimizer = torch.optim.AdamW(network.gates.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    for _ in range(STEPS):
        rows = torch.randperm(count)[:BATCH]
        loss = gate_loss(network.gate_logits(vectors[:, rows]), losses[:, rows], config.depth_cost)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def of_logits(going_on: Tensor) -> Tensor:
    """Compute the number of layers, ``[B]`` int64, at which gates with the logits ``[L - 1, B]`` stop each item."""
    return 1 + (going_on > 0).long().cumprod(0).sum(0)


def gate_loss(going_on: Tensor, losses: Tensor, cost: float) -> Tensor:
    """Compute how much the gates lose by their decisions, smoothed so that they can learn: ``[]``.

    A gate's decision is a classification, 'does going on pay', weighted by what is at stake, the regret of the wrong answer.
    Going on leads to the depth at which the later gates, as they decide now, stop the item.

    Args:
        going_on: ``[L - 1, B]`` logits of the gates.
        losses: ``[L, B]`` loss of each item at each depth, without gradient.
        cost: price of a layer in units of the loss.
    """
    total, value = going_on.new_zeros(()), losses[-1]
    for logits, stopping in zip(going_on.flip(0), losses[:-1].flip(0), strict=True):
        gain = stopping - (value + cost)
        mistakes = F.binary_cross_entropy_with_logits(logits, (gain > 0).float(), reduction="none")
        total = total + (gain.abs() * mistakes).mean()
        value = torch.where(logits > 0, value + cost, stopping)
    return total


def best_common_depth(losses: Tensor, cost: float) -> int:
    """Return the number of layers, the same for all items, with the lowest mean of ``losses [L, B]`` and cost."""
    priced = losses.mean(1) + cost * torch.arange(1, len(losses) + 1)
    return int(priced.argmin()) + 1


def at_depth(losses: Tensor, depth: Tensor) -> Tensor:
    """Pick each item's loss, ``[B]``, at its depth ``[B]`` from 1, of ``losses [L, B]``."""
    return losses.gather(0, depth[None] - 1)[0]


def permutation_test(losses: Tensor, depth: Tensor, cost: float) -> DepthTest:
    """Compare learned depths with the same depths permuted among the items.

    Args:
        losses: ``[L, B]`` loss of each item at each depth.
        depth: ``[B]`` int64, depths that the gates choose.
        cost: price of a layer in units of the loss.
    """
    generator = torch.Generator().manual_seed(0)  # of its own: measuring changes no training
    deals = [depth[torch.randperm(len(depth), generator=generator)] for _ in range(DEALS)]
    permuted = torch.stack([at_depth(losses, deal).mean() for deal in deals]).double()
    learned, common = at_depth(losses, depth).mean(), best_common_depth(losses, cost)
    fixed = losses.mean(1)
    share = torch.bincount(depth, minlength=len(losses) + 1)[1:].float() / len(depth)
    mean, spread = float(permuted.mean()), float(permuted.std())
    return DepthTest(
        items=len(depth),
        learned=float(learned),
        permuted=mean,
        permuted_sd=spread,
        share=share.tolist(),
        fixed=fixed.tolist(),
        common=common,
        oracle=float(losses.min(0).values.mean()),
        beats_permuted=bool(learned < mean - 2 * spread) and len(set(depth.tolist())) > 1,
        beats_common=bool(learned + cost * depth.float().mean() < fixed[common - 1] + cost * common),
    )
