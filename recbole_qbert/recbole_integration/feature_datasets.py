"""Data sets of models that read item vectors: VQRec with codes made of them, MISSRec with the vectors themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_qbert.config.baseline_schema import ProductQuantizerConfig
from recbole_qbert.config.schema import read
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.pipeline import product_codes
from recbole_qbert.recbole_integration import identifiers
from recbole_qbert.recbole_integration.dataset import HistoryDataset
from recbole_qbert.recbole_integration.patches import ConfigValues
from recbole_qbert.utils.distributed import first_before_others, rank


class ProductCodeDataset(HistoryDataset):
    """A ``HistoryDataset`` whose items have codes of optimized product quantization.

    Attributes:
        product_codes: ``[N, G]`` int16, -1 for an item without a vector; set by ``build``.
        product_code_figures: figures on them; set by ``build``.
    """

    product_codes: np.ndarray
    product_code_figures: dict[str, Any]

    def complete(self, parts: Sequence[Any]) -> None:
        """Load or build the codes, and give them to the parts of the data set."""
        config, catalog = self.config, self.catalog()
        features = identifiers.load_modalities(config, catalog)
        values, first = ConfigValues(config), rank() == 0
        with first_before_others():
            codes, figures = product_codes.load_or_build(
                catalog, features, read(ProductQuantizerConfig, values), int(config["seed"]),
                identifiers.candidate_files(config)[2].parent,
                rebuild=first and bool(config["rebuild"]), progress=first and bool(config["show_progress"]),
            )  # fmt: skip
        for part in parts:
            part.product_codes, part.product_code_figures = codes, figures


class PrefixFeatureDataset(HistoryDataset):
    """A ``HistoryDataset`` with one training row per prefix of a history, as RecBole has, and with item vectors.

    The rows are made by one gather, where RecBole has a Python loop.

    Attributes:
        item_features: features of all items; set by ``build``.
    """

    item_features: ItemFeatures

    def complete(self, parts: Sequence[Any]) -> None:
        """Load the features, and give them to the parts of the data set."""
        features = identifiers.load_modalities(self.config, self.catalog())
        for part in parts:
            part.item_features = features

    def _training_rows(self, start: Tensor, length: Tensor, width: int) -> Interaction:
        """Make one row per prefix: its newest ``width`` items, and the item after it as the target."""
        count = (length - 1).clamp(min=0)
        target = 1 + torch.arange(int(count.sum())) - (count.cumsum(0) - count).repeat_interleave(count)
        return self._rows(start.repeat_interleave(count), target, target, width)
