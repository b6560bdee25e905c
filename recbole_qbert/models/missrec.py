"""MISSRec as a RecBole model, from scratch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_qbert.baselines.missrec import MISSRecNetwork
from recbole_qbert.config.baseline_schema import MISSRecConfig
from recbole_qbert.config.schema import read
from recbole_qbert.data.item_features import one_vector
from recbole_qbert.recbole_integration import patches
from recbole_qbert.recbole_integration.scoring_model import ScoringRecommender
from recbole_qbert.utils.io import digest


class MISSRec(ScoringRecommender):
    """MISSRec: text and image vectors of items, interests as clusters of them, and mixed cosines (ACM MM 2023).

    Before every epoch the interests are found anew. With ``use_item_embedding: false`` an item is its vectors alone (the
    paper's inductive setting).

    Args:
        config: RecBole's configuration with the keys of ``properties/model/MISSRec.yaml``.
        dataset: training part of a ``PrefixFeatureDataset`` that was built.

    Raises:
        ValueError: a setting is refused.
    """

    prior = None

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        values = patches.ConfigValues(config)
        self.settings = read(MISSRecConfig, values | {"max_length": self.max_seq_length})
        self.seed = int(config["seed"])
        features = dataset.item_features
        vectors, present = {}, {}
        for name, matrix in features.vectors.items():
            vectors[name] = _with_padding(torch.from_numpy(one_vector(matrix, features.present[name])))
            present[name] = _with_padding(torch.from_numpy(features.present[name].any(1)))
        self.network = MISSRecNetwork(self.settings, vectors, present)
        self.start = digest(
            [dataset.item_tokens(), features.inputs, [history.tolist() for history in dataset.histories]],
        )
        # The same in every process.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def start_epoch(self, epoch: int) -> None:
        """Find the interests of an epoch; the draw depends on the seed and the epoch's number alone.

        Args:
            epoch: number of the epoch, from 0.
        """
        self.network.discover_interests(torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**62))

    def batch_loss(
        self, interaction: Any, masks: torch.Generator | None = None, share: tuple[int, int] = (0, 1), soft: None = None
    ) -> Tensor:
        """Return the loss of a batch, or of one process's share of it.

        Args:
            interaction: prefixes of training histories, each with its target.
            masks: not used; only dropout is random.
            share: number of this process, and number of processes.
            soft: not used; this model has no teachers.
        """
        del masks, soft
        sequences, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        return self.network.loss(sequences, lengths, interaction[self.ITEM_ID], share)

    def fingerprint(self) -> str:
        """Return a digest of what training starts from besides the settings: items, features, histories."""
        return self.start


def _with_padding(rows: Tensor) -> Tensor:
    """Put a row of zeros before the items' rows."""
    return torch.cat([torch.zeros_like(rows[:1]), rows])
