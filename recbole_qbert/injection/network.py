"""Stage 1: dynamic cross-modal semantic injection (paper 3.3, Eq. 3-5).

A learnable ID vector queries the item's text and image vectors through up to five transformer layers. After each layer, a
gate decides for each item whether to continue; layers after that are not computed for items that stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.config.schema import InjectionConfig

# Lower bound of the gate's probability in the inverse-probability weight: a gate that rarely opens would make it explode.
MIN_PROBABILITY = 0.05


@dataclass(frozen=True)
class Fused:
    """Output of stage 1 for a batch.

    Attributes:
        vector: ``[B, D]`` the injected vector ``h``.
        aligned: modality -> ``[B, D]`` the weighted modality vector of Eq. 3.
        present: modality -> ``[B]`` bool, whether the item has the modality.
        depth: ``[B]`` int64, number of layers computed for the item.
        expected_gates: ``[]`` float, mean over the batch of the sum of each item's gate probabilities (those to continue).
    """

    vector: Tensor
    aligned: dict[str, Tensor]
    present: dict[str, Tensor]
    depth: Tensor
    expected_gates: Tensor


class DynamicInjection(nn.Module):
    """The dynamic cross-modal transformer (Eq. 4) with its query vectors and gates.

    Args:
        items: ``N``; each item has a query vector, and items without one share a 'no ID' query.
        widths: modality -> width ``D_m`` of its vectors.
        config: sizes and settings.
        queries: ``[N, D]`` initial query vectors; random when ``None``.
    """

    def __init__(
        self, items: int, widths: Mapping[str, int], config: InjectionConfig, queries: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Embedding(items + 1, config.dim)
        nn.init.normal_(self.query.weight, std=config.dim**-0.5)
        if queries is not None:
            with torch.no_grad():
                self.query.weight[:items] = queries
                self.query.weight[items] = 0.0
        self.project = nn.ModuleDict({name: nn.Linear(width, config.dim) for name, width in widths.items()})
        self.blocks = nn.ModuleList(_CrossBlock(config) for _ in range(config.layers))
        self.gates = nn.ModuleList(_gate(config.dim) for _ in range(config.layers - 1))

    @property
    def no_id(self) -> int:
        """Row of the shared query of items without an ID vector of their own."""
        return self.query.num_embeddings - 1

    def forward(self, query_rows: Tensor, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Fused:
        """Fuse a batch of items.

        While training, gates are sampled; in evaluation mode the more probable decision is taken (paper silent).

        Args:
            query_rows: ``[B]`` int64 rows of the query table; ``no_id`` for items without a query of their own.
            vectors: modality -> ``[B, J, D_m]`` float.
            present: modality -> ``[B, J]`` bool, which vectors exist.
        """
        query = self.query(query_rows)
        aligned = {name: self.align(query, name, vectors[name], present[name]) for name in self.project}
        has_modality = {name: present[name].any(1) for name in self.project}
        depth = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        expected_gates = query.new_zeros(())
        if not self.project:  # ID only (Table 3): nothing to inject
            return Fused(query, aligned, has_modality, depth, expected_gates)
        source = torch.stack(list(aligned.values()), 1)
        mask = torch.stack(list(has_modality.values()), 1)
        hidden, active, weight = query, torch.arange(len(query), device=query.device), None
        for number, block in enumerate(self.blocks):
            before = hidden[active]
            after = block(before, source[active], mask[active])
            if weight is not None:  # its value is 1; through its gradient the gate learns from the layer that it opened
                after = after + (weight - 1.0)[:, None] * (after - before)
            hidden = hidden.index_copy(0, active, after)
            depth[active] += 1
            if number == len(self.blocks) - 1:
                break
            if self.config.gate == "none":
                continue
            probability = torch.sigmoid(self.gates[number](after)[:, 0])
            expected_gates = expected_gates + probability.sum() / len(query)
            is_open = (torch.rand_like(probability) < probability) if self.training else probability > 0.5
            active, probability = active[is_open], probability[is_open]
            if not len(active):
                break
            # Straight-through estimator. The layer after a closed gate is not computed and sends no gradient back; dividing
            # by the probability of an open gate makes the gradient of the open ones stand for both.
            fixed = probability.detach()
            weight = 1.0 + (probability - fixed) / fixed.clamp(min=MIN_PROBABILITY)
        return Fused(hidden, aligned, has_modality, depth, expected_gates)

    def align(self, query: Tensor, name: str, vectors: Tensor, present: Tensor) -> Tensor:
        """Weight a modality's vectors by their cosine with the query (Eq. 3).

        Args:
            query: ``[B, D]``.
            name: modality.
            vectors: ``[B, J, D_m]``.
            present: ``[B, J]`` bool.

        Returns:
            ``[B, D]``; zeros for items without the modality. With ``J = 1`` it is the projected vector itself.
        """
        shared = F.normalize(self.project[name](F.normalize(vectors, dim=2)), dim=2)
        match = torch.einsum("bd,bjd->bj", F.normalize(query, dim=1), shared) / self.config.temperature
        weight = _masked_softmax(match, present)
        return torch.einsum("bj,bjd->bd", weight, shared)

    def loss(self, fused: Fused, query: Tensor) -> Tensor:
        """Compute Eq. 5 plus a cost of depth, ``[]``; ``query`` is ``[B, D]`` the ID vectors that were fused.

        The paper has no cost of depth. A small one stops the computation of layers that change nothing.
        """
        total = self.contrast(fused)
        total = total + self.config.consistency * (fused.vector - query.detach()).square().sum(1).mean()
        return total + self.config.depth_cost * fused.expected_gates

    def contrast(self, fused: Fused) -> Tensor:
        """Sum the InfoNCE terms of Eq. 5, ``[]``: fused-text, fused-image, text-image (all pairs, for other modalities)."""
        names = list(fused.aligned)
        total = fused.vector.new_zeros(())
        for number, name in enumerate(names):
            total = total + self.infonce(fused.vector, fused.aligned[name], fused.present[name])
            for other in names[number + 1 :]:
                both = fused.present[name] & fused.present[other]
                total = total + self.infonce(fused.aligned[name], fused.aligned[other], both)
        return total

    def infonce(self, left: Tensor, right: Tensor, real: Tensor) -> Tensor:
        """Compute symmetric InfoNCE within the batch; 0 for fewer than two rows.

        Args:
            left, right: ``[B, D]`` float; row ``i`` of one belongs to row ``i`` of the other.
            real: ``[B]`` bool, rows where both sides exist; the others are left out.

        Returns:
            ``[]`` float.
        """
        left, right = F.normalize(left[real], dim=1), F.normalize(right[real], dim=1)
        if len(left) < 2:
            return left.sum() * 0.0
        logits = left @ right.T / self.config.contrast_temperature
        target = torch.arange(len(left), device=left.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class _CrossBlock(nn.Module):
    """A layer of Eq. 4: the query attends to the modality vectors, then a feed-forward layer; pre-norm residuals."""

    def __init__(self, config: InjectionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key_value = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, 2 * config.dim)
        self.mix = nn.Linear(config.dim, config.dim)
        self.norm_query, self.norm_feed = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.feed = nn.Sequential(nn.Linear(config.dim, 2 * config.dim), nn.GELU(), nn.Linear(2 * config.dim, config.dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        size, count, width = source.shape
        query = self.query(self.norm_query(hidden)).view(size, self.heads, 1, -1)
        key, value = self.key_value(source).view(size, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        match = query @ key.transpose(2, 3) / (width // self.heads) ** 0.5
        weight = _masked_softmax(match, mask[:, None, None, :])
        hidden = hidden + self.dropout(self.mix((weight @ value).reshape(size, width)))
        return hidden + self.dropout(self.feed(self.norm_feed(hidden)))


def _masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among the true entries of ``mask``; all zero, with a zero gradient, where none is."""
    # A large negative number, not -inf: a row of nothing but -inf has NaN gradients even if its value is replaced.
    return logits.masked_fill(~mask, -1e4).softmax(-1) * mask


def _gate(width: int) -> nn.Sequential:
    """Build the small MLP of paper 3.3. Its output is one logit, since it makes one decision an item."""
    last = nn.Linear(width // 4, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 1.0)  # gates start open, so that every layer sees items before gates learn to close
    return nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), last)
