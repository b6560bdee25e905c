"""The tree of semantic IDs: which codes there are, how many items lie under each, and which of them a page can list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from recbole_qbert.quantization.semantic_ids import SemanticIDs

LEAST = 4  # items a branch lists before others of its parent are left out


@dataclass(frozen=True)
class CodeSet:
    """The levels that belong together: those of one quantizer.

    Attributes:
        prefixes: ``K`` level names.
        rows: ``[n]`` the items that have these codes, as rows of the catalog, in the order of their codes.
        codes: ``[n, K]`` their codes, in that order.
    """

    prefixes: tuple[str, ...]
    rows: np.ndarray
    codes: np.ndarray

    def token(self, level: int, code: int) -> str:
        """Write a code as ``<a_170>``."""
        return f"<{self.prefixes[level]}_{code}>"

    def rest(self, position: int, level: int) -> str:
        """Write the tokens of the item at ``position`` from a level on."""
        return "".join(self.token(number, code) for number, code in enumerate(self.codes[position]) if number >= level)


def code_sets(ids: SemanticIDs) -> list[CodeSet]:
    """Split IDs into code sets, as ``semantic_ids.prefixes_of`` names them: each begins with a letter a."""
    starts = [number for number, prefix in enumerate(ids.prefixes) if prefix[0].lower() == "a"]
    sets = []
    for start, stop in zip(starts, [*starts[1:], len(ids.prefixes)], strict=True):
        codes = ids.codes[:, start:stop]
        rows = np.flatnonzero((codes >= 0).all(1))
        order = rows[np.lexsort(codes[rows].T[::-1])]
        sets.append(CodeSet(ids.prefixes[start:stop], order, codes[order]))
    return sets


@dataclass(frozen=True)
class Branch:
    """Items whose IDs have the same first ``level`` codes: places ``start`` to ``stop`` of a code set."""

    of: CodeSet
    start: int
    stop: int
    level: int

    @property
    def count(self) -> int:
        """Items under it, listed or not."""
        return self.stop - self.start

    @property
    def prefix(self) -> str:
        """``<a_170><b_3>``; '' for the root."""
        return "".join(self.of.token(number, int(self.of.codes[self.start, number])) for number in range(self.level))

    @cached_property
    def children(self) -> tuple[Branch, ...]:
        """One branch per code of the next level; levels at which all items agree are skipped, except the first."""
        if self.level == self.of.codes.shape[1]:
            return ()
        column = self.of.codes[self.start : self.stop, self.level]
        cuts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), self.count]
        parts = [Branch(self.of, self.start + a, self.start + b, self.level + 1) for a, b in pairwise(cuts)]
        return parts[0].children if len(parts) == 1 and self.level and parts[0].children else tuple(parts)


@dataclass(frozen=True)
class Listing:
    """Part of a branch that a page shows.

    Attributes:
        branch: the branch.
        inner: branches shown under it, in the order of their codes.
        places: items listed directly under it, in the order of their codes.
        left_out: items under it that neither ``inner`` nor ``places`` count.
    """

    branch: Branch
    inner: tuple[Listing, ...]
    places: tuple[int, ...]
    left_out: int

    def listed(self) -> Iterator[int]:
        """Iterate over the places of all items listed under it."""
        yield from self.places
        for listing in self.inner:
            yield from listing.listed()


def choose(branch: Branch, room: int) -> Listing:
    """List a branch's items, or about ``room`` of them where there are more: of every code at the first level, below it of
    the codes with most items."""
    if branch.count <= room:
        room = branch.count
    inner: list[Listing] = []
    places: list[int] = []
    left_out = 0
    left = room
    every = not branch.level and len(branch.children) <= room
    for child in sorted(branch.children, key=lambda child: (-child.count, child.start)):
        share = min(child.count, max(LEAST, -(-room * child.count // branch.count)))
        if left <= 0 and not every:
            left_out += child.count
        elif child.count == 1 and branch.level:
            places.append(child.start)
        else:
            inner.append(choose(child, share))
        left -= share
    if not branch.children:  # items with one and the same ID, which a .sid file cannot hold
        places = list(range(branch.start, branch.start + room))
        left_out = branch.count - room
    inner.sort(key=lambda listing: listing.branch.start)
    return Listing(branch, tuple(inner), tuple(sorted(places)), left_out)


def root(code_set: CodeSet) -> Branch:
    """Return the branch of all items."""
    return Branch(code_set, 0, len(code_set.rows), 0)
