"""The IDs of a catalog as a trie in flat arrays: which tokens may follow a prefix, and which items end there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

ROOT = 0


@dataclass(frozen=True)
class Trie:
    """Nodes in breadth-first order; the children of a node are consecutive, in ascending order of their token.

    A node may hold items and have children, too: an ID may be a prefix of another. Several items may have one ID.

    Attributes:
        token: ``[nodes]`` int64, the token that leads to the node; 0, the decoder's start, at the root.
        parent: ``[nodes]`` int64; the root is its own.
        depth: ``[nodes]`` int64; 0 at the root.
        first_child: ``[nodes + 1]`` int64: node ``n`` has the children ``first_child[n]`` to ``first_child[n + 1] - 1``.
        first_item: ``[nodes + 1]`` int64: those of node ``n`` are ``items[first_item[n] : first_item[n + 1]]``.
        items: ``[entries]`` int64, items in the order of their nodes.
        node_of: ``[N]`` int64, the node of each item; -1 for an item that has no ID.
    """

    token: Tensor
    parent: Tensor
    depth: Tensor
    first_child: Tensor
    first_item: Tensor
    items: Tensor
    node_of: Tensor

    @classmethod
    def of(cls, ids: np.ndarray) -> Trie:
        """Build the trie.

        Args:
            ids: ``[N, K]`` int tokens of each item; -1 behind the end of an ID. A row of -1 has no ID (RecBole's padding, or
                an item without the modality) and is not in the trie.

        Raises:
            ValueError: an ID has a hole, or there is no ID at all.
        """
        ids = np.asarray(ids, dtype=np.int64)
        real = ids >= 0
        length = real.sum(1)
        if (real != (np.arange(ids.shape[1]) < length[:, None])).any():
            row = int(np.flatnonzero((real != (np.arange(ids.shape[1]) < length[:, None])).any(1))[0])
            raise ValueError(f"the ID of item {row} is {ids[row].tolist()}: -1 may stand behind its end only")
        members = np.flatnonzero(length)
        if not len(members):
            raise ValueError("no item has an ID; there is nothing to generate")
        tokens, parents, depths = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
        node_of = np.full(len(ids), -1, np.int64)
        node = np.zeros(len(ids), np.int64)  # of each item's prefix so far
        made = 1
        for level in range(ids.shape[1]):
            node_of[members[length[members] == level]] = node[members[length[members] == level]]
            members = members[length[members] > level]
            if not len(members):
                break
            pairs, number = np.unique(np.stack([node[members], ids[members, level]], 1), axis=0, return_inverse=True)
            node[members] = made + number.ravel()
            tokens.append(pairs[:, 1])
            parents.append(pairs[:, 0])
            depths.append(np.full(len(pairs), level + 1))
            made += len(pairs)
        node_of[members] = node[members]
        parent = np.concatenate(parents)
        children = np.bincount(parent[1:], minlength=made)
        own = np.bincount(node_of[node_of >= 0], minlength=made)
        items = np.argsort(node_of, kind="stable")[(node_of < 0).sum() :]
        arrays = (
            np.concatenate(tokens), parent, np.concatenate(depths),
            1 + np.cumsum([0, *children]), np.cumsum([0, *own]), items, node_of,
        )  # fmt: skip
        return cls(*(torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for array in arrays))

    def __len__(self) -> int:
        return len(self.token)

    @cached_property
    def height(self) -> int:
        """Return the length of the longest ID."""
        return int(self.depth[-1])

    @cached_property
    def widest(self) -> int:
        """Return the largest number of nodes with children at one depth: how many states a full expansion takes."""
        inner = self.depth[self.first_child[1:] > self.first_child[:-1]]
        return int(inner.bincount().max())

    def to(self, device: torch.device) -> Trie:
        """Return the trie on a device."""
        return Trie(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """List the children of nodes.

        Args:
            nodes: ``[P]`` int64.

        Returns:
            ``(entry [C], child [C])`` int64: the entry of ``nodes`` whose child it is, ascending, and the child.
        """
        return _ranges(self.first_child[nodes], self.first_child[nodes + 1])

    def items_at(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """List the items whose ID ends at nodes: ``(entry [C], item [C])`` int64, as of ``children``."""
        entry, place = _ranges(self.first_item[nodes], self.first_item[nodes + 1])
        return entry, self.items[place]

    def has_children(self, nodes: Tensor) -> Tensor:
        """Return whether each node has children, ``[P]`` bool."""
        return self.first_child[nodes + 1] > self.first_child[nodes]

    def has_items(self, nodes: Tensor) -> Tensor:
        """Return whether an ID ends at each node, ``[P]`` bool."""
        return self.first_item[nodes + 1] > self.first_item[nodes]


def _ranges(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Write out ranges of numbers one after another: which range each number is of, and the numbers."""
    count = end - start
    entry = torch.arange(len(count), device=count.device).repeat_interleave(count)
    within = torch.arange(len(entry), device=count.device) - (count.cumsum(0) - count)[entry]
    return entry, start[entry] + within
