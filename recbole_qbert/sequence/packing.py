"""Rows of different length as packed tokens, which is how layers take them, and padded, as torch's attention needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class PackedSequences:
    """Left-aligned rows of like length, and their tokens one after another, row by row.

    Attributes:
        shape: ``(B, L)`` of the padded rows.
        lengths: ``[B]`` int64.
        real: ``[T]`` int64, where each token stands in the flattened rows.
        place: ``[B * L]`` int64, the token at each place of the flattened rows; ``T`` at padding.
    """

    shape: tuple[int, int]
    lengths: Tensor
    real: Tensor
    place: Tensor

    @classmethod
    def of(cls, lengths: Tensor, width: int) -> PackedSequences:
        """Rows of ``lengths [B]``, padded to ``width`` (``L``); of a longer one, the first ``L`` tokens."""
        lengths = lengths.clamp(max=width)
        is_real = torch.arange(width, device=lengths.device) < lengths[:, None]
        return cls((len(lengths), width), lengths, *_places(is_real.flatten()))

    def pad(self, tokens: Tensor) -> Tensor:
        """``[T, W]`` to ``[B, L, W]``, 0 at padding."""
        if len(self.real) < len(self.place):
            tokens = _Pad.apply(tokens, self.real, self.place)  # type: ignore[no-untyped-call]
        return tokens.view(*self.shape, tokens.shape[1])

    def pack(self, rows: Tensor) -> Tensor:
        """``[B, L, W]`` to ``[T, W]``."""
        flat = rows.reshape(len(self.place), rows.shape[2])
        return _Pack.apply(flat, self.real, self.place) if len(self.real) < len(self.place) else flat  # type: ignore[no-untyped-call]


def pick(asked: Tensor, *tokens: Tensor) -> list[Tensor]:
    """Of each ``tokens [T, W]`` those for which ``asked [T]`` is true, ``[P, W]`` in their order."""
    places = _places(asked)
    return [_Pack.apply(each, *places) for each in tokens]  # type: ignore[no-untyped-call]


def _places(kept: Tensor) -> tuple[Tensor, Tensor]:
    """``real`` and ``place`` of ``Rows``, for the true ones of ``kept``, ``[B * L]`` bool."""
    real = kept.nonzero()[:, 0]
    return real, torch.where(kept, kept.cumsum(0) - 1, len(real))


# index_select and its inverse, which is one too: autograd's own would add up rows one by one.


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, real: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(real)
        return F.pad(tokens, (0, 0, 0, 1)).index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        (real,) = ctx.saved_tensors
        return grad[0].index_select(0, real), None, None


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Tensor, real: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return flat.index_select(0, real)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        return F.pad(grad[0], (0, 0, 0, 1)).index_select(0, place), None, None
