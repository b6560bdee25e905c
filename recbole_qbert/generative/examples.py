"""Training examples of a generative model: tasks over whole histories, assembled batch by batch from integer arrays.

An example is named by a number. What is drawn for it depends on the seed, the epoch and this number only, so that an epoch
can be repeated, resumed, and shared by several processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.generative.packed_tokens import EMPTY
from recbole_qbert.generative.vocabulary import END, Vocabulary, with_end


@dataclass(frozen=True)
class Task:
    """What is read and what is written.

    Attributes:
        name: of the task.
        source: languages that the source may be in, by number.
        target: language of the target for each of ``source``. Of several, one is drawn for each example.
        next_item: the source is a history and the target the item after it; otherwise both are of one item.
        prompt: number of the task's prompt; -1 for none.
    """

    name: str
    source: tuple[int, ...]
    target: tuple[int, ...]
    next_item: bool = True
    prompt: int = -1


@dataclass(frozen=True)
class ExampleBatch:
    """Examples of a batch.

    Attributes:
        source: ``[B, W]`` int64 tokens; -1 where a row has none.
        target: ``[B, Q]`` int64 tokens; -1 behind the end of a target.
    """

    source: Tensor
    target: Tensor

    def to(self, device: torch.device) -> ExampleBatch:
        """Return the batch on a device."""
        return ExampleBatch(self.source.to(device), self.target.to(device))

    def share(self, number: int, shares: int) -> ExampleBatch:
        """Return every ``shares``-th row, from row ``number`` on."""
        return ExampleBatch(self.source[number::shares], self.target[number::shares])

    @property
    def tokens(self) -> int:
        """Return the number of target tokens."""
        return int((self.target >= 0).sum())

    def total(self, length_power: int) -> int:
        """Return what a sum of losses is divided by: the tokens, or the rows where each is a mean (``length_power`` > 0)."""
        return len(self.target) if length_power else self.tokens


@dataclass(frozen=True)
class Histories:
    """Training histories, one after another.

    Attributes:
        items: ``[I]`` int64 RecBole's item ids.
        start: ``[U]`` int64, place of each history's first item.
        length: ``[U]`` int64.
        user: ``[U]`` int64 RecBole's user ids.
    """

    items: Tensor
    start: Tensor
    length: Tensor
    user: Tensor

    @classmethod
    def of(cls, histories: Sequence[np.ndarray], users: np.ndarray) -> Histories:
        """Join histories of RecBole's item ids, with the user of each."""
        length = torch.tensor([len(history) for history in histories], dtype=torch.int64)
        joined = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
        return cls(torch.from_numpy(joined), length.cumsum(0) - length, length, torch.from_numpy(np.asarray(users)).long())


class Examples:
    """The examples of an epoch.

    Args:
        tasks: the tasks; of each, an epoch has every example once.
        vocabulary: the tokens.
        histories: the training histories.
        longest: items of a history that are read, the newest ones.
        prompt_tokens: tokens of a prompt.
        seed: of what is drawn.

    Attributes:
        epoch: number of the epoch, which changes what is drawn.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        vocabulary: Vocabulary,
        histories: Histories,
        longest: int,
        prompt_tokens: int = 0,
        seed: int = 0,
    ) -> None:
        self.tasks, self.vocabulary, self.histories = tuple(tasks), vocabulary, histories
        self.longest, self.prompt_tokens, self.seed, self.epoch = longest, prompt_tokens, seed, 0
        place = torch.arange(len(histories.items))
        row = torch.arange(len(histories.length)).repeat_interleave(histories.length)
        is_target = place > histories.start[row]
        self._place, self._row = place[is_target], row[is_target]
        self._members = [self._of_task(task) for task in self.tasks]
        self._bounds = torch.tensor([0, *(len(members) for members in self._members)]).cumsum(0)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def counts(self) -> dict[str, int]:
        """Return the number of examples of each task."""
        return {task.name: len(members) for task, members in zip(self.tasks, self._members, strict=True)}

    def __getitem__(self, numbers: Tensor) -> ExampleBatch:
        """Assemble the examples of these numbers, ``[B]`` int64; rows keep their order."""
        task_of = torch.bucketize(numbers, self._bounds[1:], right=True)
        sources, targets, rows = [], [], []
        for number in task_of.unique().tolist():
            at = (task_of == number).nonzero()[:, 0]
            batch = self._assemble(
                self.tasks[number], self._members[number][numbers[at] - self._bounds[number]], numbers[at]
            )
            sources.append(batch.source)
            targets.append(batch.target)
            rows.append(at)
        back = torch.cat(rows).argsort()
        return ExampleBatch(stack(sources)[back], stack(targets)[back])

    def of_users(self, users: Tensor) -> ExampleBatch:
        """Assemble the first task's examples of some users (RecBole's ids), in their order."""
        number = torch.isin(self.histories.user[self._row[self._members[0]]], users).nonzero()[:, 0]
        return self[number]

    def source(self, language: int, items: Tensor, users: Tensor | None = None, prompt: int = -1) -> Tensor:
        """Write sources: prompt, user, the items' IDs one after another, end mark.

        Args:
            language: number of the language.
            items: ``[B, n]`` int64 RecBole's item ids, oldest first; padding (0) anywhere.
            users: ``[B]`` int64 RecBole's user ids.
            prompt: number of the prompt; -1 for none.

        Returns:
            ``[B, W]`` int64 tokens; -1 where there is none.
        """
        parts = []
        if prompt >= 0 and self.prompt_tokens:
            parts.append(self.vocabulary.prompt(prompt, self.prompt_tokens).to(items.device).expand(len(items), -1))
        if self.vocabulary.users and users is not None:
            parts.append(self.vocabulary.user_tokens(users)[:, None])
        ids = self.vocabulary.languages[language].ids.to(items.device)
        parts.append(ids[items].flatten(1))
        return torch.cat([*parts, items.new_full((len(items), 1), END)], 1)

    def target(self, language: int, items: Tensor) -> Tensor:
        """Write targets ``[B]`` int64: the item's ID and the end mark, ``[B, K + 1]``; -1 behind it."""
        return with_end(self.vocabulary.languages[language].ids.to(items.device)[items])

    def history(self, place: Tensor, first: Tensor) -> Tensor:
        """Return the newest items before places: ``[B]`` int64, from ``first [B]`` on, to ``[B, longest]``, 0 in front."""
        source = place[:, None] + torch.arange(-self.longest, 0)
        return torch.where(source >= first[:, None], self.histories.items[source.clamp(min=0)], 0)

    # ---------------------------------------------------------------------------------------------------------- parts
    def _of_task(self, task: Task) -> Tensor:
        """Return the places of a task's examples: of the targets, or items; those that have the IDs it needs."""
        languages = self.vocabulary.languages
        if task.next_item:
            target = self.histories.items[self._place]
            usable = torch.stack([languages[number].has(target) for number in task.target]).any(0)
            return usable.nonzero()[:, 0]
        items = torch.arange(1, len(languages[0].ids))
        needed = {*task.source, *task.target}
        return items[torch.stack([languages[number].has(items) for number in needed]).all(0)]

    def _assemble(self, task: Task, members: Tensor, numbers: Tensor) -> ExampleBatch:
        """Assemble examples of one task; a draw chooses the direction of each."""
        if task.next_item:
            place, row = self._place[members], self._row[members]
            read = self.history(place, self.histories.start[row])
            written, users = self.histories.items[place], self.histories.user[row]
        else:
            read, written, users = members[:, None], members, None
        direction = draws(self.seed, self.epoch, numbers, len(task.source))
        if len(task.source) > 1:  # a target without a picture is not written in pictures
            can = torch.stack([self.vocabulary.languages[number].has(written) for number in task.target])
            direction = torch.where(can[direction, torch.arange(len(written))], direction, can.long().argmax(0))
        source, target, rows = [], [], []
        for way in direction.unique().tolist():
            at = (direction == way).nonzero()[:, 0]
            own = None if users is None else users[at]
            source.append(self.source(task.source[way], read[at], own, task.prompt))
            target.append(self.target(task.target[way], written[at]))
            rows.append(at)
        back = torch.cat(rows).argsort()
        return ExampleBatch(stack(source)[back], stack(target)[back])


def draws(seed: int, epoch: int, numbers: Tensor, choices: int | Tensor) -> Tensor:
    """Draw a number below ``choices`` for each example by a hash of seed, epoch and the example's number, ``[B]`` int64.

    The hash is the finalizer of splitmix64. ``choices`` may differ by example, ``[B]`` int64.
    """
    key = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9) % 2**64
    with np.errstate(over="ignore"):
        mixed = numbers.cpu().numpy().astype(np.uint64) * np.uint64(0xD1342543DE82EF95) + np.uint64(key)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return torch.from_numpy((mixed >> np.uint64(33)).astype(np.int64)) % choices


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Put matrices of different widths below each other, filled with -1 on the right."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, width - part.shape[1]), value=EMPTY) for part in parts])
