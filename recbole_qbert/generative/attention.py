"""Attention of T5 over packed rows: within the source, and from the target's positions to the source.

T5 does not divide the products of queries and keys by the root of their width (Raffel et al. 2020); its initial weights do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.generative.packed_tokens import LengthGroups
from recbole_qbert.sequence.attention import Attention
from recbole_qbert.sequence.dropout import dropout
from recbole_qbert.sequence.kernels.dispatch import can_use_kernels
from recbole_qbert.sequence.packing import PackedSequences

#: Longer rows are left to matrix products in training (heads of 64: the compiled kernel is as fast up to about here).
KERNEL_LENGTH = 24


class SelfAttention:
    """Compute ``softmax(q k + bias of the distance) v`` within rows, the same rows in every block.

    Args:
        rows: the packed rows.
        distance: ``[H, 2 L - 1]`` bias of the distances from key to query, ``L`` the longest row at least.
        causal: whether tokens see those up to themselves only.
    """

    def __init__(self, rows: LengthGroups, distance: Tensor, causal: bool = False) -> None:
        self.rows, self.distance, self.causal = rows, distance, causal
        groups = [(group, causal) for group in rows.groups]
        self.all = Attention(groups, distance, scale=1.0)
        self.short = [pair for pair in groups if pair[0].shape[1] <= KERNEL_LENGTH]
        self.long = [group for group, _ in groups[len(self.short) :]]
        self.kernel = Attention(self.short, distance, scale=1.0) if self.short else None

    def __call__(self, joint: Tensor, rate: float) -> Tensor:
        """Attend over packed tokens.

        Args:
            joint: ``[T, 3 W]`` query, key and value of every token, each with its heads side by side.
            rate: dropout rate of the attention weights.

        Returns:
            ``[T, W]``.
        """
        if rate == 0 or not can_use_kernels(joint):
            return self.all(joint, rate)
        parts = list(self.rows.split_tokens(joint))
        context = [
            self._products(part, group, rate) for part, group in zip(parts[len(self.short) :], self.long, strict=True)
        ]
        if self.kernel:
            tokens = len(joint) - sum(len(part) for part in parts[len(self.short) :])
            context.insert(0, self.kernel(joint[:tokens], rate))
        return torch.cat(context)

    def _products(self, joint: Tensor, group: PackedSequences, rate: float) -> Tensor:
        """Attend in the rows of one group, which all have the same length, by matrix products."""
        size, length = group.shape
        query, key, value = heads_apart(joint.view(size, length, -1), len(self.distance), 3)
        position = torch.arange(length)
        offset = position[None, :] - position[:, None]
        bias = self.distance[:, offset + self.distance.shape[1] // 2]
        if self.causal:
            bias = bias.masked_fill(offset > 0, -torch.inf)
        weight = dropout(torch.softmax(query @ key.transpose(2, 3) + bias, -1), rate, True)
        return heads_together(weight @ value).flatten(0, 1)


class CrossAttention:
    """Compute ``softmax(q k) v`` of the target's positions over the source of their row.

    Args:
        rows: the packed rows of the source.
        heads: number of heads.
    """

    def __init__(self, rows: LengthGroups, heads: int) -> None:
        self.rows, self.heads = rows, heads
        self.masks = [_padding(group) for group in rows.groups]

    def __call__(self, query: Tensor, joint: Tensor, rate: float) -> Tensor:
        """Attend from ``query [B, Q, W]`` to ``joint [T, 2 W]``, key and value of every source token; ``[B, Q, W]``."""
        context = [
            self._attend(part, group.pad(source), mask, rate)
            for part, source, group, mask in zip(
                self.rows.split_rows(query), self.rows.split_tokens(joint), self.rows.groups, self.masks, strict=True
            )
        ]
        return torch.cat(context)

    def _attend(self, query: Tensor, joint: Tensor, mask: Tensor | None, rate: float) -> Tensor:
        """Attend in the rows of one group: ``[B, Q, W]`` to ``[B, L, 2 W]``."""
        (query,), (key, value) = heads_apart(query, self.heads, 1), heads_apart(joint, self.heads, 2)
        if rate == 0:
            return heads_together(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0))
        logits = query @ key.transpose(2, 3)
        weight = torch.softmax(logits if mask is None else logits + mask, -1)
        return heads_together(dropout(weight, rate, True) @ value)


def heads_apart(joint: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """Split ``[B, L, parts * H * width]`` into ``parts`` tensors ``[B, H, L, width]``."""
    size, length, width = joint.shape
    return joint.view(size, length, parts, heads, width // parts // heads).permute(2, 0, 3, 1, 4).unbind(0)


def heads_together(context: Tensor) -> Tensor:
    """Put heads side by side: ``[B, H, L, width]`` to ``[B, L, H * width]``."""
    size, heads, length, width = context.shape
    return context.transpose(1, 2).reshape(size, length, heads * width)


def _padding(group: PackedSequences) -> Tensor | None:
    """Return what hides the padding of a group's keys, ``[B, 1, 1, L]``; ``None`` where there is none."""
    if len(group.position) == len(group.token):
        return None
    hidden = torch.arange(group.shape[1], device=group.lengths.device) >= group.lengths[:, None]
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)[:, None, None]
