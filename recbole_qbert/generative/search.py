"""Walks over a trie of IDs: all of it, the best of each level (beam), or what can still reach a score.

Log-probabilities only fall from token to token. So the score of a prefix bounds those of all items below it, and a walk that
keeps every prefix at or above a score finds every item at or above it: no approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_qbert.generative.decoding import Sources, StepDecoder, log_probabilities
from recbole_qbert.generative.t5 import PAD, T5
from recbole_qbert.generative.trie import ROOT, Trie

#: Prefixes of all users in memory at a time. A walk of several users that needs more is cut into walks of fewer users.
MOST_PREFIXES = 1 << 15

#: Chooses the prefixes to go on with: ``(users [C], scores [C], number of users)`` to ascending places ``[C']``.
Keep = Callable[[Tensor, Tensor, int], Tensor]
#: Makes a ``Keep`` for some of the users.
KeepFor = Callable[[Tensor], Keep]


@dataclass(frozen=True)
class Found:
    """IDs that a walk has reached.

    Attributes:
        user: ``[F]`` int64 row of the sources, ascending.
        node: ``[F]`` int64 node of the trie at which IDs end.
        score: ``[F]`` float, the sum of the log-probabilities of the tokens.
    """

    user: Tensor
    node: Tensor
    score: Tensor

    def items(self, trie: Trie) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(user, item, score)`` of every item that has one of the IDs, each ``[E]``."""
        entry, item = trie.items_at(self.node)
        return self.user[entry], item, self.score[entry]


def everything() -> KeepFor:
    """Keep all prefixes."""
    return lambda users: lambda user, score, count: torch.arange(len(user), device=user.device)


def best(width: int) -> KeepFor:
    """Keep the ``width`` best prefixes of each user: beam search."""

    def keep(user: Tensor, score: Tensor, count: int) -> Tensor:
        places = top_places(user, score, count, width)
        return places[places >= 0].sort().values

    return lambda users: keep


def at_least(threshold: Tensor) -> KeepFor:
    """Keep prefixes at or above a score, ``threshold [B]`` float for each user."""

    def keep_for(users: Tensor) -> Keep:
        own = threshold[users]
        return lambda user, score, count: (score >= own[user]).nonzero()[:, 0]

    return keep_for


def walk(network: T5, trie: Trie, sources: Sources, keep_for: KeepFor, users: Tensor | None = None) -> Found:
    """Walk down a trie and score the IDs that are reached.

    Args:
        network: the network, in evaluation mode.
        trie: the IDs.
        sources: the encoded sources.
        keep_for: which prefixes to go on with.
        users: ``[U]`` int64, ascending: the rows of the sources to walk for; all by default.

    Returns:
        The IDs, with ``user`` a row of the sources.
    """
    users = torch.arange(len(sources), device=sources.mask.device) if users is None else users
    if not len(users):
        empty = users.new_empty(0)
        return Found(empty, empty, sources.mask.new_empty(0))
    chosen = sources if len(users) == len(sources) else sources.select(users)
    found = _walk(network, trie, chosen, keep_for(users))
    if found is None:  # too many prefixes at a time
        halves = [walk(network, trie, sources, keep_for, half) for half in users.tensor_split(2)]
        return Found(*(torch.cat([getattr(half, name) for half in halves]) for name in ("user", "node", "score")))
    return Found(users[found.user], found.node, found.score)


def _walk(network: T5, trie: Trie, sources: Sources, keep: Keep) -> Found | None:
    """Walk for all users at once; ``None`` if that takes too many prefixes."""
    count = len(sources)
    decoder = StepDecoder(network, sources, trie.height + 1)
    user = torch.arange(count, device=sources.mask.device)
    node, score = torch.full_like(user, ROOT), sources.mask.new_zeros(count)
    ancestors: list[Tensor] = []
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(trie.height):
        tokens = trie.token[node] if ancestors else torch.full_like(node, PAD)
        states = decoder.step(tokens, user, ancestors)
        entry, child = trie.children(node)
        child_score = score[entry] + log_probabilities(network, states, entry, trie.token[child])
        child_user = user[entry]
        ends = trie.has_items(child)
        found.append((child_user[ends], child[ends], child_score[ends]))
        inner = trie.has_children(child).nonzero()[:, 0]
        kept = inner[keep(child_user[inner], child_score[inner], count)]
        if not len(kept):
            break
        if len(kept) > MOST_PREFIXES and count > 1:
            return None
        ancestors = [*(level[entry[kept]] for level in ancestors), entry[kept]]
        user, node, score = child_user[kept], child[kept], child_score[kept]
    joined = Found(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    order = joined.user.argsort(stable=True)
    return Found(joined.user[order], joined.node[order], joined.score[order])


def top_places(user: Tensor, score: Tensor, count: int, k: int) -> Tensor:
    """Find the places of each user's ``k`` best scores, best first; of equal scores the lower place first.

    Args:
        user: ``[C]`` int64, ascending.
        score: ``[C]`` float.
        count: number of users.
        k: how many.

    Returns:
        ``[count, k]`` int64; -1 where a user has fewer.
    """
    number = user.bincount(minlength=count)
    start = number.cumsum(0) - number
    width = max(int(number.max()) if count else 0, k)
    place = torch.arange(len(user), device=user.device) - start[user]
    padded = score.new_full((count, width), -torch.inf)
    padded[user, place] = score
    rank = padded.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.where(rank < number[:, None], start[:, None] + rank, -1)
