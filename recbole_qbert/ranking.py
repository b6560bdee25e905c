"""Exact scores and ranks over a catalogue of items described by codes.

An item's score is the sum of one table entry per level, ``sum_k table[k, code_k]``: K look-ups whatever the width of the
network, no beam search and no matching of ID strings. Every item of the catalogue is scored, so ranks are exact.
Level entries of -1 (the item lacks that modality) contribute nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Items scored at a time: bounds the temporary [B, CHUNK] of the gather to a few MB for usual batches.
CHUNK = 65_536


def code_scores(tables: Tensor, codes: Tensor) -> Tensor:
    """Score every item from the tables of its codes.

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
    if len(codes) and not (int(codes.min()) >= -1 and int(codes.max()) < size):
        raise ValueError(f"codes span [{int(codes.min())}, {int(codes.max())}]; tables have {size} entries a level")
    silent = torch.cat([tables, tables.new_zeros(batch, levels, 1)], 2)  # code -1 reads the zero at the end
    scores = tables.new_zeros(batch, len(codes))
    for start in range(0, len(codes), CHUNK):
        part = codes[start : start + CHUNK].long() % (size + 1)
        for level in range(levels):
            scores[:, start : start + CHUNK] += silent[:, level].index_select(1, part[:, level])
    return scores


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``min(k, N)`` best items of each row; among equal scores the lower row number comes first.

    Args:
        scores: ``[B, N]`` float.
        k: how many.

    Returns:
        ``(scores, items)``, both ``[B, min(k, N)]``, best first.
    """
    order = torch.sort(scores, dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def rank_of(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of each row's target, counted from 1; items with the same score count as better (ties against the model).

    Args:
        scores: ``[B, N]`` float.
        target: ``[B]`` int64 item row.

    Returns:
        ``[B]`` int64.
    """
    return (~(scores < scores.gather(1, target[:, None]))).sum(1)
