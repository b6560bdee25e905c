"""Choose the kind of semantic IDs on validation (``semantic_ids: auto``).

Paper silent; chosen because no kind is the best everywhere: a fused ID holds all modalities, IDs of one modality each keep
them apart, and where the features say nothing of what people choose, item embeddings alone are better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_qbert.config.schema import QuantizerConfig, read
from recbole_qbert.recbole_integration.identifiers import candidate_files
from recbole_qbert.recbole_integration.patches import ConfigValues
from recbole_qbert.recbole_integration.side_training import train_beside
from recbole_qbert.utils.io import json_lines

START = 4  # other kinds than the first are at first trained for this part of its epochs


@dataclass(frozen=True)
class Candidate:
    """A kind of semantic IDs and its training.

    Attributes:
        kind: value of ``semantic_ids``.
        trainer: its trainer; ``trainer.model`` has the best weights.
        scores: score on validation after each epoch, higher is better.
    """

    kind: str
    trainer: Any
    scores: tuple[float, ...]

    def best(self, epochs: int | None = None) -> float:
        """Return the best score of the first ``epochs``, or of all."""
        return max(self.scores[:epochs], default=float("-inf"))


def train_best_kind(student: Any, train_data: Any, valid_data: Any, show_progress: bool) -> Candidate:
    """Train with every kind of IDs that data and settings allow; return the one that ranks best on validation.

    The first kind is trained to its end, in ``T`` epochs, the others for ``T / 4`` epochs. The best of the others continues
    if it is ahead of the first after as many epochs. All together train for at most ``2 T`` epochs. The checkpoints lie
    beside the student's, as ``<name>.<kind>.pth`` (``side_training``).

    Args:
        student: a ``QBERT4RecTrainer`` before its first epoch.
        train_data: loader of the training rows.
        valid_data: loader of the validation rows.
        show_progress: show progress bars.
    """

    def train(kind: str, epochs: int) -> Candidate:
        settings = _settings_of(student, kind) | {"epochs": epochs}
        trainer = train_beside(student, kind, settings, train_data, valid_data, show_progress)
        sign = 1 if student.valid_metric_bigger else -1
        scores = tuple(sign * line[trainer.valid_metric] for line in json_lines(trainer.progress.log))
        return Candidate(kind, trainer, scores)

    first, *others = _kinds(student)
    candidates = {first: train(first, student.epochs)}
    total = len(candidates[first].scores)
    start = max(1, total // START)
    candidates |= {kind: train(kind, start) for kind in others}
    ahead = max(candidates, key=lambda kind: candidates[kind].best(start))
    if ahead != first:
        candidates[ahead] = train(ahead, max(start, total - start * (len(others) - 1)))
    best = max(candidates.values(), key=Candidate.best)
    tried = {kind: {"epochs": len(one.scores), "score": abs(one.best())} for kind, one in candidates.items()}
    text = ", ".join(f"{kind} {one['score']:.4f} in {one['epochs']} epochs" for kind, one in tried.items())
    student.logger.info(f"semantic_ids auto: {best.kind} ({student.valid_metric} on validation: {text})")
    best.trainer.model.identifier_figures |= {"semantic_id_choice": {"chosen": best.kind, "tried": tried}}
    return best


def _kinds(student: Any) -> list[str]:
    """List the kinds that data and settings allow; the first is that of the model as it was built."""
    config, network, modalities = student.config, student.model.network.config, len(_modalities(student))
    kinds, items = ["fused"], student.model.n_items - 1
    if modalities > 1 and (levels := config["rq_levels"] // modalities):
        quantizer = read(QuantizerConfig, {**ConfigValues(config), "rq_levels": levels}).for_catalog(items)
        if quantizer.codes**levels >= items:
            kinds.append("per_modality")
    if network.use_item_embedding and network.loss != "code":
        kinds.append("none")
    return kinds


def _settings_of(student: Any, kind: str) -> dict[str, Any]:
    """Return the properties of a kind. IDs of one modality each have together as many levels as the fused one."""
    if kind != "per_modality":
        return {"semantic_ids": kind}
    folder = candidate_files(student.config)[2].parent
    levels = student.config["rq_levels"] // len(_modalities(student))
    return {"semantic_ids": kind, "rq_levels": levels, "semantic_id_dir": str(folder / kind)}


def _modalities(student: Any) -> Any:
    """Name the modalities of the features; none where a ``.sid`` file is given."""
    return student.model.identifier_figures.get("features", {}).get("modalities", {})
