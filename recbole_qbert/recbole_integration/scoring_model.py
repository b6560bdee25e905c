"""What RecBole asks of a model whose ``network`` scores all items for histories."""

from __future__ import annotations

from typing import Any

from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor


class ScoringRecommender(SequentialRecommender):  # type: ignore[misc]
    """Answer RecBole's calls by ``network.scores(sequences, lengths)`` and the model's own ``batch_loss``."""

    input_type = InputType.POINTWISE
    exclude_history = False  # in evaluation; a comparison sets it for every model (experiment.exclude_history)
    network: Any

    def batch_loss(self, interaction: Any) -> Tensor:
        """Return the loss of a batch, ``[]``."""
        raise NotImplementedError

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return the loss of a batch, ``[]``."""
        return self.batch_loss(interaction)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return the scores of all items, ``[B, n_items]``; padding gets -inf."""
        sequences, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        sequences = sequences[:, : int(lengths.max())]  # the batch's longest, not MAX_ITEM_LIST_LENGTH
        return self._scores(sequences, lengths)

    def _scores(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Score all items for histories ``[B, L]`` of ``lengths [B]``; ``[B, n_items]``."""
        scores: Tensor = self.network.scores(sequences, lengths)
        return scores

    def predict(self, interaction: Any) -> Tensor:
        """Return the score of one item per row, ``[B]``, equal to that of ``full_sort_predict``."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]
