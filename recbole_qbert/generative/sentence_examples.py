"""Training examples that are sentences: which target, which part of the history, which template, drawn by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_qbert.generative.examples import ExampleBatch, Examples, Histories, Task, draws, stack
from recbole_qbert.generative.sentences import SentenceWriter
from recbole_qbert.generative.vocabulary import Vocabulary

# What is drawn for one example must not depend on each other: each draw has a seed of its own.
_TEMPLATE, _PLACE, _START, _SEPARATOR = (number << 32 for number in range(4))


@dataclass(frozen=True)
class Drawing:
    """How examples are drawn from histories.

    Attributes:
        rule: ``every``: each position but the first is a target; ``random``: as many examples, of which each has a random
            target of its history (P5-CID's release); ``last``: one example a history, whose target is one of the last three
            and whose history starts at one of the first three items (VIP5's release).
        count: examples of each target, or of each history with ``last``, in an epoch.
        templates: numbers of the templates of training. The ``count`` examples go through them from a random one on.
    """

    rule: str
    count: int
    templates: Sequence[int]


class SentenceExamples(Examples):
    """The examples of an epoch.

    Args:
        vocabulary: the tokens, and the IDs that are written.
        histories: the training histories.
        longest: items of a history that are read, the newest ones.
        writer: writes the sources.
        drawing: how examples are drawn.
        test_template: number of the template for validation and test.
        seed: of what is drawn.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        histories: Histories,
        longest: int,
        writer: SentenceWriter,
        drawing: Drawing,
        test_template: int,
        seed: int = 0,
    ) -> None:
        super().__init__([Task("next item", (0,), (0,))], vocabulary, histories, longest, seed=seed)
        self.writer, self.drawing, self.test_template = writer, drawing, test_template
        learned = (histories.length > 1).nonzero()[:, 0]
        self._rows = learned if drawing.rule == "last" else self._row

    def __len__(self) -> int:
        return len(self._rows) * self.drawing.count

    def counts(self) -> dict[str, int]:
        """Return the number of examples."""
        return {"next item": len(self)}

    def __getitem__(self, numbers: Tensor) -> ExampleBatch:
        """Assemble the examples of these numbers, ``[B]`` int64; rows keep their order."""
        place, first = self._choose(numbers)
        template, separator = self._template(numbers), self._draw(_SEPARATOR, numbers, len(self.writer.separators))
        read, user = self.history(place, first), self.histories.user[self._rows[numbers % len(self._rows)]]
        sources, rows = [], []
        for number in template.unique().tolist():
            at = (template == number).nonzero()[:, 0]
            sources.append(self.writer.write(number, read[at], user[at], separator[at]))
            rows.append(at)
        source = stack(sources)[torch.cat(rows).argsort()]
        return ExampleBatch(source, self.target(0, self.histories.items[place]))

    def of_users(self, users: Tensor) -> ExampleBatch:
        """Assemble the first example of each target, or history, of some users (RecBole's ids), in their order."""
        return self[torch.isin(self.histories.user[self._rows], users).nonzero()[:, 0]]

    def source(self, language: int, items: Tensor, users: Tensor | None = None, prompt: int = -1) -> Tensor:
        """Write sources in the template of validation and test, with the first separator; as of ``Examples``."""
        del language
        assert users is not None
        return self.writer.write(self.test_template if prompt < 0 else prompt, items, users, torch.zeros_like(users))

    # ---------------------------------------------------------------------------------------------------------- parts
    def _choose(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the place of each example's target, and that of the first item that is read, both ``[B]`` int64."""
        entry = numbers % len(self._rows)
        row = self._rows[entry]
        start, length = self.histories.start[row], self.histories.length[row]
        if self.drawing.rule == "every":
            return self._place[entry], start
        if self.drawing.rule == "random":
            return start + 1 + self._draw(_PLACE, numbers, length - 1), start
        # Places from 0: the target is one of the last three, behind two items at least where there are so many.
        lowest = torch.minimum((length - 3).clamp(min=2), length - 1)
        target = lowest + self._draw(_PLACE, numbers, length - lowest)
        return start + target, start + self._draw(_START, numbers, (target - 1).clamp(min=1, max=3))

    def _template(self, numbers: Tensor) -> Tensor:
        """Choose templates: a random one of a target's first example, the next one of its next, ``[B]`` int64."""
        count = len(self.drawing.templates)
        entry, turn = numbers % len(self._rows), numbers // len(self._rows)
        return torch.tensor(self.drawing.templates)[(self._draw(_TEMPLATE, entry, count) + turn) % count]

    def _draw(self, what: int, numbers: Tensor, choices: int | Tensor) -> Tensor:
        return draws(self.seed + what, self.epoch, numbers, choices)
