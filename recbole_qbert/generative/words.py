"""Words of sentences as tokens: by the tokenizer of a pretrained T5, or, from scratch, by a list of what occurs.

A sentence is cut at its spaces, and every word is looked up alone. For a SentencePiece tokenizer this is the same as looking
up the sentence, because its pieces do not cross spaces.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recbole_qbert.generative.vocabulary import FIRST

#: SentencePiece's mark of a piece that starts a word.
MARK = "\N{LOWER ONE EIGHTH BLOCK}"
_PARTS = re.compile(rf"{MARK}?\d|\D+")


class Words(Protocol):
    """Number the pieces of words."""

    def pieces(self, word: str) -> list[int]:
        """Return the tokens of a word that stands after a space."""

    def starts(self) -> Tensor:
        """Tell which tokens start a word, ``[V]`` bool."""

    @property
    def size(self) -> int:
        """Return ``V``, the number of tokens so far."""


class WordList:
    """Number words as they occur: a digit is a piece, and what stands between digits is one.

    So ``user_17`` is ``user_``, ``1``, ``7``. A piece at the start of a word is another one than the same piece within it,
    as in SentencePiece. Only what occurs has a row in the token table.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def pieces(self, word: str) -> list[int]:
        """Return the tokens of a word, new ones for new pieces."""
        return [self._tokens.setdefault(piece, FIRST + len(self._tokens)) for piece in _PARTS.findall(MARK + word)]

    def starts(self) -> Tensor:
        """Tell which tokens start a word, ``[V]`` bool."""
        return torch.tensor([False] * FIRST + [piece.startswith(MARK) for piece in self._tokens])

    @property
    def size(self) -> int:
        """Return the number of tokens so far, those of padding and end included."""
        return FIRST + len(self._tokens)


class PretrainedWords:
    """Look words up in the tokenizer of a pretrained T5.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
        rows: rows of the pretrained token table, which may be more than the tokenizer has pieces.
        name: folder or name of the weights, for errors.

    Raises:
        ValueError: the tokenizer has more pieces than the table has rows, or is not a T5's.
    """

    def __init__(self, tokenizer: Any, rows: int, name: str) -> None:
        count = tokenizer.get_vocab_size()
        if count > rows:
            raise ValueError(f"backbone {name}: its tokenizer has {count} pieces, its token table {rows} rows")
        if tokenizer.token_to_id("<pad>") != 0 or tokenizer.token_to_id("</s>") != 1:
            raise ValueError(f"backbone {name}: its tokenizer has no <pad> at 0 and </s> at 1, so it is not of a T5")
        self.tokenizer, self.size = tokenizer, rows
        pieces = [tokenizer.id_to_token(number) or "" for number in range(count)]
        self._starts = torch.tensor([piece.startswith(MARK) for piece in pieces] + [False] * (rows - count))

    def pieces(self, word: str) -> list[int]:
        """Return the tokens of a word."""
        tokens: list[int] = self.tokenizer.encode(word, add_special_tokens=False).ids
        return tokens

    def starts(self) -> Tensor:
        """Tell which tokens start a word, ``[V]`` bool."""
        return self._starts


def read_tokenizer(folder: Path) -> Any:
    """Read the tokenizer of a folder that transformers' ``save_pretrained`` wrote; no code of the folder is run.

    Raises:
        FileNotFoundError: the folder has no ``tokenizer.json``.
        ValueError: the file is damaged.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"backbone is {str(folder)!r}, which has weights and no {file.name}; save the tokenizer there, too "
            "(transformers' AutoTokenizer.from_pretrained(...).save_pretrained), or leave backbone out to train from scratch"
        )
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own for a damaged file
        raise ValueError(
            f"backbone is {str(folder)!r}, whose {file.name} is no tokenizer ({error}); save the tokenizer again, or leave "
            "backbone out to train from scratch"
        ) from error


def matrix_of(rows: list[list[int]]) -> Tensor:
    """Put rows of tokens below each other, ``[R, W]`` int64, filled with -1 on the right."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), width)
