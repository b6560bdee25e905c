"""The tokens of a generative model: padding, end mark, users, prompts, and the codes of each level of each language.

Only tokens that can occur have a row. The published models keep the 32,100 pieces of T5 beside them, which nothing reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PAD, END = 0, 1
FIRST = 2


def with_end(ids: Tensor) -> Tensor:
    """Put the end mark behind each ID: ``[..., K]`` int64, -1 behind the end, to ``[..., K + 1]``; no ID stays none."""
    length = (ids >= 0).sum(-1, keepdim=True)
    longer = F.pad(ids, (0, 1), value=-1)
    return longer.scatter(-1, length, torch.where(length > 0, END, -1))


@dataclass(frozen=True)
class Language:
    """IDs of items as tokens.

    Attributes:
        name: of the code set.
        ids: ``[N + 1, K]`` int64 tokens by RecBole's item ids; -1 at the padding item and at items without an ID.
        levels: first token and number of tokens of each level; empty where levels share tokens.
    """

    name: str
    ids: Tensor
    levels: tuple[tuple[int, int], ...] = ()

    def has(self, items: Tensor) -> Tensor:
        """Tell which items have an ID, bool of the shape of ``items``."""
        return self.ids[items, 0] >= 0


@dataclass(frozen=True)
class Vocabulary:
    """The rows of the token table.

    Attributes:
        size: ``V``, number of rows.
        first_user: token of the first user bucket.
        users: number of user buckets; 0 without users.
        first_prompt: first token of the prompts.
        languages: the languages, which share no token.
    """

    size: int
    first_user: int
    users: int
    first_prompt: int
    languages: tuple[Language, ...]

    @classmethod
    def of(
        cls, code_sets: Sequence[tuple[str, np.ndarray, Sequence[int]]], *, users: int = 0, prompts: int = 0, unused: int = 0
    ) -> Vocabulary:
        """Number the tokens.

        Args:
            code_sets: name, ``[N, K]`` codes (-1 for an item without) and ``K`` sizes of each language.
            users: number of user buckets.
            prompts: number of prompt tokens.
            unused: rows that no sequence holds, at the end: negatives of the softmax only.

        Raises:
            ValueError: a code is outside its level.
        """
        first_prompt = FIRST + users
        first = first_prompt + prompts
        languages = []
        for name, codes, sizes in code_sets:
            if (codes >= np.asarray(sizes)).any():
                raise ValueError(f"codes of {name} are beyond their levels' sizes {tuple(sizes)}")
            offset = first + np.cumsum([0, *sizes])
            ids = np.where(codes < 0, -1, codes + offset[:-1])
            padded = np.concatenate([np.full((1, codes.shape[1]), -1), ids]).astype(np.int64)
            levels = tuple(zip(offset[:-1].tolist(), map(int, sizes), strict=True))
            languages.append(Language(name, torch.from_numpy(padded), levels))
            first = int(offset[-1])
        return cls(first + unused, FIRST, users, first_prompt, tuple(languages))

    @property
    def code_rows(self) -> dict[str, tuple[int, int]]:
        """Return the first row and the number of rows of each level of each language, by a name such as ``text 0``."""
        return {f"{one.name} {level}": rows for one in self.languages for level, rows in enumerate(one.levels)}

    def user_tokens(self, users: Tensor) -> Tensor:
        """Return the token of each user, by the remainder of RecBole's user id; ``users`` int64."""
        return self.first_user + users % self.users

    def prompt(self, number: int, length: int) -> Tensor:
        """Return the tokens of a task's prompt, ``[length]`` int64."""
        return torch.arange(length) + self.first_prompt + number * length
