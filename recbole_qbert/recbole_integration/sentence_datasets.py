"""Data sets of models that read sentences: P5CID with paths of co-occurrence clusters as IDs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from recbole_qbert.config.schema import read
from recbole_qbert.config.sentences import CollaborativeConfig
from recbole_qbert.pipeline import collaborative_ids
from recbole_qbert.recbole_integration import identifiers
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from recbole_qbert.recbole_integration.patches import ConfigValues
from recbole_qbert.utils.distributed import first_before_others, rank


class CollaborativeIDDataset(HistoryDataset):
    """A ``HistoryDataset`` whose items have IDs of variable length, made of training co-occurrence.

    Attributes:
        path_ids: ``[N, K]`` int64 tokens from 0 on, without the padding item; -1 behind the end of an ID; set by ``build``.
        identifier_figures: figures on them, with the number of tokens; set by ``build``.
    """

    path_ids: np.ndarray
    identifier_figures: dict[str, Any]

    def build(self) -> list[HistoryDataset]:
        """Split the data; load or make the IDs.

        Raises:
            ValueError: the settings of the tree do not fit each other.
        """
        parts = super().build()
        self.set_path_ids([self, *parts])
        return parts

    def set_path_ids(self, parts: Sequence[Any]) -> None:
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

    @classmethod
    def update_saved_parts(cls, parts: Sequence[Any], config: Any) -> None:
        """Update the IDs of parts that RecBole has read from a file of loaders to the current settings."""
        for part in parts:
            part.config = config
        parts[0].set_path_ids(parts)
