"""What several test files need: settings from the property file, made smaller, and feature files."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import yaml

from recbole_qbert.config import schema
from recbole_qbert.config.property_files import property_file
from recbole_qbert.data import item_features as features
from recbole_qbert.pipeline import catalog

torch.set_num_threads(1)

DEFAULTS = yaml.safe_load(property_file("model/QBERT4Rec.yaml").read_text(encoding="utf-8"))


def _read(kind: Any, changes: dict[str, Any], **also: Any) -> Any:
    values = defaultdict(lambda: None, DEFAULTS, **also)
    values.update({kind.prefix + key: value for key, value in changes.items()})
    return schema.read(kind, values)


def sequence_config(**changes: Any) -> schema.SequenceConfig:
    small = {"hidden_size": 16, "n_layers": 2, "n_heads": 2, "inner_size": 32, "max_length": 20}
    return _read(schema.SequenceConfig, {**small, "score_views": None, **changes})


def injection_config(**changes: Any) -> schema.InjectionConfig:
    small = {"modalities": ("text", "image"), "dim": 16, "heads": 2, "epochs": 3, "batch_size": 16}
    small |= {"query": "random", "gate": "paper", "attention": "aligned", "reconstruction": 0.0}  # the paper's letter
    return _read(schema.InjectionConfig, {**small, **changes})


def quantizer_config(**changes: Any) -> schema.QuantizerConfig:
    small = {
        "method": "rqvae",
        "levels": 2,
        "codes": 8,
        "dim": 4,
        "hidden": (8,),
        "batch_size": 16,
        "warmup_epochs": 2,
        "epochs": 3,
    }
    return _read(schema.QuantizerConfig, {**small, **changes})


def identifier_config(**changes: Any) -> schema.IdentifierConfig:
    return _read(schema.IdentifierConfig, {"fusion": "injection", **changes})


def stage_settings(*, seed: int = 3, identifiers: Any = (), injection: Any = (), quantizer: Any = ()) -> Any:
    return catalog.StageSettings(
        identifiers=identifier_config(**dict(identifiers)),
        injection=injection_config(**{"modalities": ("auto",), **dict(injection)}),
        quantizer=quantizer_config(**dict(quantizer)),
        seed=seed,
    )


def write_features(folder: Path, items: Any, dataset: str = "toy", **matrices: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    features.save(folder, dataset, items, matrices, {"made": "by hand"})


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the runs of true values of a row."""
    return [len(list(group)) for value, group in groupby(row.tolist()) if value]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def linear_is_identity(layer: Any) -> None:
    """Make a one-layer MLP return its input."""
    with torch.no_grad():
        layer[0].weight.copy_(torch.eye(*layer[0].weight.shape))
        layer[0].bias.zero_()
