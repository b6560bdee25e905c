"""Stage 1: dynamic cross-modal semantic injection (paper 3.3, Eq. 3-5).

A learnable ID vector queries the item's text and image vectors through up to five transformer layers; after each layer a
gate decides, item by item, whether to go on. Items that stopped are not computed any further.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.config.schema import InjectionConfig
from recbole_qbert.utils.resumable_epochs import Epochs

# A gate that hardly ever opens would make the inverse-probability weight of its rare passes explode.
LEAST_PROBABILITY = 0.05


@dataclass(frozen=True)
class Fused:
    """Output of stage 1 for a batch.

    Attributes:
        vector: ``[B, D]`` the injected vector ``h``.
        aligned: modality -> ``[B, D]`` the weighted modality vector of Eq. 3.
        there: modality -> ``[B]`` bool, the item has the modality.
        depth: ``[B]`` int64, layers computed for the item.
        chance: ``[]`` float, mean over the batch of the summed probabilities of going on.
    """

    vector: Tensor
    aligned: dict[str, Tensor]
    there: dict[str, Tensor]
    depth: Tensor
    chance: Tensor


class DynamicInjection(nn.Module):
    """The stage-1 network.

    Args:
        items: ``N``; one query vector each, and one shared 'no ID' query for items that have none.
        widths: modality -> width of its vectors.
        config: sizes and settings.
        queries: ``[N, D]`` start of the query vectors; random when ``None``.
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

        Args:
            query_rows: ``[B]`` int64 rows of the query table (``no_id`` for none).
            vectors: modality -> ``[B, J, D_m]`` float.
            present: modality -> ``[B, J]`` bool, which vectors exist.
        """
        query = self.query(query_rows)
        aligned = {name: self.align(query, name, vectors[name], present[name]) for name in self.project}
        there = {name: present[name].any(1) for name in self.project}
        depth = torch.zeros(len(query), dtype=torch.int64, device=query.device)
        chance = query.new_zeros(())
        if not self.project:  # ID only (Table 3): nothing to inject
            return Fused(query, aligned, there, depth, chance)
        source = torch.stack(list(aligned.values()), 1)
        mask = torch.stack(list(there.values()), 1)
        hidden, active, weight = query, torch.arange(len(query), device=query.device), None
        for number, block in enumerate(self.blocks):
            before = hidden[active]
            after = block(before, source[active], mask[active])
            if weight is not None:  # value 1; the gradient is what makes the gate learn from the layer it let happen
                after = after + (weight - 1.0)[:, None] * (after - before)
            hidden = hidden.index_copy(0, active, after)
            depth[active] += 1
            if number == len(self.blocks) - 1:
                break
            if self.config.gate == "none":
                continue
            probability = torch.sigmoid(self.gates[number](after)[:, 0])
            chance = chance + probability.sum() / len(query)
            # Trained on drawn decisions, used on the likelier one.
            going = (torch.rand_like(probability) < probability) if self.training else probability > 0.5
            active, probability = active[going], probability[going]
            if not len(active):
                break
            # Straight-through. The layer after a closed gate is not computed and sends no gradient back; dividing by the
            # chance of an open one makes the gradient of the open ones stand for both.
            fixed = probability.detach()
            weight = 1.0 + (probability - fixed) / fixed.clamp(min=LEAST_PROBABILITY)
        return Fused(hidden, aligned, there, depth, chance)

    def align(self, query: Tensor, name: str, vectors: Tensor, present: Tensor) -> Tensor:
        """Eq. 3: the modality's vectors weighted by their cosine with the query.

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
        """Eq. 5 plus the cost of depth; ``query`` is ``[B, D]`` the ID vectors that went in."""
        total = self.contrast(fused)
        total = total + self.config.consistency * (fused.vector - query.detach()).square().sum(1).mean()
        # The paper trains no cost. A small one keeps layers that change nothing from being computed.
        return total + self.config.depth_cost * fused.chance

    def contrast(self, fused: Fused) -> Tensor:
        """The InfoNCE terms of Eq. 5: fused-text, fused-image, text-image (all pairs, for other modalities)."""
        names = list(fused.aligned)
        total = fused.vector.new_zeros(())
        for number, name in enumerate(names):
            total = total + self.infonce(fused.vector, fused.aligned[name], fused.there[name])
            for other in names[number + 1 :]:
                both = fused.there[name] & fused.there[other]
                total = total + self.infonce(fused.aligned[name], fused.aligned[other], both)
        return total

    def infonce(self, left: Tensor, right: Tensor, real: Tensor) -> Tensor:
        """Symmetric InfoNCE within the batch over rows where both sides exist; 0 when fewer than two do."""
        left, right = F.normalize(left[real], dim=1), F.normalize(right[real], dim=1)
        if len(left) < 2:
            return left.sum() * 0.0
        logits = left @ right.T / self.config.contrast_temperature
        target = torch.arange(len(left), device=left.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class _CrossBlock(nn.Module):
    """Eq. 4: the query attends to the modality vectors, then a feed-forward layer; pre-norm residuals."""

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
    # A large negative number, not -inf: a row of nothing but -inf has NaN gradients even if the value is mended.
    return logits.masked_fill(~mask, -1e4).softmax(-1) * mask


def _gate(width: int) -> nn.Sequential:
    """The small MLP of 3.3. Its output is one logit: the decision is one per item, whatever the vector before it."""
    last = nn.Linear(width // 4, 1)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 1.0)  # start open, so that every layer sees items before gates learn to close
    return nn.Sequential(nn.Linear(width, width // 4), nn.ReLU(), last)


@dataclass(frozen=True)
class InjectionReport:
    """What stage 1 did.

    Attributes:
        epochs: epochs trained on the whole catalog, chosen on held-out items.
        held_out_loss: contrastive loss of the held-out items after each epoch of the choosing run.
        depth: share of items at depth 1, 2, …, layers.
        retrieval: share of items whose text vector is nearest to their own image vector among all items (trained on).
        held_out_retrieval: the same among the held-out items of the choosing run, with the shared 'no ID' query.
    """

    epochs: int
    held_out_loss: list[float]
    depth: list[float]
    retrieval: float | None
    held_out_retrieval: float | None


def fit(
    vectors: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    config: InjectionConfig,
    seed: int,
    queries: np.ndarray | None = None,
    epochs: Epochs | None = None,
) -> tuple[DynamicInjection, np.ndarray, np.ndarray, InjectionReport]:
    """Train stage 1 and fuse the catalog.

    The number of epochs is chosen where the contrastive loss of held-out items, fused without an ID vector, is lowest;
    then the network is trained again on all items for so long. Trained to the end it memorises which text belongs to
    which image.

    Args:
        vectors: modality -> ``[N, J, D_m]`` float32.
        present: modality -> ``[N, J]`` bool.
        config: sizes and settings; ``config.modalities`` says which of the modalities take part.
        seed: of initialisation, batches, dropout and gates.
        queries: ``[N, D]`` start of the ID vectors (``query: structural``).
        epochs: shows and keeps the epochs.

    Returns:
        ``(network in evaluation mode, fused [N, D] float32, depth [N] int64, report)``.

    Raises:
        ValueError: a modality is not among the features.
    """
    for name in config.modalities:
        if name not in vectors:
            raise ValueError(f"injection_modalities names {name!r}; the features have {', '.join(vectors) or 'none'}")
    features = {name: torch.from_numpy(vectors[name]) for name in config.modalities}
    there = {name: torch.from_numpy(present[name]) for name in config.modalities}
    count = len(next(iter(vectors.values()))) if vectors else len(queries if queries is not None else ())
    start = None if queries is None else torch.from_numpy(queries)
    widths = {name: matrix.shape[2] for name, matrix in features.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(count)
        described = torch.stack([some.any(1) for some in there.values()]).any(0) if there else torch.zeros(count) > 0
        held = order[described[order]]  # an item without features would say nothing of the loss
        held = held[: int(len(held) * config.holdout)]
        rest = order[~torch.isin(order, held)]
        epochs = epochs or Epochs()
        found: dict[str, Any] = {"losses": [], "best": float("inf"), "epochs": config.epochs, "retrieval": None}
        if any(some[held].any(1).sum() >= 2 for some in there.values()):  # a loss over fewer than two is 0
            trial = DynamicInjection(count, widths, config, start)
            optimizer = _optimizer(trial)
            for epoch in epochs.count(config.epochs, {"model": trial, "optimizer": optimizer}, found):
                _train_epoch(trial, optimizer, rest, features, there)
                fused = _fuse(trial, held, features, there, with_id=False)
                found["losses"].append(float(trial.contrast(fused)))
                if found["losses"][-1] < found["best"]:
                    found |= {"best": found["losses"][-1], "epochs": epoch + 1, "retrieval": _retrieval(fused)}
                elif epoch + 1 - found["epochs"] >= config.patience:
                    break
            torch.manual_seed(seed)
        model = DynamicInjection(count, widths, config, start)
        if len(widths):
            optimizer = _optimizer(model)
            for _ in epochs.count(found["epochs"], {"model": model, "optimizer": optimizer}, found):
                _train_epoch(model, optimizer, torch.arange(count), features, there)
        fused = _fuse(model, torch.arange(count), features, there, with_id=True)
    depth = torch.bincount(fused.depth, minlength=config.layers + 1)[1:].float() / count
    trained = found["epochs"] if len(widths) else 0
    report = InjectionReport(trained, found["losses"], depth.tolist(), _retrieval(fused), found["retrieval"])
    return model, fused.vector.numpy(), fused.depth.numpy(), report


def _optimizer(model: DynamicInjection) -> torch.optim.Optimizer:
    config = model.config
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


def _train_epoch(
    model: DynamicInjection,
    optimizer: torch.optim.Optimizer,
    rows: Tensor,
    features: dict[str, Tensor],
    present: dict[str, Tensor],
) -> None:
    """One pass over ``rows``."""
    config = model.config
    model.train()
    for batch in rows[torch.randperm(len(rows))].split(config.batch_size):
        if len(batch) < 2:
            continue
        unnamed = torch.rand(len(batch)) < config.id_dropout
        fused = model(*_take(torch.where(unnamed, model.no_id, batch), batch, features, present))
        loss = model.loss(fused, model.query(torch.where(unnamed, model.no_id, batch)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _fuse(
    model: DynamicInjection, rows: Tensor, features: dict[str, Tensor], present: dict[str, Tensor], with_id: bool
) -> Fused:
    model.eval()
    parts = [
        model(*_take(part if with_id else torch.full_like(part, model.no_id), part, features, present))
        for part in rows.split(4096)
    ]
    return Fused(
        torch.cat([part.vector for part in parts]),
        {name: torch.cat([part.aligned[name] for part in parts]) for name in features},
        {name: torch.cat([part.there[name] for part in parts]) for name in features},
        torch.cat([part.depth for part in parts]),
        parts[0].chance,
    )


def _take(
    queries: Tensor, rows: Tensor, features: dict[str, Tensor], present: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    return queries, {n: v[rows] for n, v in features.items()}, {n: v[rows] for n, v in present.items()}


def _retrieval(fused: Fused) -> float | None:
    """R@1 from the first modality to the second among items that have both."""
    if len(fused.aligned) < 2:
        return None
    first, second, *_ = fused.aligned
    both = fused.there[first] & fused.there[second]
    left, right = F.normalize(fused.aligned[first][both], dim=1), F.normalize(fused.aligned[second][both], dim=1)
    if not len(left):
        return None
    found = torch.cat([(part @ right.T).argmax(1) for part in left.split(1024)])
    return float((found == torch.arange(len(left))).float().mean())
