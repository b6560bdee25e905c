"""Self-attention over packed rows with a bias for each distance: compiled on a CPU, torch's elsewhere."""

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

# Rows of more positions than this are left to torch, whose fused kernel for CPUs has no dropout (measured; docs/speed.md).
LONG, LONG_WITH_DROPOUT = 12, 64


@dataclass(frozen=True)
class Layout:
    """Rows of all parts, as ``network_kernels.attend`` wants them; all ``[R]``.

    Attributes:
        start: first token.
        length: tokens.
        causal: whether tokens see those up to themselves only.
        at: where the row's weights begin.
        end: and where they end.
    """

    start: np.ndarray
    length: np.ndarray
    causal: np.ndarray
    at: np.ndarray
    end: np.ndarray


class Attention:
    """``softmax(q k / sqrt(D / H) + bias of the distance) v``, for the same rows in every block of an encoder.

    Args:
        parts: rows of like length, and whether their tokens see those up to themselves only (causal) or all of the row.
            Packed tokens are those of all parts, in their order.
        distance: ``[H, W]`` float bias of the distances ``-(W // 2) .. W // 2`` between key and query.

    Raises:
        ValueError: rows are longer than there are distances.
    """

    def __init__(self, parts: Sequence[tuple[PackedSequences, bool]], distance: Tensor) -> None:
        self.parts, self.distance = parts, distance
        self.longest, most = max(rows.shape[1] for rows, _ in parts), distance.shape[1] // 2 + 1
        if self.longest > most:  # kernels look without looking whether they may
            raise ValueError(f"a row has {self.longest} positions; the encoder was made for at most {most}")

    def __call__(self, joint: Tensor, rate: float) -> Tensor:
        """Attend.

        Args:
            joint: ``[T, 3 D]`` query, key and value of every token, each with its heads side by side.
            rate: dropout of the weights.

        Returns:
            ``[T, D]``.
        """
        quicker = self.longest <= (LONG_WITH_DROPOUT if rate > 0 else LONG)
        if quicker and can_use_kernels(joint) and joint.dtype == self.distance.dtype:
            return _Compiled.apply(joint, self.distance, self._layout, rate)  # type: ignore[no-untyped-call]
        split = joint.split([len(rows.real) for rows, _ in self.parts])
        seen = [
            rows.pack(self._padded(rows.pad(part), bias, rate))
            for part, (rows, _), bias in zip(split, self.parts, self._biases, strict=True)
        ]
        return torch.cat(seen)

    def _padded(self, joint: Tensor, bias: Tensor, rate: float) -> Tensor:
        """Rows of one part, ``[B, L, 3 D]`` to ``[B, L, D]``."""
        size, length, width = joint.shape
        heads = len(self.distance)
        query, key, value = joint.view(size, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(joint.dtype), dropout_p=rate)
        return seen.transpose(1, 2).reshape(size, length, width // 3)

    @cached_property
    def _biases(self) -> list[Tensor]:
        """What is added to the logits of each part, -inf where a token may not look: ``[1 or B, H, L, L]``."""
        found = []
        for rows, causal in self.parts:
            position = torch.arange(rows.shape[1], device=self.distance.device)
            offset = position[None, :] - position[:, None]
            bias = self.distance[None, :, offset + self.distance.shape[1] // 2]
            if causal:  # a real token never looks at the padding behind it: no other mask is needed
                found.append(bias.masked_fill(offset > 0, -torch.inf))
            else:
                found.append(bias.masked_fill((position >= rows.lengths[:, None])[:, None, None, :], -torch.inf))
        return found

    @cached_property
    def _layout(self) -> Layout:
        before = np.cumsum([0, *(len(rows.real) for rows, _ in self.parts)])
        starts = [
            rows.place.view(rows.shape)[:, 0].numpy() + first
            for (rows, _), first in zip(self.parts, before[:-1], strict=True)
        ]
        length = torch.cat([rows.lengths for rows, _ in self.parts]).numpy()
        causal = np.repeat([causal for _, causal in self.parts], [len(one) for one in starts])
        work = len(self.distance) * length**2
        return Layout(np.concatenate(starts), length, causal, np.cumsum(work) - work, np.cumsum(work))


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joint: Tensor, distance: Tensor, layout: Layout, rate: float) -> Tensor:
        from recbole_qbert.sequence.kernels import attention_and_dropout  # numba takes a moment to import

        width, end = joint.shape[1] // 3, layout.end
        out, weight = joint.new_empty(len(joint), width), joint.new_empty(int(end[-1]) if len(end) else 0)
        scale = np.array([(width // len(distance)) ** -0.5, 1 / (1 - rate)], out.numpy().dtype)
        ctx.rest = (layout.start, layout.length, layout.causal, layout.at, scale, *dropout_state(rate))
        ctx.bounds = split_work(end * (width // len(distance)))  # a weight is work for each element of a head
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
        return out, bias.sum(0), None, None


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
