"""Item tokens and their rows; the only module that knows where item numbers start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from recbole_qbert.utils.io import digest

if TYPE_CHECKING:  # data preparation works without torch
    from torch import Tensor

Numbers = TypeVar("Numbers", int, np.ndarray, "Tensor")
UNKNOWN = -1


@dataclass(frozen=True)
class ItemVocabulary:
    """The item tokens of a catalog, in the order of their rows.

    Rows of features and of semantic IDs start at 0. RecBole's item ids, which are also the rows of a sequence model, start
    at 1: their 0 is padding.

    Attributes:
        tokens: ``N`` different item tokens.

    >>> vocabulary = ItemVocabulary(("ball", "bat"))
    >>> vocabulary.rows(["bat", "glove"])
    array([ 1, -1])
    >>> vocabulary.to_recbole(vocabulary.rows(["bat", "glove"]))
    array([2, 0])
    """

    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Token -> row from 0."""
        return {token: row for row, token in enumerate(self.tokens)}

    def rows(self, tokens: Iterable[str]) -> np.ndarray:
        """Look up the rows of tokens, ``[len(tokens)]`` int64; -1 for a token that is not in the vocabulary."""
        return np.array([self.row_of.get(token, UNKNOWN) for token in tokens], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """Hex digest of the tokens and their order."""
        return digest(self.tokens)

    @staticmethod
    def from_recbole(ids: Numbers) -> Numbers:
        """Turn RecBole's item ids into rows; padding (0) becomes -1."""
        return ids - 1

    @staticmethod
    def to_recbole(rows: Numbers) -> Numbers:
        """Turn rows into RecBole's item ids; an unknown item (-1) becomes padding (0)."""
        return rows + 1
