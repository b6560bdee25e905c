"""Exact scores and ranks over a catalog of items described by codes or by vectors.

Codes: an item's score is the sum of one table entry per level, ``sum_k table[k, code_k]``: K look-ups whatever the width of
the network, no beam search and no matching of ID strings. Every item of the catalog is scored, so ranks are exact.
Level entries of -1 (the item lacks that modality) contribute nothing.

The order of additions is part of the definition, so that every way to compute a score gives the same bits: levels are added
in pairs, ``((t0 + t1) + (t2 + t3)) + (t4 + t5) …``. ``retrieval`` merges each pair into one table.

Vectors: the score is the product of the user's state and the item's vector, in float32 and in the order of ``row_dots``,
which does not depend on the other items and users of a call. A library's matrix product is rounded otherwise for every
shape; ``retrieval`` uses it, and bounds, only to find the few items that need their exact score.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Items scored at a time: limits the temporary [B, CHUNK] of the gather to a few MB for usual batches.
CHUNK = 65_536
LANES = 16  # partial sums of a product of two vectors: two registers of AVX2, one of AVX-512


def code_scores(tables: Tensor, codes: Tensor) -> Tensor:
    """Score every item by the sum of its codes' table entries.

    Args:
        tables: ``[B, K, M]`` float, one entry per code and user.
        codes: ``[N, K]`` integer codes in ``[-1, M)``; -1 adds nothing.

    Returns:
        ``[B, N]`` float, the same dtype as ``tables``.

    Raises:
        ValueError: the number of levels differs, or a code is outside its table.
    """
    batch, levels, size = tables.shape
    if codes.shape[1] != levels:
        raise ValueError(f"items have {codes.shape[1]} codes but the tables have {levels} levels")
    check_codes(codes, size)
    padded = pad_missing_level(tables)
    scores = tables.new_empty(batch, len(codes))
    for start in range(0, len(codes), CHUNK):
        part = codes[start : start + CHUNK].long() % (size + 1)
        scores[:, start : start + CHUNK] = sum_levels(padded, part.T)
    return scores


def check_codes(codes: Tensor, size: int) -> None:
    """Check that all codes are in ``[-1, size)``.

    Raises:
        ValueError: a code is not.
    """
    if codes.numel() and not (int(codes.min()) >= -1 and int(codes.max()) < size):
        raise ValueError(f"codes span [{int(codes.min())}, {int(codes.max())}]; tables have {size} entries a level")


def pad_missing_level(tables: Tensor) -> Tensor:
    """Append a zero after the last code, for levels that an item lacks: ``[B, K, M]`` to ``[B, K, M + 1]``."""
    return torch.cat([tables, tables.new_zeros(*tables.shape[:2], 1)], 2)


def sum_levels(tables: Tensor, codes: Tensor) -> Tensor:
    """Add up table entries in the defined order: ``[B, K, W]`` tables and ``[K, N]`` codes to ``[B, N]`` scores."""
    scores = tables.new_zeros(len(tables), codes.shape[1])  # from +0.0, so that no score is -0.0
    for low in range(0, len(codes), 2):
        pair = tables[:, low].index_select(1, codes[low])
        if low + 1 < len(codes):
            pair = pair + tables[:, low + 1].index_select(1, codes[low + 1])
        scores += pair
    return scores


def dot_scores(states: Tensor, vectors: Tensor) -> Tensor:
    """Score every item by the product of its vector with the users' states.

    Args:
        states: ``[B, D]`` float32.
        vectors: ``[N, D]`` float32.

    Returns:
        ``[B, N]`` float32, equal to the bit whatever the batch and the catalog.
    """
    scores = states.new_empty(len(states), len(vectors))
    for user, state in enumerate(states):
        for start in range(0, len(vectors), CHUNK):
            scores[user, start : start + CHUNK] = row_dots(state, vectors[start : start + CHUNK])
    return scores


def row_dots(left: Tensor, right: Tensor) -> Tensor:
    """Multiply vectors row by row and add up the products in the defined order.

    Product ``d`` is added to partial sum ``d % LANES``, in ascending order; then the upper half of the partial sums is added
    to the lower half until one is left.

    Args:
        left, right: ``[..., D]`` float32, broadcast against each other.

    Returns:
        ``[...]`` float32, never -0.0.
    """
    products = left * right
    lanes = products.new_zeros(*products.shape[:-1], LANES)
    for start in range(0, products.shape[-1], LANES):
        part = products[..., start : start + LANES]
        lanes[..., : part.shape[-1]] += part
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the ``min(k, N)`` best items of each row; among equal scores the lower item row comes first.

    Args:
        scores: ``[B, N]`` float.
        k: number of items.

    Returns:
        ``(scores, items)``, both ``[B, min(k, N)]``, best first.
    """
    order = torch.sort(scores, dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def rank_of(scores: Tensor, target: Tensor) -> Tensor:
    """Rank each row's target, counting from 1; items with the same score count as better (ties against the model).

    Args:
        scores: ``[B, N]`` float.
        target: ``[B]`` int64 item row.

    Returns:
        ``[B]`` int64.
    """
    return (~(scores < scores.gather(1, target[:, None]))).sum(1)
