"""Stage 1: the training of the cross-modal network, and the fusion of a catalog with it (paper 3.3, Eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.config.schema import InjectionConfig
from recbole_qbert.injection.network import DynamicInjection, Fused
from recbole_qbert.utils.resumable_epochs import Epochs


@dataclass(frozen=True)
class InjectionReport:
    """Figures of a training of stage 1.

    Attributes:
        epochs: epochs trained on the whole catalog, chosen on held-out items.
        held_out_loss: contrastive loss of the held-out items after each epoch of the run that chose the number of epochs.
        depth: share of items at depth 1, 2, …, layers.
        retrieval: share of items whose text vector is nearest to their own image vector among all items (trained on).
        held_out_retrieval: the same among the held-out items, fused with the shared 'no ID' query.
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

    The number of epochs is the one at which the contrastive loss of held-out items, fused without an ID vector, is lowest;
    the network is then trained again on all items for as many. The paper is silent; chosen because a network that is trained
    to the end memorises which text belongs to which image.

    Args:
        vectors: modality -> ``[N, J, D_m]`` float32.
        present: modality -> ``[N, J]`` bool.
        config: sizes and settings; ``config.modalities`` names the modalities to use.
        seed: seed of initialisation, batches, dropout and gates.
        queries: ``[N, D]`` initial ID vectors (``query: structural``).
        epochs: shows the progress, and saves it where the stage can be resumed.

    Returns:
        ``(network in evaluation mode, fused [N, D] float32, depth [N] int64, report)``.

    Raises:
        ValueError: a modality is not among the features.
    """
    for name in config.modalities:
        if name not in vectors:
            raise ValueError(f"injection_modalities names {name!r}; the features have {', '.join(vectors) or 'none'}")
    catalog = _Catalog(
        {name: torch.from_numpy(vectors[name]) for name in config.modalities},
        {name: torch.from_numpy(present[name]) for name in config.modalities},
    )
    count = len(next(iter(vectors.values()))) if vectors else len(queries if queries is not None else ())
    start = None if queries is None else torch.from_numpy(queries)
    widths = {name: matrix.shape[2] for name, matrix in catalog.vectors.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(count)
        has_features = [mask.any(1) for mask in catalog.present.values()]
        described = torch.stack(has_features).any(0) if has_features else torch.zeros(count) > 0
        held_out = order[described[order]]  # an item without features would not contribute to the loss
        held_out = held_out[: int(len(held_out) * config.holdout)]
        rest = order[~torch.isin(order, held_out)]
        epochs = epochs or Epochs()
        figures: dict[str, Any] = {"losses": [], "best": float("inf"), "epochs": config.epochs, "retrieval": None}
        if any(mask[held_out].sum() >= 2 for mask in has_features):  # a loss over fewer than two is 0
            trial = DynamicInjection(count, widths, config, start)
            optimizer = _optimizer(trial)
            for epoch in epochs.count(config.epochs, {"model": trial, "optimizer": optimizer}, figures):
                _train_epoch(trial, optimizer, rest, catalog)
                fused = _fuse(trial, held_out, catalog, with_id=False)
                figures["losses"].append(float(trial.contrast(fused)))
                if figures["losses"][-1] < figures["best"]:
                    figures |= {"best": figures["losses"][-1], "epochs": epoch + 1, "retrieval": _retrieval(fused)}
                elif epoch + 1 - figures["epochs"] >= config.patience:
                    break
            torch.manual_seed(seed)
        model = DynamicInjection(count, widths, config, start)
        if widths:
            optimizer = _optimizer(model)
            for _ in epochs.count(figures["epochs"], {"model": model, "optimizer": optimizer}, figures):
                _train_epoch(model, optimizer, torch.arange(count), catalog)
        fused = _fuse(model, torch.arange(count), catalog, with_id=True)
    depth = torch.bincount(fused.depth, minlength=config.layers + 1)[1:].float() / count
    trained = figures["epochs"] if widths else 0
    report = InjectionReport(trained, figures["losses"], depth.tolist(), _retrieval(fused), figures["retrieval"])
    return model, fused.vector.numpy(), fused.depth.numpy(), report


@dataclass(frozen=True)
class _Catalog:
    """Features of all items: modality -> ``[N, J, D_m]`` float and ``[N, J]`` bool."""

    vectors: dict[str, Tensor]
    present: dict[str, Tensor]

    def select(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        vectors = {name: matrix[rows] for name, matrix in self.vectors.items()}
        return vectors, {name: mask[rows] for name, mask in self.present.items()}


def _optimizer(model: DynamicInjection) -> torch.optim.Optimizer:
    config = model.config
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


def _train_epoch(model: DynamicInjection, optimizer: torch.optim.Optimizer, rows: Tensor, catalog: _Catalog) -> None:
    """Train one epoch on the items of ``rows``."""
    config = model.config
    model.train()
    for batch in rows[torch.randperm(len(rows))].split(config.batch_size):
        if len(batch) < 2:
            continue
        query_rows = torch.where(torch.rand(len(batch)) < config.id_dropout, model.no_id, batch)
        loss = model.loss(model(query_rows, *catalog.select(batch)), model.query(query_rows))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _fuse(model: DynamicInjection, rows: Tensor, catalog: _Catalog, with_id: bool) -> Fused:
    model.eval()
    parts = [
        model(part if with_id else torch.full_like(part, model.no_id), *catalog.select(part)) for part in rows.split(4096)
    ]
    return Fused(
        torch.cat([part.vector for part in parts]),
        {name: torch.cat([part.aligned[name] for part in parts]) for name in catalog.vectors},
        {name: torch.cat([part.present[name] for part in parts]) for name in catalog.vectors},
        torch.cat([part.depth for part in parts]),
        parts[0].expected_gates,
    )


def _retrieval(fused: Fused) -> float | None:
    """R@1 from the first modality to the second among items that have both."""
    if len(fused.aligned) < 2:
        return None
    first, second, *_ = fused.aligned
    both = fused.present[first] & fused.present[second]
    left, right = F.normalize(fused.aligned[first][both], dim=1), F.normalize(fused.aligned[second][both], dim=1)
    if not len(left):
        return None
    nearest = torch.cat([(part @ right.T).argmax(1) for part in left.split(1024)])
    return float((nearest == torch.arange(len(left))).float().mean())
