"""Self-attention over packed sequences with a bias for each distance: a compiled kernel on a CPU, torch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_qbert.sequence.kernels.dispatch import call, can_use_kernels, dropout_state, split_work
from recbole_qbert.sequence.packing import PackedSequences

# Longer rows are left to torch. Its fused kernel for CPUs has no dropout (limits are measured; docs/performance.md).
MAX_KERNEL_LENGTH, MAX_KERNEL_LENGTH_WITH_DROPOUT = 12, 64


@dataclass(frozen=True)
class Layout:
    """The ``R`` rows of all groups, as the kernel ``attend`` takes them; every array is ``[R]``.

    Attributes:
        start: first token of the row.
        length: number of tokens.
        causal: whether tokens see those up to themselves only.
        weight_start: index of the row's first attention weight.
        weight_end: index behind its last attention weight.
    """

    start: np.ndarray
    length: np.ndarray
    causal: np.ndarray
    weight_start: np.ndarray
    weight_end: np.ndarray


class Attention:
    """Compute ``softmax(scale q k + bias of the distance) v`` for the same rows in every block of an encoder.

    Args:
        groups: rows of like length, and whether their tokens see those up to themselves only (causal) or the whole row. The
            packed tokens are those of all groups, in their order.
        distance: ``[H, W]`` float bias of the distances ``-(W // 2) .. W // 2`` between key and query.
        scale: factor of the products of queries and keys; by default ``1 / sqrt(D / H)``.

    Raises:
        ValueError: rows are longer than there are distances.
    """

    def __init__(self, groups: Sequence[tuple[PackedSequences, bool]], distance: Tensor, scale: float | None = None) -> None:
        self.groups, self.distance, self.scale = groups, distance, scale
        self.longest, limit = max(rows.shape[1] for rows, _ in groups), distance.shape[1] // 2 + 1
        if self.longest > limit:  # the kernels do not check bounds
            raise ValueError(f"a row has {self.longest} positions; the encoder was made for at most {limit}")

    def __call__(self, joint: Tensor, rate: float) -> Tensor:
        """Attend over packed tokens.

        Args:
            joint: ``[T, 3 D]`` query, key and value of every token, each with its heads side by side.
            rate: dropout rate of the attention weights.

        Returns:
            ``[T, D]``.
        """
        short_enough = self.longest <= (MAX_KERNEL_LENGTH_WITH_DROPOUT if rate > 0 else MAX_KERNEL_LENGTH)
        if short_enough and can_use_kernels(joint) and joint.dtype == self.distance.dtype:
            scale = (joint.shape[1] // 3 // len(self.distance)) ** -0.5 if self.scale is None else self.scale
            return _KernelAttention.apply(joint, self.distance, self._layout, rate, scale)  # type: ignore[no-untyped-call]
        split = joint.split([len(rows.position) for rows, _ in self.groups])
        context = [
            rows.pack(self._attend_padded(rows.pad(part), bias, rate))
            for part, (rows, _), bias in zip(split, self.groups, self._biases, strict=True)
        ]
        return torch.cat(context)

    def _attend_padded(self, joint: Tensor, bias: Tensor, rate: float) -> Tensor:
        """Attend over the rows of one group with torch: ``[B, L, 3 D]`` to ``[B, L, D]``."""
        size, length, width = joint.shape
        heads = len(self.distance)
        query, key, value = joint.view(size, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.to(joint.dtype), dropout_p=rate, scale=self.scale
        )
        return context.transpose(1, 2).reshape(size, length, width // 3)

    @cached_property
    def _biases(self) -> list[Tensor]:
        """Bias of each group's logits, -inf where a token must not look: ``[1 or B, H, L, L]``."""
        biases = []
        for rows, causal in self.groups:
            position = torch.arange(rows.shape[1], device=self.distance.device)
            offset = position[None, :] - position[:, None]
            bias = self.distance[None, :, offset + self.distance.shape[1] // 2]
            if causal:  # no mask of padding is needed: a token never looks at the padding behind it
                biases.append(bias.masked_fill(offset > 0, -torch.inf))
            else:
                biases.append(bias.masked_fill((position >= rows.lengths[:, None])[:, None, None, :], -torch.inf))
        return biases

    @cached_property
    def _layout(self) -> Layout:
        group_start = np.cumsum([0, *(len(rows.position) for rows, _ in self.groups)])
        starts = [
            rows.token.view(rows.shape)[:, 0].numpy() + first
            for (rows, _), first in zip(self.groups, group_start[:-1], strict=True)
        ]
        length = torch.cat([rows.lengths for rows, _ in self.groups]).numpy()
        causal = np.repeat([causal for _, causal in self.groups], [len(group) for group in starts])
        weights = len(self.distance) * length**2
        end = np.cumsum(weights)
        return Layout(np.concatenate(starts), length, causal, end - weights, end)


class _KernelAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor, distance: Tensor, layout: Layout, rate: float, scale: float) -> Tensor:
        from recbole_qbert.sequence.kernels import attention_and_dropout  # imported late: numba is slow to import

        width, end = joint.shape[1] // 3, layout.weight_end
        out, weight = joint.new_empty(len(joint), width), joint.new_empty(int(end[-1]) if len(end) else 0)
        factors = np.array([scale, 1 / (1 - rate)], out.numpy().dtype)
        ctx.rest = (layout.start, layout.length, layout.causal, layout.weight_start, factors, *dropout_state(rate))
        ctx.bounds = split_work(end * (width // len(distance)))  # work of a weight: one step for each element of a head
        ctx.save_for_backward(joint, distance, weight)
        arguments = (*_arrays(joint, distance), *ctx.rest, weight.numpy(), out.numpy())
        call(attention_and_dropout.attend, arguments, ctx.bounds)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        from recbole_qbert.sequence.kernels import attention_and_dropout

        joint, distance, weight = ctx.saved_tensors
        out, bias = joint.new_empty(joint.shape), distance.new_zeros(len(ctx.bounds) - 1, *distance.shape)
        arguments = (*_arrays(joint, distance), *ctx.rest, *_arrays(weight, grad[0], out))
        call(attention_and_dropout.attend_backward, arguments, ctx.bounds, own=bias.numpy())
        return out, bias.sum(0), None, None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
