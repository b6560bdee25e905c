"""Stage 1: dynamic cross-modal semantic injection (paper 3.3, Eq. 3-5).

An ID vector queries the item's text and image vectors through up to five transformer layers. After each layer, a gate
decides for each item whether to continue; layers after that are not computed for items that stopped.
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


@dataclass(frozen=True)
class Layers:
    """Output of every layer for a batch, as deep supervision and the test of depth need it.

    Attributes:
        start: ``[B, D]`` ID vectors, the input of the first layer.
        vectors: ``[L, B, D]`` output ``h`` of each layer.
        aligned, present: as in ``Fused``.
    """

    start: Tensor
    vectors: Tensor
    aligned: dict[str, Tensor]
    present: dict[str, Tensor]


class DynamicInjection(nn.Module):
    """The dynamic cross-modal transformer (Eq. 4) with its query vectors and gates.

    Args:
        items: ``N``; each item has a query vector, and items without one share a 'no ID' query. With ``query:
            concatenation`` an item's ID vector is a projection of its features, and all share the one query that is added.
        widths: modality -> width ``D_m`` of its vectors.
        config: sizes and settings.
        queries: ``[N, D]`` initial query vectors; random when ``None``.
    """

    def __init__(
        self, items: int, widths: Mapping[str, int], config: InjectionConfig, queries: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        from_features = config.query == "concatenation" and bool(widths)
        items = 0 if from_features else items
        self.query = nn.Embedding(items + 1, config.dim)
        nn.init.normal_(self.query.weight, std=config.dim**-0.5)
        if queries is not None and not from_features:
            with torch.no_grad():
                self.query.weight[:items] = queries
                self.query.weight[items] = 0.0
        self.project = nn.ModuleDict({name: nn.Linear(width, config.dim) for name, width in widths.items()})
        self.blocks = nn.ModuleList(_CrossBlock(config) for _ in range(config.layers))
        self.gates = nn.ModuleList(_gate(config.dim) for _ in range(config.layers - 1))
        self.start = nn.ModuleDict({name: nn.Linear(width, config.dim) for name, width in widths.items() if from_features})
        if from_features:  # a fresh network returns its start: each layer adds nothing yet
            nn.init.zeros_(self.query.weight)
            for block in self.blocks:
                assert isinstance(block, _CrossBlock)
                block.add_nothing()
        # The number of layers of all items; 0 where the gates decide item by item.
        self.common_depth: Tensor
        alike = 0 if config.gate in ("dynamic", "paper") else config.layers
        self.register_buffer("common_depth", torch.tensor(alike), persistent=config.gate != "paper")

    @property
    def no_id(self) -> int:
        """Row of the shared query of items without an ID vector of their own."""
        return self.query.num_embeddings - 1

    def id_vectors(self, query_rows: Tensor, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Look up the ID vectors, ``[B, D]``, or project the features side by side; arguments as of ``forward``."""
        if not self.start:
            return self.query(query_rows)
        total = self.query.weight.expand(len(query_rows), -1)
        for name, linear in self.start.items():
            count = present[name].sum(1, keepdim=True)
            mean = (vectors[name] * present[name][..., None]).sum(1) / count.clamp(min=1)
            total = total + linear(mean) * (count > 0)
        return total

    def forward(self, query_rows: Tensor, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Fused:
        """Fuse a batch of items.

        An item goes on while its gate's probability is above .5, or for ``common_depth`` layers if that is not 0. Only the
        paper's gates (``gate: paper``) are sampled while training (paper silent).

        Args:
            query_rows: ``[B]`` int64 rows of the query table; ``no_id`` for items without a query of their own.
            vectors: modality -> ``[B, J, D_m]`` float.
            present: modality -> ``[B, J]`` bool, which vectors exist.
        """
        query, source, mask, aligned, has_modality = self._inputs(query_rows, vectors, present)
        depth = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        expected_gates = query.new_zeros(())
        if not self.project:  # ID only (Table 3): nothing to inject
            return Fused(query, aligned, has_modality, depth, expected_gates)
        hidden, active, weight = query, torch.arange(len(query), device=query.device), None
        common = int(self.common_depth)
        last = common or len(self.blocks)
        for number, block in enumerate(self.blocks[:last]):
            before = hidden[active]
            after = block(before, source[active], mask[active])
            if weight is not None:  # its value is 1; through its gradient the gate learns from the layer that it opened
                after = after + (weight - 1.0)[:, None] * (after - before)
            hidden = hidden.index_copy(0, active, after)
            depth[active] += 1
            if number == last - 1:
                break
            if common:
                continue
            probability = torch.sigmoid(self.gate_logit(number, after))
            expected_gates = expected_gates + probability.sum() / len(query)
            drawn = self.training and self.config.gate == "paper"
            is_open = (torch.rand_like(probability) < probability) if drawn else probability > 0.5
            active, probability = active[is_open], probability[is_open]
            if not len(active):
                break
            # Straight-through estimator. The layer after a closed gate is not computed and sends no gradient back; dividing
            # by the probability of an open gate makes the gradient of the open ones stand for both.
            fixed = probability.detach()
            weight = 1.0 + (probability - fixed) / fixed.clamp(min=MIN_PROBABILITY)
        return Fused(hidden, aligned, has_modality, depth, expected_gates)

    def every_layer(self, query_rows: Tensor, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Layers:
        """Fuse a batch of items through all layers, whatever the gates say; arguments as of ``forward``."""
        start, source, mask, aligned, has_modality = self._inputs(query_rows, vectors, present)
        hidden, outputs = start, []
        for block in self.blocks:
            hidden = block(hidden, source, mask)
            outputs.append(hidden)
        return Layers(start, torch.stack(outputs), aligned, has_modality)

    def gate_logit(self, number: int, hidden: Tensor) -> Tensor:
        """Compute the logit of a gate, ``[B]``, from ``hidden [B, D]``; a positive one means to continue.

        The paper's gate reads ``h`` as it is; the others its standardized entries, from which an MLP learns in fewer steps.
        """
        if self.config.gate != "paper":
            hidden = F.layer_norm(hidden, hidden.shape[-1:])
        return self.gates[number](hidden)[:, 0]

    def gate_logits(self, vectors: Tensor) -> Tensor:
        """Compute the logits of all gates, ``[L - 1, B]``, from the output of every layer, ``[L, B, D]``."""
        logits = [self.gate_logit(number, hidden) for number, hidden in enumerate(vectors[:-1])]
        return torch.stack(logits) if logits else vectors.new_zeros((0, vectors.shape[1]))

    def _inputs(
        self, query_rows: Tensor, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """ID vectors ``[B, D]``, keys ``[B, K, D]``, which of them exist ``[B, K]``, aligned vectors, modalities present."""
        query = self.id_vectors(query_rows, vectors, present)
        shared = {name: self.shared(name, vectors[name]) for name in self.project}
        aligned = {name: self.align(query, shared[name], present[name]) for name in self.project}
        has_modality = {name: present[name].any(1) for name in self.project}
        if not self.project:
            return query, query[:, None], query_rows[:, None] > 0, aligned, has_modality
        if self.config.attention == "aligned":
            source = torch.stack(list(aligned.values()), 1)
            return query, source, torch.stack(list(has_modality.values()), 1), aligned, has_modality
        source = torch.cat(list(shared.values()), 1)
        return query, source, torch.cat([present[name] for name in shared], 1), aligned, has_modality

    def shared(self, name: str, vectors: Tensor) -> Tensor:
        """Project a modality's vectors, ``[B, J, D_m]``, into the space of the queries; ``[B, J, D]`` of length 1."""
        return F.normalize(self.project[name](F.normalize(vectors, dim=2)), dim=2)

    def align(self, query: Tensor, shared: Tensor, present: Tensor) -> Tensor:
        """Weight a modality's vectors by their cosine with the query (Eq. 3).

        Args:
            query: ``[B, D]``.
            shared: ``[B, J, D]``, what ``shared`` returns.
            present: ``[B, J]`` bool.

        Returns:
            ``[B, D]``; zeros for items without the modality. With ``J = 1`` it is the projected vector itself.
        """
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
        return self.item_losses(fused.vector, fused).mean() + self.modality_contrast(fused)

    def item_losses(self, vector: Tensor, fused: Fused | Layers) -> Tensor:
        """Compute each item's share of the InfoNCE terms between fused vectors and modalities, ``[B]``.

        Args:
            vector: ``[B, D]`` fused vectors.
            fused: aligned vectors and modalities present; its own fused vectors are not used.

        Returns:
            ``[B]``; their mean is the sum of the terms.
        """
        total = vector.new_zeros(len(vector))
        for name, aligned in fused.aligned.items():
            real = fused.present[name]
            scale = len(real) / real.sum().clamp(min=1)  # the mean is over the items that have the modality
            total = total + scale * self.infonce_rows(vector, aligned, real)
        return total

    def modality_contrast(self, fused: Fused | Layers) -> Tensor:
        """Sum the InfoNCE terms between modalities, ``[]``."""
        names = list(fused.aligned)
        total = self.query.weight.new_zeros(())
        for number, name in enumerate(names):
            for other in names[number + 1 :]:
                both = fused.present[name] & fused.present[other]
                total = total + self.infonce(fused.aligned[name], fused.aligned[other], both)
        return total

    def infonce(self, left: Tensor, right: Tensor, real: Tensor) -> Tensor:
        """Average ``infonce_rows`` over the rows that are real, ``[]``."""
        return self.infonce_rows(left, right, real).sum() / real.sum().clamp(min=1)

    def infonce_rows(self, left: Tensor, right: Tensor, real: Tensor) -> Tensor:
        """Compute symmetric InfoNCE within the batch, row by row; 0 for fewer than two rows.

        Args:
            left, right: ``[B, D]`` float; row ``i`` of one belongs to row ``i`` of the other.
            real: ``[B]`` bool, rows where both sides exist; the others are left out, and 0.

        Returns:
            ``[B]`` float.
        """
        left, right = F.normalize(left[real], dim=1), F.normalize(right[real], dim=1)
        if len(left) < 2:
            return left.sum() * 0.0 * real
        logits = left @ right.T / self.config.contrast_temperature
        target = torch.arange(len(left), device=left.device)
        rows = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
        return rows.new_zeros(len(real)).masked_scatter(real, rows / 2)


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

    def add_nothing(self) -> None:
        """Set the last layers of both residual branches to zero: the block returns its input until it is trained."""
        for layer in (self.mix, self.feed[-1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

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
