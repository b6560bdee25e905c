"""Token sequences without padding: sorted by length, one after another, in groups of one length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recbole_qbert.sequence.packing import PackedSequences

EMPTY = -1  # a place of a matrix of tokens at which there is no token


@dataclass(frozen=True)
class LengthGroups:
    """Rows in ascending order of length, whose ``T`` tokens are packed row by row.

    Attributes:
        groups: rows of like length. On a CPU all rows of a group have one length, so that nothing is padded; elsewhere one
            group holds all rows, because many small operations are slow there.
    """

    groups: tuple[PackedSequences, ...]

    @classmethod
    def of(cls, lengths: Tensor) -> LengthGroups:
        """Group rows of ascending ``lengths [B]`` int64.

        Raises:
            ValueError: the lengths are not ascending.
        """
        if len(lengths) and bool((lengths[1:] < lengths[:-1]).any()):
            raise ValueError("the lengths of packed rows must ascend; sort the rows by length first")
        if lengths.device.type != "cpu":
            return cls((PackedSequences.of(lengths, int(lengths[-1])),))
        values, counts = torch.unique_consecutive(lengths, return_counts=True)
        groups = zip(values.tolist(), counts.tolist(), strict=True)
        return cls(tuple(PackedSequences.of(torch.full((count,), length), length) for length, count in groups))

    @cached_property
    def lengths(self) -> Tensor:
        """Return the length of each row, ``[B]`` int64."""
        return torch.cat([group.lengths for group in self.groups])

    @property
    def longest(self) -> int:
        """Return the length of the longest row."""
        return max(group.shape[1] for group in self.groups)

    def split_tokens(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Split what belongs to tokens, ``[T, ...]``, into the parts of the groups."""
        return tokens.split([len(group.position) for group in self.groups])

    def split_rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Split what belongs to rows, ``[B, ...]``, into the parts of the groups."""
        return rows.split([group.shape[0] for group in self.groups])


@dataclass(frozen=True)
class PackedTokens:
    """Token sequences of a batch.

    Attributes:
        tokens: ``[T]`` int64.
        rows: the packed rows, shorter ones first.
        order: ``[B]`` int64, the row of the batch that each packed row is.
    """

    tokens: Tensor
    rows: LengthGroups
    order: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> PackedTokens:
        """Pack the tokens of ``matrix [B, W]`` int64, left to right; places that hold -1 are left out.

        Raises:
            ValueError: a row has no token.
        """
        real = matrix != EMPTY
        lengths = real.sum(1)
        if not bool((lengths > 0).all()):
            raise ValueError("a sequence has no tokens; a source holds at least the end mark")
        order = lengths.argsort(stable=True)
        return cls(matrix[order][real[order]], LengthGroups.of(lengths[order]), order)

    def unsorted(self, rows: Tensor) -> Tensor:
        """Bring what belongs to packed rows, ``[B, ...]``, into the order of the batch."""
        return torch.empty_like(rows).index_copy_(0, self.order, rows)
