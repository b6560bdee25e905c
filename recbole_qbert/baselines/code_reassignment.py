"""Learned reassignment of code numbers within each group, by which VQ-Rec moves to a data set with other codes.

The paper learns permutation matrices by Gumbel-Sinkhorn. Its release takes the largest entry of each row and rounds it up,
which has no gradient, so nothing is learned, and is no permutation, so a fifth of the embeddings is lost. Here the nearest
permutation (Hungarian) is used forward, and the gradient goes straight through to the doubly stochastic matrix.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SMALLEST = 1e-6  # added to exp(weights) before the logarithm, as in the release


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Scale rows, then columns, to sum 1, in turns.

    Args:
        logits: ``[G, M, M]`` float.
        iterations: number of turns.

    Returns:
        ``[G, M, M]`` float; columns sum to 1, and rows the nearer to it the more turns.
    """
    for _ in range(iterations):
        logits = logits - logits.logsumexp(2, keepdim=True)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


def gumbel_sinkhorn(weights: Tensor, iterations: int, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Draw doubly stochastic matrices near random permutations of large weight.

    Args:
        weights: ``[G, M, M]`` float.
        iterations: of ``sinkhorn``.
        temperature: the smaller, the nearer to permutations.
        generator: of the noise.

    Returns:
        ``[G, M, M]`` float.
    """
    uniform = torch.rand(weights.shape, generator=generator, device=weights.device).clamp(1e-20, 1 - 1e-7)
    logits = torch.logaddexp(weights, weights.new_tensor(SMALLEST).log()) - (-uniform.log()).log()
    return sinkhorn(logits / temperature, iterations)


@torch.no_grad()
def nearest_permutation(weights: Tensor) -> Tensor:
    """Find for each group the permutation of largest summed weight.

    Args:
        weights: ``[G, M, M]`` float.

    Returns:
        ``[G, M]`` int64: the old code that stands at each new code.
    """
    return torch.stack(
        [
            torch.from_numpy(linear_sum_assignment(group, maximize=True)[1].astype(np.int64))
            for group in weights.cpu().numpy()
        ]
    ).to(weights.device)


def straight_through(soft: Tensor) -> Tensor:
    """Return the permutation matrices nearest to ``soft [G, M, M]``, with the gradient of ``soft``."""
    hard = torch.zeros_like(soft).scatter_(2, nearest_permutation(soft)[:, :, None], 1.0)
    return hard + (soft - soft.detach())
