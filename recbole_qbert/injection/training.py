"""Stage 1: the training of the cross-modal network, and the fusion of a catalog with it (paper 3.3, Eq. 5)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.config.schema import InjectionConfig
from recbole_qbert.injection import depth as depths
from recbole_qbert.injection.network import DynamicInjection, Fused, Layers
from recbole_qbert.injection.reconstruction import Reconstruction, reconstruction, start_from_concatenation
from recbole_qbert.utils.resumable_epochs import Epochs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InjectionReport:
    """Figures of a training of stage 1.

    Attributes:
        epochs: epochs without the held-out items, chosen on these.
        more_epochs: epochs on all items that followed, with the same weights.
        held_out_loss: loss of the held-out items, Eq. 5 without the consistency term and reconstruction, after each epoch.
        depth: share of items at depth 1, 2, …, layers.
        retrieval: share of items whose text vector is nearest to their own image vector among all items (trained on).
        held_out_retrieval: the same among the held-out items, fused with the shared 'no ID' query.
        depth_test: `depth.DepthTest` of the held-out items before the last epochs, as a mapping; ``None`` without any.
    """

    epochs: int
    more_epochs: int
    held_out_loss: list[float]
    depth: list[float]
    retrieval: float | None
    held_out_retrieval: float | None
    depth_test: dict[str, Any] | None


def fit(
    vectors: Mapping[str, np.ndarray],
    present: Mapping[str, np.ndarray],
    config: InjectionConfig,
    seed: int,
    queries: np.ndarray | None = None,
    epochs: Epochs | None = None,
) -> tuple[DynamicInjection, np.ndarray, np.ndarray, InjectionReport]:
    """Train stage 1 once and fuse the catalog.

    Some items are held out until their loss, fused without an ID vector of their own, no longer falls. Training then goes on
    from the best weights with all items, for the held-out share of the epochs so far: each step of these has seen as many
    items as if the held-out ones had been there. The paper is silent; chosen because a network that is trained to the end
    memorises which text belongs to which image, and a second training from nothing costs as much again.

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
    chosen = {name: vectors[name] for name in config.modalities}, {name: present[name] for name in config.modalities}
    count = len(next(iter(vectors.values()))) if vectors else len(queries if queries is not None else ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(count)
        has_features = [torch.from_numpy(mask.any(1)) for mask in chosen[1].values()]
        described = torch.stack(has_features).any(0) if has_features else torch.zeros(count) > 0
        held_out = order[described[order]]  # an item without features would not contribute to the loss
        held_out = held_out[: int(len(held_out) * config.holdout)]
        rest = order[~torch.isin(order, held_out)]
        training = _Training(*chosen, count, config, None if queries is None else torch.from_numpy(queries))
        epochs = epochs or Epochs()
        whole_training = config.epochs if has_features else 0
        figures: dict[str, Any] = {
            "losses": [], "best": float("inf"), "epochs": 0, "more": whole_training, "retrieval": None, "test": None
        }  # fmt: skip
        if any(mask[held_out].sum() >= 2 for mask in has_features):  # a loss over fewer than two is 0
            best = _Best(training)
            for epoch in epochs.count(config.epochs, training.parts | {"best": best}, figures):
                training.epoch(rest)
                loss, retrieval = training.judge(held_out)
                figures["losses"].append(loss)
                if loss < figures["best"]:
                    figures |= {"best": loss, "epochs": epoch + 1, "retrieval": retrieval}
                    best.keep()
                elif epoch + 1 - figures["epochs"] >= config.patience:
                    break
            if figures["test"] is None:  # else the second part is being resumed
                best.restore()
                figures["test"] = training.test_depth(rest, held_out)
            training.use_depth(figures["test"])
            figures["more"] = max(1, round(figures["epochs"] * config.holdout))
        for _ in epochs.count(figures["more"], training.parts, figures):
            training.epoch(torch.arange(count))
        if training.deep and has_features:
            training.fit_gates(torch.arange(count))
        fused = training.fuse()
    model = training.model
    depth = torch.bincount(fused.depth, minlength=config.layers + 1)[1:].float() / count
    report = InjectionReport(
        figures["epochs"], figures["more"], figures["losses"], depth.tolist(), _retrieval(fused), figures["retrieval"],
        figures["test"],
    )  # fmt: skip
    if figures["test"]:
        log.info("stage 1: %s", depths.DepthTest(**figures["test"]).sentence())
    return model, fused.vector.numpy(), fused.depth.numpy(), report


class _Training:
    """The network, its decoders, its optimizer and the catalog that it is trained on.

    Args:
        vectors, present, config, queries: as of ``fit``.
        count: ``N``.
    """

    def __init__(
        self,
        vectors: Mapping[str, np.ndarray],
        present: Mapping[str, np.ndarray],
        count: int,
        config: InjectionConfig,
        queries: Tensor | None,
    ) -> None:
        self.config, self.count = config, count
        self.vectors = {name: torch.from_numpy(matrix) for name, matrix in vectors.items()}
        self.present = {name: torch.from_numpy(mask) for name, mask in present.items()}
        widths = {name: matrix.shape[2] for name, matrix in vectors.items()}
        self.model = DynamicInjection(count, widths, config, queries)
        self.deep = config.gate in ("auto", "dynamic", "common")  # every layer's output has the loss
        state = torch.get_rng_state()  # decoders, which may not be used, change no other random number
        structural = queries if config.query == "structural" else None
        self.decoders: Reconstruction = reconstruction(vectors, present, config.dim, structural)
        torch.set_rng_state(state)
        if self.model.start:
            start_from_concatenation(self.model, self.decoders, vectors, present)
        parameters = [*self.model.parameters(), *self.decoders.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that an epoch changes."""
        return {"model": self.model, "decoders": self.decoders, "optimizer": self.optimizer}

    def epoch(self, rows: Tensor) -> None:
        """Train one epoch on the items of ``rows``."""
        self.model.train()
        for batch in rows[torch.randperm(len(rows))].split(self.config.batch_size):
            if len(batch) < 2:
                continue
            loss = self.loss(batch, self.queries(batch))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def queries(self, rows: Tensor) -> Tensor:
        """Choose the queries of a batch: the items' own, or the shared one for a share of them."""
        drawn = torch.rand(len(rows)) < self.config.id_dropout
        return torch.zeros_like(rows) if self.model.start else torch.where(drawn, self.model.no_id, rows)

    def loss(self, rows: Tensor, query_rows: Tensor) -> Tensor:
        """Compute Eq. 5 and reconstruction, ``[]``: of every layer's output, or of the one at the items' depth."""
        model, config = self.model, self.config
        if not self.deep:
            inputs = self.select(rows)
            fused = model(query_rows, *inputs)
            loss = model.loss(fused, model.id_vectors(query_rows, *inputs))
            return loss + config.reconstruction * self.decoders.errors(fused.vector, rows).mean()
        layers = model.every_layer(query_rows, *self.select(rows))
        moved = (layers.vectors - layers.start.detach()).square().sum(-1).mean()
        return self.item_losses(layers, rows).mean() + model.modality_contrast(layers) + config.consistency * moved

    def item_losses(self, layers: Layers, rows: Tensor) -> Tensor:
        """Compute what depth changes of the loss of each item, ``[L, B]``."""
        contrast = torch.stack([self.model.item_losses(vector, layers) for vector in layers.vectors])
        return contrast + self.config.reconstruction * self.decoders.errors(layers.vectors, rows)

    @torch.no_grad()
    def evaluate(self, rows: Tensor, query_rows: Tensor) -> tuple[Layers, Tensor]:
        """Compute the output of every layer, and the loss of each item at each depth, ``[L, B]``."""
        layers = self.model.eval().every_layer(query_rows, *self.select(rows))
        return layers, self.item_losses(layers, rows)

    def judge(self, held_out: Tensor) -> tuple[float, float | None]:
        """Compute the loss of held-out items at their depth (under deep supervision the best common one), and R@1."""
        layers, losses = self.evaluate(held_out, torch.full_like(held_out, self.model.no_id))
        depth = torch.full_like(held_out, len(losses))
        if self.deep:
            depth = torch.full_like(held_out, depths.best_common_depth(losses, self.config.depth_cost))
        elif self.config.gate == "paper":
            depth = self.gate_depth(layers)
        with torch.no_grad():
            loss = depths.at_depth(losses, depth).mean() + self.model.modality_contrast(layers)
        return float(loss), _retrieval(layers)

    def fit_gates(self, rows: Tensor) -> None:
        """Train the gates on items that the layers know."""
        batches = rows[torch.randperm(len(rows))].split(self.config.batch_size)
        evaluated = [self.evaluate(batch, self.queries(batch)) for batch in batches if len(batch) > 1]
        if evaluated:
            vectors = torch.cat([layers.vectors for layers, _ in evaluated], 1)
            depths.fit_gates(self.model, vectors, torch.cat([losses for _, losses in evaluated], 1))

    def gate_depth(self, layers: Layers) -> Tensor:
        """Compute the depth that the gates give each item, ``[B]``; without gates, all layers."""
        if self.config.gate == "none":
            return torch.full((len(layers.start),), len(layers.vectors))
        with torch.no_grad():
            return depths.of_logits(self.model.gate_logits(layers.vectors))

    def test_depth(self, trained_on: Tensor, held_out: Tensor) -> dict[str, Any]:
        """Run the permutation test on held-out items, with gates that were trained without them."""
        if self.deep:
            self.fit_gates(trained_on)
        layers, losses = self.evaluate(held_out, torch.full_like(held_out, self.model.no_id))
        return asdict(depths.permutation_test(losses, self.gate_depth(layers), self.config.depth_cost))

    def use_depth(self, test: Mapping[str, Any]) -> None:
        """Set whether gates decide, or all items have the best common depth."""
        by_gates = test["beats_permuted"] and test["beats_common"]
        if self.config.gate == "common" or (self.config.gate == "auto" and not by_gates):
            self.model.common_depth.fill_(test["common"])
        elif self.config.gate == "auto":
            self.model.common_depth.zero_()

    @torch.no_grad()
    def fuse(self) -> Fused:
        """Fuse the catalog, each item with its own query if it has one."""
        model = self.model.eval()
        rows = torch.zeros(self.count, dtype=torch.int64) if model.start else torch.arange(self.count)
        parts = [model(rows[part], *self.select(part)) for part in torch.arange(self.count).split(4096)]
        return Fused(
            torch.cat([part.vector for part in parts]),
            {name: torch.cat([part.aligned[name] for part in parts]) for name in self.vectors},
            {name: torch.cat([part.present[name] for part in parts]) for name in self.vectors},
            torch.cat([part.depth for part in parts]),
            parts[0].expected_gates,
        )

    def select(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        vectors = {name: matrix[rows] for name, matrix in self.vectors.items()}
        return vectors, {name: mask[rows] for name, mask in self.present.items()}


class _Best:
    """The state of a training at its best epoch, which is saved with it."""

    def __init__(self, training: _Training) -> None:
        self.training, self.state = training, dict[str, Any]()

    def keep(self) -> None:
        """Remember the state of now."""
        self.state = copy.deepcopy({name: part.state_dict() for name, part in self.training.parts.items()})

    def restore(self) -> None:
        """Set the training back to what was kept."""
        for name, state in self.state.items():
            self.training.parts[name].load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def _retrieval(fused: Fused | Layers) -> float | None:
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
