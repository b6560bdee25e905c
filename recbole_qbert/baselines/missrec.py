"""The network of MISSRec: items by adapted text and image vectors, users by their items and interests.

Wang et al.: MISSRec: Pre-training and Transferring Multi-modal Interest-aware Sequence Representation for Recommendation
(ACM MM 2023). From scratch only: pretraining over other domains needs features of one space, and brought at most .004 of
NDCG@10 in the release's own logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.baselines.interest_transformer import InterestTransformer
from recbole_qbert.baselines.interests import cluster, distinct, number_of_interests
from recbole_qbert.config.baseline_schema import MISSRecConfig
from recbole_qbert.sequence.dropout import dropout


class ItemTable(NamedTuple):
    """Vectors of all items.

    Attributes:
        inputs: ``[N, D]``, what the decoder reads.
        candidates: unit vectors of each modality, ``[N, D]`` each; of a single modality with the item embedding in them.
        own: unit item embeddings, ``[N, D]``; ``None`` without them, or with a single modality.
    """

    inputs: Tensor
    candidates: tuple[Tensor, ...]
    own: Tensor | None


class MISSRecNetwork(nn.Module):
    """Score every item of a catalog for histories of items that have vectors of one or more modalities.

    An item without a modality is ranked by the others, and adds nothing for it to the decoder's input; in the release a
    missing image is a vector of zeros, whose adapted vector is the adaptor's bias. Padding (row 0) is masked in the softmax.

    Args:
        config: shape and behaviour of the network.
        vectors: modality -> ``[N, D_m]`` float32; zeros in row 0 and where there is none.
        present: modality -> ``[N]`` bool; false in row 0.
    """

    interest_of: Tensor
    centers: Tensor
    valid: Tensor
    domains = None  # one catalog

    def __init__(self, config: MISSRecConfig, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config, self.modalities = config, tuple(vectors)
        width, items = config.hidden_size, len(next(iter(vectors.values())))
        self.position = nn.Parameter(torch.empty(config.max_length, width))
        self.item_embedding = nn.Parameter(torch.empty(items, width)) if config.use_item_embedding else None
        for embedding in (self.position, self.item_embedding):
            if embedding is not None:
                nn.init.normal_(embedding, std=config.initializer_range)
        self.norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.transformer = InterestTransformer(config)
        self.adaptors = nn.ModuleDict({name: nn.Linear(matrix.shape[1], width) for name, matrix in vectors.items()})
        self.fusion_factor = None
        if len(vectors) > 1 and config.score_fusion != "mean":
            self.fusion_factor = nn.Parameter(torch.zeros(() if config.score_fusion == "shared" else items))
        for name in self.modalities:
            self.register_buffer(f"vectors_{name}", vectors[name], persistent=False)
            self.register_buffer(f"present_{name}", present[name], persistent=False)
        self.register_buffer("valid", torch.arange(items) > 0, persistent=False)
        # In checkpoints, because the best epoch's weights are ranked with the interests of that epoch.
        count = number_of_interests(int(sum(mask.sum() for mask in present.values())), config.interest_ratio)
        self.register_buffer("interest_of", torch.zeros(len(vectors), items, dtype=torch.int64))
        self.register_buffer("centers", torch.zeros(count + 1, width))

    # ------------------------------------------------------------------------------------------------------- items
    def _adapted(self) -> list[Tensor]:
        """Return the adapted vectors of each modality, ``[N, D]``, 0 where an item has none."""
        return [
            torch.where(self._present(name)[:, None], self.adaptors[name](getattr(self, f"vectors_{name}")), 0.0)
            for name in self.modalities
        ]

    def _present(self, name: str) -> Tensor:
        present: Tensor = getattr(self, f"present_{name}")
        return present

    def item_table(self) -> ItemTable:
        """Compose the vectors of all items."""
        adapted = self._adapted()
        summed = torch.stack(adapted).sum(0) if len(adapted) > 1 else adapted[0]
        inputs = summed if self.item_embedding is None else summed + self.item_embedding
        if len(adapted) == 1:
            return ItemTable(inputs, (F.normalize(inputs, dim=1),), None)
        units = [F.normalize(vectors, dim=1) for vectors in adapted]
        for name, unit in zip(self.modalities, list(units), strict=True):
            for number, other in enumerate(self.modalities):  # where an item lacks the other one, this one stands for it
                lacks = self._present(name) & ~self._present(other)
                units[number] = torch.where(lacks[:, None], unit, units[number])
        own = None if self.item_embedding is None else F.normalize(self.item_embedding, dim=1)
        return ItemTable(inputs, tuple(units), own)

    @torch.no_grad()
    def discover_interests(self, generator: torch.Generator) -> None:
        """Cluster the adapted vectors of all items and modalities; centers get no gradient.

        Args:
            generator: of the draw of the first centers, on the CPU.
        """
        masks = [self._present(name) for name in self.modalities]
        points = torch.cat([vectors[mask] for vectors, mask in zip(self._adapted(), masks, strict=True)])
        owner, centers = cluster(points, len(self.centers) - 1, generator)
        self.centers[1:] = centers
        for row, part, mask in zip(self.interest_of, owner.split([int(m.sum()) for m in masks]), masks, strict=True):
            row[mask] = part + 1

    # ------------------------------------------------------------------------------------------------------ scores
    def states(self, sequences: Tensor, lengths: Tensor, table: ItemTable) -> tuple[Tensor, Tensor]:
        """Encode histories.

        Args:
            sequences: ``[B, L]`` int64, left-aligned, 0 behind a row's length.
            lengths: ``[B]`` int64, at least 1.
            table: ``item_table()``.

        Returns:
            ``(user [B, D], unit vectors; size [B])``, where size is the mean square of the mean encoded interest.

        Raises:
            ValueError: a history is empty.
        """
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError("a history is empty; each needs at least 1 item")
        interests = distinct(self.interest_of[:, sequences].transpose(0, 1).flatten(1))
        none = interests == 0
        real = ~none
        none[:, 0] = False  # a row of items without any vector reads a center of zeros
        items = self.norm(table.inputs[sequences] + self.position[: sequences.shape[1]])
        items = dropout(items, self.config.hidden_dropout_prob, self.training)
        state, memory = self.transformer(self.centers[interests], none, items, lengths)
        mean = (memory * real[:, :, None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        return F.normalize(state, dim=1), mean.square().mean(1)

    def fused(self, user: Tensor, table: ItemTable) -> Tensor:
        """Mix cosines of the modalities, by a softmax that depends on themselves, and of item embeddings.

        Args:
            user: ``[B, D]`` unit vectors.
            table: ``item_table()``.

        Returns:
            ``[B, N]`` float; ``(own + M s) / (M + 1)`` with item embeddings and ``M`` modalities.
        """
        scores = [user @ candidate.T for candidate in table.candidates]
        score = scores[0] if len(scores) == 1 else self._mixed(scores)
        return score if table.own is None else (user @ table.own.T + len(scores) * score) / (len(scores) + 1)

    def _mixed(self, scores: list[Tensor]) -> Tensor:
        """Return the mean of scores, weighted by the softmax of their products with the learned factor."""
        if self.fusion_factor is None:
            return torch.stack(scores).mean(0)
        if len(scores) == 2:  # the softmax of two, with less memory traffic
            difference = scores[0] - scores[1]
            return scores[1] + torch.sigmoid(self.fusion_factor * difference) * difference
        stacked = torch.stack(scores)
        return ((self.fusion_factor * stacked).softmax(0) * stacked).sum(0)

    def scores(self, sequences: Tensor, lengths: Tensor, table: ItemTable | None = None) -> Tensor:
        """Score every item.

        Args:
            sequences, lengths: as of :meth:`states`.
            table: ``item_table()`` if the caller has it.

        Returns:
            ``[B, N]`` float; -inf for padding.
        """
        table = self.item_table() if table is None else table
        return self.fused(self.states(sequences, lengths, table)[0], table).masked_fill(~self.valid, -torch.inf)

    # -------------------------------------------------------------------------------------------------------- loss
    def loss(self, sequences: Tensor, lengths: Tensor, target: Tensor, share: tuple[int, int] = (0, 1)) -> Tensor:
        """Compute the mean cross-entropy of the targets among all items, plus the penalty on encoded interests.

        The decoder is not causal, so a row is a prefix of a history and has one target. Rows of like length are computed
        together, so that few are padded. The release's penalty sums over padded places and rows, and so grows with the
        batch; here it is the squared mean of a row's encoded interests, mean over rows.

        Args:
            sequences: ``[B, L]`` int64 prefixes, left-aligned.
            lengths: ``[B]`` int64, at least 1.
            target: ``[B]`` int64 items.
            share: ``(process, processes)``; the losses of all processes add up to the loss of one.

        Returns:
            ``[]`` float.
        """
        table = self.item_table()
        own = torch.arange(len(lengths), device=lengths.device)[share[0] :: share[1]]
        users, penalty, order = [], table.inputs.sum() * 0.0, []
        for bucket in _rows_by_length(lengths[own]):
            rows = own[bucket]
            user, size = self.states(sequences[rows, : int(lengths[rows].max())], lengths[rows], table)
            users.append(user)
            order.append(rows)
            penalty = penalty + size.sum()
        if not users:
            return penalty
        logits = self.fused(torch.cat(users), table) / self.config.temperature
        logits = logits.masked_fill(~self.valid, -torch.inf)
        total = F.cross_entropy(logits, target[torch.cat(order)], reduction="sum")
        return (total + self.config.interest_weight * penalty) / len(lengths)


def _rows_by_length(lengths: Tensor) -> Iterator[Tensor]:
    """Yield the row numbers of each bucket of like length: up to 4, 8, 16, 32, … items."""
    bucket = lengths.clamp(min=4).sub(1).log2().floor()
    for value in bucket.unique().tolist():
        yield (bucket == value).nonzero()[:, 0]
