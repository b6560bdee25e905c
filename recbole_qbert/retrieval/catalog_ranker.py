"""A trained network as an index over its catalog: best items and ranks for histories, never a ``[B, N]`` of scores.

The same order as ``SemanticSequenceModel.scores``: what a view's softmax subtracts is one number a user, so the mean of the
views' log-probabilities ranks as the mean of their logits. The numbers themselves (``top_k`` with ``normalised``) need one
more pass over the catalog a view. Rounding apart: sums are taken in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_qbert.retrieval.index import DenseIndex, ItemIndex
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.model import SemanticSequenceModel

Adjust = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Asked:
    """What the index is asked with for a batch of histories.

    Attributes:
        views: queries of each view, ``[B, K, M]`` or ``[B, D]``.
        adjust: items ``[B, H]`` (-1: none) and what is added to their scores, in every view.
        lifts: the same, of the prior; ``None`` without one.
        exclude: ``[B, X]`` items that are no answer.
    """

    views: list[Tensor]
    adjust: Adjust | None
    lifts: Adjust | None
    exclude: Tensor | None


class CatalogRanker:
    """Ranks the catalog of a network; made for its weights as they are now.

    Args:
        network: trained; ``eval()`` is the caller's business.
        prior: added to the scores, if there is one.
        dense: rank by item vectors, ``[N, D]`` float32, where codes alone would do. A matrix product over many users is
            quicker than look-ups over many levels; for one user, and for memory, it is the other way round
            (benchmarks/ranking.py). A network with a row of parameters an item has no choice.
    """

    def __init__(
        self, network: SemanticSequenceModel, prior: CooccurrencePrior | None = None, *, dense: bool = True
    ) -> None:
        self.network, self.prior = network, prior
        self.codewise = network.config.loss == "code"
        self.table: Tensor | None = None
        if self.codewise or (not dense and network.item_embedding is None):
            self.index: ItemIndex | DenseIndex = ItemIndex(network.codes, network.codebook.shape[1], valid=network.valid)
        else:
            with torch.inference_mode():
                self.table = network.item_table()
            self.index = DenseIndex(self.table, valid=network.valid)

    @torch.inference_mode()
    def top_k(
        self,
        sequences: Tensor,
        lengths: Tensor,
        k: int,
        *,
        exclude: Tensor | None = None,
        normalised: bool = True,
        threads: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` best items after each history, best first; of equal scores the lower row first.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned, ``L`` at most ``max_length``.
            lengths: ``[B]`` int64, at least 1.
            k: how many.
            exclude: ``[B, X]`` int64 items that are no answer, besides what the network itself excludes; -1: none.
            normalised: give log-probabilities, as ``SemanticSequenceModel.scores`` and the prior; otherwise the same less a
                number that is the user's own.
            threads: of the compiled methods of ``ItemIndex``.

        Returns:
            ``(scores [B, k] float32, items [B, k] int64)``; -inf and -1 where fewer than ``k`` items can be answers.
        """
        scores = torch.empty(len(sequences), k, device=sequences.device)
        items = torch.empty(len(sequences), k, dtype=torch.int64, device=sequences.device)
        for rows, allowed in self._domains(sequences):
            asked = self._asked(sequences[rows], lengths[rows], None if exclude is None else exclude[rows])
            query, adjust = torch.stack(asked.views).mean(0), _joined(asked.adjust, asked.lifts)
            best, found = self.index.top_k(query, k, exclude=asked.exclude, adjust=adjust, allowed=allowed, threads=threads)
            if normalised:
                best = best - self._constant(asked, allowed)[:, None]
            scores[rows], items[rows] = best, found
        return scores, items

    @torch.inference_mode()
    def rank(
        self, sequences: Tensor, lengths: Tensor, target: Tensor, *, exclude: Tensor | None = None, threads: int = 1
    ) -> Tensor:
        """Rank of each target among all items, counted from 1, ties against the model; ``[B]`` int64.

        Args:
            sequences, lengths, exclude, threads: as for :meth:`top_k`.
            target: ``[B]`` int64 items; one that can be no answer gets ``N``, the number of rows.
        """
        ranks = torch.empty(len(sequences), dtype=torch.int64, device=sequences.device)
        for rows, allowed in self._domains(sequences):
            asked = self._asked(sequences[rows], lengths[rows], None if exclude is None else exclude[rows])
            query, adjust = torch.stack(asked.views).mean(0), _joined(asked.adjust, asked.lifts)
            ranks[rows] = self.index.rank(
                query, target[rows], exclude=asked.exclude, adjust=adjust, allowed=allowed, threads=threads
            )
        return ranks

    def _domains(self, sequences: Tensor) -> list[tuple[Tensor | slice, Tensor | None]]:
        """Rows of the batch that share their allowed items, and these."""
        domains = self.network.domains
        if domains is None:
            return [(slice(None), None)]
        of_row = domains[sequences[:, 0]]
        return [((of_row == domain).nonzero()[:, 0], domains == domain) for domain in of_row.unique()]

    def _asked(self, sequences: Tensor, lengths: Tensor, exclude: Tensor | None) -> _Asked:
        network = self.network
        views = []
        for view in network.config.views:
            state = network.states(sequences, lengths, view, self.table)
            if isinstance(self.index, DenseIndex):
                views.append(state)
                continue
            tables = torch.einsum("bd,kmd->bkm", state, network.codebook)
            views.append(network.code_log_ratios(tables) if self.codewise else tables)
        real = torch.arange(sequences.shape[1], device=sequences.device) < lengths[:, None]
        history = torch.where(real, sequences, -1)
        if network.config.repeat_penalty == "exclude":
            exclude = history if exclude is None else torch.cat([history, exclude], 1)
        adjust = (history, (-network.penalty).expand(history.shape)) if network.repeat_penalty is not None else None
        return _Asked(views, adjust, None if self.prior is None else self.prior.sparse_logits(sequences, lengths), exclude)

    def _constant(self, asked: _Asked, allowed: Tensor | None) -> Tensor:
        """What scores are above log-probabilities, ``[B]``."""
        floor = 0.0 if self.prior is None else self.prior.base_logit
        if self.codewise:
            return asked.views[0].new_full((len(asked.views[0]),), -float(floor))
        parts = [self.index.log_sum_exp(query, adjust=asked.adjust, allowed=allowed) for query in asked.views]
        return torch.stack(parts).mean(0) - floor


def _joined(first: Adjust | None, second: Adjust | None) -> Adjust | None:
    """Both lists of items and amounts."""
    if first is None or second is None:
        return first or second
    return torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 1)
