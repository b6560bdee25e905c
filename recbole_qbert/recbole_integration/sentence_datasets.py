"""Data sets of models that read sentences: P5CID with cluster paths as IDs, VIP5 with item numbers and pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_qbert.config.schema import read
from recbole_qbert.config.sentences import CollaborativeConfig, NumberConfig
from recbole_qbert.data.item_features import one_vector
from recbole_qbert.data.item_numbers import item_numbers
from recbole_qbert.generative.t5_weights import require_backbone
from recbole_qbert.pipeline import collaborative_ids
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.recbole_integration import identifiers
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from recbole_qbert.recbole_integration.patches import ConfigValues
from recbole_qbert.utils.distributed import first_before_others, rank


class SentenceDataset(HistoryDataset):
    """A ``HistoryDataset`` of a model that may start from a pretrained T5."""

    @classmethod
    def require_named_files(cls, config: Any) -> None:
        """Refuse a missing ``backbone``, too; before IDs are made.

        Raises:
            FileNotFoundError, ImportError, ValueError: name the property and what is wrong with it.
        """
        super().require_named_files(config)
        if config["backbone"]:
            require_backbone(config["backbone"])


class CollaborativeIDDataset(SentenceDataset):
    """A data set whose items have IDs of variable length, made of training co-occurrence.

    Attributes:
        path_ids: ``[N, K]`` int64 tokens from 0 on, without the padding item; -1 behind the end of an ID; set by ``build``.
        identifier_figures: figures on them, with the number of tokens; set by ``build``.
    """

    path_ids: np.ndarray
    identifier_figures: dict[str, Any]

    def complete(self, parts: Sequence[Any]) -> None:
        """Load or make the IDs, and give them to the parts of the data set."""
        config, start = self.config, time.perf_counter()
        with first_before_others():
            ids, figures = collaborative_ids.load_or_build(
                self.catalog(),
                read(CollaborativeConfig, ConfigValues(config)),
                identifiers.candidate_files(config)[2].parent,
                rebuild=rank() == 0 and bool(config["rebuild"]),
            )
        seconds = {"collaborative_ids": round(time.perf_counter() - start, 2)}
        for part in parts:
            part.path_ids, part.identifier_figures = ids, {"collaborative_ids": figures, "seconds": seconds}


class PictureDataset(SentenceDataset):
    """A data set whose items have numbers, and vectors of pictures.

    Attributes:
        item_numbers: ``[N]`` int64 numbers from 1 on, without the padding item; set by ``build``.
        pictures: ``[N, F]`` float32 mean vector of each item's pictures, zeros without; ``None`` with ``visual_tokens: 0``.
        has_picture: ``[N]`` bool.
        identifier_figures: figures on both; set by ``build``.
    """

    item_numbers: np.ndarray
    pictures: np.ndarray | None
    has_picture: np.ndarray
    identifier_figures: dict[str, Any]

    def complete(self, parts: Sequence[Any]) -> None:
        """Number the items, load their pictures, and give both to the parts of the data set."""
        catalog, settings = self.catalog(), read(NumberConfig, ConfigValues(self.config))
        numbers = item_numbers(catalog.items, catalog.histories, settings.item_numbers, int(self.config["seed"]))
        pictures, present = None, np.zeros(len(numbers), dtype=bool)
        if settings.visual_tokens:
            pictures, present = self._load_pictures(catalog, settings.image_features)
        figures = {"pictures": {"width": 0 if pictures is None else pictures.shape[1], "items": int(present.sum())}}
        for part in parts:
            part.item_numbers, part.pictures, part.has_picture = numbers, pictures, present
            part.identifier_figures = {**figures, "item_numbers": settings.item_numbers, "seconds": {}}

    def _load_pictures(self, catalog: Catalog, name: str) -> tuple[np.ndarray, np.ndarray]:
        features = identifiers.load_features(self.config, catalog, str(self.config["missing_features"]))
        if name not in features.vectors:
            raise ValueError(
                f"image_features is {name!r}, but {catalog.dataset} has no such features (it has "
                f"{', '.join(features.vectors) or 'none'}); make {catalog.dataset}.{name}.npy, or set visual_tokens to 0 to "
                "leave pictures out"
            )
        present = features.present[name]
        return one_vector(features.vectors[name], present), present.any(1)
