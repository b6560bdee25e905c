"""Item-kNN by co-occurrence as a RecBole model: a baseline without training that beats many networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.trainer import Trainer
from recbole.utils import InputType
from torch import Tensor

from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior


class CooccurrenceKNN(SequentialRecommender):  # type: ignore[misc]
    """Score an item by its co-occurrence with the history in the training part, and by likeness of content if asked to.

    The score is the evidence of ``CooccurrencePrior``.

    Items of the history are scored like all others, and rank high. An evaluation excludes them for this model if it does so
    for every model.

    RecBole's own ItemKNN does not use the history of a row. It scores the training interactions of a user id, so that at
    test it does not know the validation item.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/CooccurrenceKNN.yaml``.
        dataset: training part of a ``HistoryDataset``. Its ``histories`` are whole; RecBole's own rows are cut.

    Raises:
        ValueError: ``shrink``, ``decay`` or ``content_weight`` is outside its range, or the data set has no features.
    """

    input_type = InputType.POINTWISE

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        shrink, decay, weight = (float(config[key] or 0) for key in ("shrink", "decay", "content_weight"))
        content = dataset.content_likeness() if weight else None
        if weight and content is None:
            raise ValueError(f"content_weight is {weight}, but the data set has no features of its items; set it to 0")
        self.prior = CooccurrencePrior(dataset.histories, self.n_items, shrink, decay, content, weight)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return the scores of all items, ``[B, n_items]``, at least 0; padding gets -inf."""
        sequences, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        row, item, evidence = self.prior.evidence(sequences, lengths, with_history=True)
        scores = evidence.new_zeros(len(sequences), self.n_items)
        scores[row, item] = evidence
        scores[:, 0] = -torch.inf
        return scores

    def predict(self, interaction: Any) -> Tensor:
        """Return the score of one item per row, ``[B]``, equal to that of ``full_sort_predict``."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]


class CooccurrenceKNNTrainer(Trainer):  # type: ignore[misc]
    """RecBole's trainer without epochs: ``fit`` validates once and writes the checkpoint.

    RecBole's ``TraditionalTrainer`` runs one epoch with a dummy loss and a dummy parameter.
    """

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """Build an optimizer without parameters, because checkpoints hold its state."""
        del kwargs
        return torch.optim.SGD([torch.zeros(0)], lr=0.0)

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], Any] | None = None,
    ) -> tuple[float, Any]:
        """Validate and write the checkpoint; there are no epochs.

        Args:
            train_data: loader of the training rows.
            valid_data: loader of the validation rows; without it there is no score.
            verbose: log the name of the checkpoint.
            saved: write the checkpoint.
            show_progress: show progress bars.
            callback_fn: function that is called with epoch 0 and the score.

        Returns:
            Score and metrics on validation.
        """
        self.eval_collector.data_collect(train_data)
        if valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
            if callback_fn:
                callback_fn(0, self.best_valid_score)
        if saved:
            self._save_checkpoint(0, verbose=verbose)
        return self.best_valid_score, self.best_valid_result
