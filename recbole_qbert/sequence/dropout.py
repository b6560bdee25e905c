"""Dropout on a CPU without a stored mask.

torch draws one 53-bit number an element (``bernoulli_``), stores the mask and reads it again in the backward pass. Here one
compiled pass decides by the element's position and two seeds whether it is dropped, forward and backward alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_qbert.sequence.kernels.dispatch import call, can_use_kernels, dropout_state, split_work


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """Drop elements as ``torch.nn.functional.dropout`` does, with other random numbers on a CPU.

    Args:
        values: any shape, floating point.
        rate: share of elements that become 0; the others are scaled by ``1 / (1 - rate)``.
        training: whether to drop at all; otherwise values are returned unchanged.

    Returns:
        A tensor of the shape of ``values``.
    """
    if not training or rate == 0:
        return values
    if not can_use_kernels(values) or rate >= 1:
        return F.dropout(values, rate)
    return _Dropout.apply(values, rate)  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float) -> Tensor:
        ctx.state = (*dropout_state(rate), 1 / (1 - rate))
        return _drop(values, *ctx.state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        return _drop(grad[0], *ctx.state), None


def _drop(values: Tensor, limit: np.uint64, low: np.uint64, high: np.uint64, factor: float) -> Tensor:
    from recbole_qbert.sequence.kernels import attention_and_dropout  # imported late: numba is slow to import

    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    flat = out.view(-1).numpy()
    arguments = (values.detach().contiguous().view(-1).numpy(), limit, low, high, flat.dtype.type(factor), flat)
    runs = np.arange(-(-len(flat) // attention_and_dropout.RUN)) + 1
    call(attention_and_dropout.drop, arguments, split_work(runs * attention_and_dropout.RUN))
    return out
