"""The decoder of T5 one token at a time, for any number of prefixes a user, without gradients.

Prefixes share what their ancestors computed: a state's keys and values are stored once and looked up by its descendants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.generative.attention import heads_apart, heads_together
from recbole_qbert.generative.t5 import T5, Encoded
from recbole_qbert.sequence.packing import PackedSequences

ROWS = 4096  # rows of logits at a time


@dataclass(frozen=True)
class Sources:
    """What the decoder's cross-attention reads of ``B`` encoded sources.

    Attributes:
        keys: of each block, ``[B, H, S, d_kv]``.
        values: of each block, ``[B, H, S, d_kv]``.
        mask: ``[B, 1, 1, S]``, -inf at padding.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    @classmethod
    def of(cls, network: T5, encoded: Encoded) -> Sources:
        """Compute keys and values once for all prefixes; rows in the packed order of ``encoded``."""
        lengths = encoded.rows.lengths
        rows = PackedSequences.of(lengths, encoded.rows.longest)
        pairs = [
            heads_apart(rows.pad(block.cross.joint(encoded.states)), network.sizes.num_heads, 2)
            for block in network.decoder.blocks
        ]
        hidden = torch.arange(rows.shape[1], device=lengths.device) >= lengths[:, None]
        mask = torch.zeros(hidden.shape, device=hidden.device).masked_fill(hidden, -torch.inf)
        return cls(tuple(key for key, _ in pairs), tuple(value for _, value in pairs), mask[:, None, None])

    def __len__(self) -> int:
        return len(self.mask)

    def select(self, users: Tensor) -> Sources:
        """Return the sources of some users, ``[U]`` int64."""
        return Sources(
            tuple(part[users] for part in self.keys), tuple(part[users] for part in self.values), self.mask[users]
        )


class StepDecoder:
    """Decode prefixes level by level.

    Args:
        network: the network, in evaluation mode.
        sources: the users' sources.
        height: largest number of tokens of a target.
    """

    def __init__(self, network: T5, sources: Sources, height: int) -> None:
        self.network, self.sources = network, sources
        self.distance = network.decoder.distances(height)
        self.keys: list[list[Tensor]] = [[] for _ in network.decoder.blocks]  # of each block and level, [P, H, d_kv]
        self.values: list[list[Tensor]] = [[] for _ in network.decoder.blocks]

    def step(self, tokens: Tensor, users: Tensor, ancestors: list[Tensor]) -> Tensor:
        """Compute the states of prefixes that are one token longer than those of the last step.

        Args:
            tokens: ``[P]`` int64 last token of each prefix.
            users: ``[P]`` int64 row in the sources, ascending.
            ancestors: for each earlier step ``[P]`` int64: the place of the prefix's beginning there.

        Returns:
            ``[P, D]``, from which ``T5.logits`` computes what may follow.
        """
        network = self.network
        hidden = F.embedding(tokens, network.embedding)
        groups = _groups_of_like_count(users, len(self.sources))
        for number, block in enumerate(network.decoder.blocks):
            joint = block.attention.joint(block.attention.norm(hidden))
            query, key, value = joint.view(len(tokens), 3, network.sizes.num_heads, -1).unbind(1)
            self.keys[number].append(key)
            self.values[number].append(value)
            hidden = hidden + block.attention.mix(self._attend(number, query, ancestors))
            query = block.cross.query(block.cross.norm(hidden))
            hidden = hidden + block.cross.mix(self._attend_to_source(number, query, groups))
            hidden = block.feed(hidden)
        return network.decoder.norm(hidden)

    def _attend(self, number: int, query: Tensor, ancestors: list[Tensor]) -> Tensor:
        """Attend to the prefix's own earlier states and the state itself: ``[P, H, d_kv]`` to ``[P, W]``."""
        level, middle = len(ancestors), self.distance.shape[1] // 2
        logits = [
            (query * (keys[ancestors[at]] if at < level else keys)).sum(2) + self.distance[:, middle + at - level]
            for at, keys in enumerate(self.keys[number])
        ]
        weight = torch.softmax(torch.stack(logits), 0)
        context = torch.zeros_like(query)
        for at, values in enumerate(self.values[number]):
            context.addcmul_(weight[at, :, :, None], values[ancestors[at]] if at < level else values)
        return context.flatten(1)

    def _attend_to_source(self, number: int, query: Tensor, groups: list[tuple[Tensor, PackedSequences, Tensor]]) -> Tensor:
        context = torch.empty_like(query)
        keys, values, mask = self.sources.keys[number], self.sources.values[number], self.sources.mask
        for users, rows, places in groups:
            (padded,) = heads_apart(rows.pad(query[places]), keys.shape[1], 1)
            whole = len(users) == len(mask)
            key, value, hide = (keys, values, mask) if whole else (keys[users], values[users], mask[users])
            part = F.scaled_dot_product_attention(padded, key, value, attn_mask=hide, scale=1.0)
            context[places] = rows.pack(heads_together(part))
        return context


def log_probabilities(network: T5, states: Tensor, entry: Tensor, token: Tensor) -> Tensor:
    """Compute log-probabilities of some tokens after some prefixes; the softmax runs over the whole vocabulary.

    Tokens that no ID allows keep their share, as in constrained beam search of transformers.

    Args:
        network: the network.
        states: ``[P, D]`` states of the prefixes.
        entry: ``[C]`` int64 prefix of each token, ascending.
        token: ``[C]`` int64.

    Returns:
        ``[C]`` float.
    """
    result = torch.empty(len(entry), device=states.device, dtype=states.dtype)
    bounds = torch.searchsorted(entry, torch.arange(0, len(states) + ROWS, ROWS, device=entry.device)).tolist()
    for number, start in enumerate(range(0, len(states), ROWS)):
        logits = network.logits(states[start : start + ROWS])
        norm = logits.logsumexp(1)
        part = slice(bounds[number], bounds[number + 1])
        at = entry[part] - start
        result[part] = logits[at, token[part]] - norm[at]
    return result


def _groups_of_like_count(users: Tensor, total: int) -> list[tuple[Tensor, PackedSequences, Tensor]]:
    """Group users whose numbers of prefixes differ by less than a factor of two, so that little is padded.

    Returns:
        For each group its users, the layout of their prefixes, and the places of these among all prefixes.
    """
    counts = users.bincount(minlength=total)
    scale = counts.clamp(min=1).float().log2().ceil().long()
    if bool((counts == counts[0]).all()):
        scale = torch.zeros_like(scale)
    groups = []
    for size in scale[counts > 0].unique().tolist():
        members = ((scale == size) & (counts > 0)).nonzero()[:, 0]
        place = (
            torch.zeros(total, dtype=torch.bool, device=users.device).index_fill_(0, members, True)[users].nonzero()[:, 0]
        )
        groups.append((members, PackedSequences.of(counts[members], int(counts[members].max())), place))
    return groups
