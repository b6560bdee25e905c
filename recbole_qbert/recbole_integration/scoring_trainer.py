"""``QBERT4RecTrainer`` for other networks that score all items: its epochs, processes, resuming and ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.recbole_integration.trainer import QBERT4RecTrainer
from recbole_qbert.sequence.scoring import rank_of


class ScoringTrainer(QBERT4RecTrainer):
    """Train models whose network has ``scores(sequences, lengths, table)`` and ``item_table()``.

    A model has what ``QBERT4RecTrainer`` reads: ``network``, ``settings``, ``batch_loss`` and ``fingerprint``. Besides, its
    ``start_epoch`` is called before every epoch, also before the first one after an interruption.
    """

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> float:
        """Let the model prepare the epoch, then train."""
        self.model.start_epoch(epoch_idx)
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _rank_function(self) -> Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]:
        ranker = ScoreRanker(self.model.eval().network)

        def rank(rows: Any, sequences: Tensor, lengths: Tensor, exclude: Tensor | None) -> Tensor:
            return ranker.rank(sequences, lengths, rows[self.model.ITEM_ID], exclude=exclude)

        return rank


class ScoreRanker:
    """Rank targets by the scores of all items, with the network's weights at construction.

    Args:
        network: a network in evaluation mode.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        with torch.no_grad():
            self.table = network.item_table()

    @torch.no_grad()
    def rank(self, sequences: Tensor, lengths: Tensor, target: Tensor, *, exclude: Tensor | None = None) -> Tensor:
        """Rank each target among all items, counting from 1, ties against the model.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned.
            lengths: ``[B]`` int64, at least 1.
            target: ``[B]`` int64 items.
            exclude: ``[B, X]`` int64 items that are ranked last, padded with -1.

        Returns:
            ``[B]`` int64.
        """
        scores = self.network.scores(sequences, lengths, self.table)
        if exclude is not None:
            scores = scores.scatter(1, exclude.clamp(min=0), -torch.inf)  # item 0 is padding and has -inf anyway
        return rank_of(scores, target)
