"""Sequences of different length: packed, as the layers take them, and padded, as torch's attention needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PackedSequences:
    """Left-aligned rows whose ``T`` tokens are packed one after another, row by row.

    Attributes:
        shape: ``(B, L)`` of the padded rows.
        lengths: ``[B]`` int64.
        position: ``[T]`` int64, position of each token in the flattened padded rows.
        token: ``[B * L]`` int64, the token at each position of the flattened padded rows; ``T`` at padding.
    """

    shape: tuple[int, int]
    lengths: Tensor
    position: Tensor
    token: Tensor

    @classmethod
    def of(cls, lengths: Tensor, width: int) -> PackedSequences:
        """Describe rows of ``lengths [B]`` int64, padded or cut to ``width`` (``L``) tokens."""
        lengths = lengths.clamp(max=width)
        is_real = torch.arange(width, device=lengths.device) < lengths[:, None]
        return cls((len(lengths), width), lengths, *_numbering(is_real.flatten()))

    def pad(self, tokens: Tensor) -> Tensor:
        """Pad tokens: ``[T, W]`` to ``[B, L, W]``, 0 at padding."""
        if len(self.position) < len(self.token):
            tokens = _Pad.apply(tokens, self.position, self.token)  # type: ignore[no-untyped-call]
        return tokens.view(*self.shape, tokens.shape[1])

    def pack(self, rows: Tensor) -> Tensor:
        """Pack rows: ``[B, L, W]`` to ``[T, W]``."""
        flat = rows.reshape(len(self.token), rows.shape[2])
        return _Pack.apply(flat, self.position, self.token) if len(self.position) < len(self.token) else flat  # type: ignore[no-untyped-call]


def select_tokens(selected: Tensor, *tokens: Tensor) -> list[Tensor]:
    """Select the tokens at which ``selected [T]`` bool is true: each ``[T, W]`` to ``[P, W]``, in their order."""
    numbering = _numbering(selected)
    return [_Pack.apply(each, *numbering) for each in tokens]  # type: ignore[no-untyped-call]


def _numbering(is_token: Tensor) -> tuple[Tensor, Tensor]:
    """``position`` and ``token`` of ``PackedSequences`` for the true entries of ``is_token [B * L]`` bool."""
    position = is_token.nonzero()[:, 0]
    return position, torch.where(is_token, is_token.cumsum(0) - 1, len(position))


# index_select and its inverse, which is an index_select too: autograd's own backward would add up rows one by one.


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, position: Tensor, token: Tensor) -> Tensor:
        ctx.save_for_backward(position)
        return F.pad(tokens, (0, 0, 0, 1)).index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        (position,) = ctx.saved_tensors
        return grad[0].index_select(0, position), None, None


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, position: Tensor, token: Tensor) -> Tensor:
        ctx.save_for_backward(token)
        return flat.index_select(0, position)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        (token,) = ctx.saved_tensors
        return F.pad(grad[0], (0, 0, 0, 1)).index_select(0, token), None, None
