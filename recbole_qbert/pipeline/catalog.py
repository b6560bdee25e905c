"""The input of stages 1 and 2: a catalog of items, and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.config.schema import IdentifierConfig, InjectionConfig, QuantizerConfig, read
from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat


@dataclass(frozen=True)
class Catalog:
    """The items of a data set and the training histories.

    Attributes:
        dataset: name of the data set; the names of its files start with it.
        folder: folder of its files.
        items: ``N`` item tokens.
        histories: training part of each user's history as rows of ``items``; nothing of validation or test.
        form: how the atomic files of the folder are written.
    """

    dataset: str
    folder: Path
    items: tuple[str, ...]
    histories: Sequence[np.ndarray]
    form: AtomicFormat = RECBOLE_FORMAT


@dataclass(frozen=True)
class StageSettings:
    """Settings of stages 1 and 2."""

    identifiers: IdentifierConfig
    injection: InjectionConfig
    quantizer: QuantizerConfig
    seed: int


def stage_settings(values: Mapping[str, Any]) -> StageSettings:
    """Read the settings of stages 1 and 2 from properties."""
    return StageSettings(
        identifiers=read(IdentifierConfig, values),
        injection=read(InjectionConfig, values),
        quantizer=read(QuantizerConfig, values),
        seed=int(values["seed"]),
    )
