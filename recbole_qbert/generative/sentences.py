"""Sentences that name a user and a history, written as tokens without a string in the loop (P5, VIP5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.generative.packed_tokens import EMPTY
from recbole_qbert.generative.vocabulary import END
from recbole_qbert.generative.words import Words, matrix_of

USER, HISTORY = "{user}", "{history}"


@dataclass(frozen=True)
class SentenceWriter:
    """Write sentences of templates.

    Attributes:
        templates: of each the tokens between its slots, and the slots.
        users: ``[n_users, P]`` int64 tokens of each user by RecBole's user id; -1 behind the end.
        separators: ``[s, W]`` int64 tokens between two items, of which a draw chooses one; -1 behind the end.
        items: ``[N + 1, S]`` int64 tokens of each item in a history; -1 behind the end, and throughout for the padding.
    """

    templates: tuple[tuple[Tensor | str, ...], ...]
    users: Tensor
    separators: Tensor
    items: Tensor

    @classmethod
    def of(cls, words: Words, templates: Sequence[str], users: Sequence[str], separators: Sequence[str]) -> SentenceWriter:
        """Look all words up; ``items`` are put in later, because their tokens may be new ones behind those of all words.

        Args:
            words: the tokens of words.
            templates: sentences with the words ``{user}`` and ``{history}``.
            users: word of each user, by RecBole's user id.
            separators: words between two items.
        """
        return cls(
            tuple(_parts(words, template) for template in templates),
            matrix_of([words.pieces(user) for user in users]),
            matrix_of([words.pieces(separator) for separator in separators]),
            torch.empty(0, 0, dtype=torch.int64),
        )

    def write(self, template: int, items: Tensor, users: Tensor, separator: Tensor) -> Tensor:
        """Write one sentence a row, and the end mark.

        Args:
            template: number of the template.
            items: ``[B, n]`` int64 RecBole's item ids, oldest first; padding (0) anywhere.
            users: ``[B]`` int64 RecBole's user ids.
            separator: ``[B]`` int64 number of the separator.

        Returns:
            ``[B, W]`` int64 tokens; -1 where there is none.
        """
        device, parts = items.device, []
        for part in self.templates[template]:
            if isinstance(part, Tensor):
                parts.append(part.to(device).expand(len(items), -1))
            else:
                parts.append(self.users.to(device)[users] if part == USER else self._history(items, separator))
        return torch.cat([*parts, items.new_full((len(items), 1), END)], 1)

    def _history(self, items: Tensor, separator: Tensor) -> Tensor:
        """Write the items with separators between them, ``[B, n (W + S)]``."""
        there = items > 0
        between = there & (there.cumsum(1) > 1)
        words = self.separators.to(items.device)[separator][:, None].expand(-1, items.shape[1], -1)
        words = torch.where(between[:, :, None], words, EMPTY)
        return torch.cat([words, self.items.to(items.device)[items]], 2).flatten(1)


def word_numbers(tokens: Tensor, lengths: Tensor, starts: Tensor) -> Tensor:
    """Number the word that each token belongs to, from 1 in each row; 0 at the end mark (P5's whole-word numbers).

    Args:
        tokens: ``[T]`` int64, packed row by row.
        lengths: ``[B]`` int64 tokens of each row.
        starts: ``[T]`` bool, tokens that start a word.

    Returns:
        ``[T]`` int64.
    """
    count = starts.long().cumsum(0)
    before = F.pad(count, (1, 0))[lengths.cumsum(0) - lengths]  # words of the rows before
    return (count - before.repeat_interleave(lengths)).masked_fill(tokens == END, 0)


def _parts(words: Words, template: str) -> tuple[Tensor | str, ...]:
    """Cut a template at its slots: the tokens between them, and the slots' names.

    Raises:
        ValueError: the template lacks the history.
    """
    if HISTORY not in template.split():
        raise ValueError(f"template {template!r} has no {HISTORY}")
    parts: list[Tensor | str] = []
    constant: list[int] = []
    for word in template.split():
        if word in (USER, HISTORY):
            parts += [torch.tensor(constant, dtype=torch.int64), word]
            constant = []
        else:
            constant += words.pieces(word)
    return (*parts, torch.tensor(constant, dtype=torch.int64))
