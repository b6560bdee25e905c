"""Top-k items and ranks of a trained network for histories, without a ``[B, N]`` matrix of scores.

The order is that of ``SemanticSequenceModel.scores``: a view's softmax subtracts one number a user, so the mean of the
views' log-probabilities ranks as the mean of their logits. Log-probabilities (``top_k`` with ``normalised``) need one more
pass over the catalog for each view. Sums are taken in another order, so scores may be rounded otherwise.
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
class _Request:
    """Arguments of the index for a batch of histories.

    Attributes:
        views: queries of each view, ``[B, K, M]`` or ``[B, D]``.
        adjust: items ``[B, H]``, padded with -1, and the amounts added to their scores, in every view.
        prior_logits: the same, from the prior; ``None`` without one.
        exclude: ``[B, X]`` items that are not recommended, padded with -1.
    """

    views: list[Tensor]
    adjust: Adjust | None
    prior_logits: Adjust | None
    exclude: Tensor | None


class CatalogRanker:
    """Rank the catalog of a network, with its weights at construction.

    Args:
        network: a trained network; the caller calls ``eval()``.
        prior: added to the scores, if not None.
        dense: rank by item vectors, ``[N, D]`` float32, even if codes are sufficient. For many users, a matrix product is
            faster than look-ups over many levels; for one user, look-ups are faster, and they take less memory
            (benchmarks/ranking.py). A network with item embeddings is always ranked by vectors.
    """

    def __init__(
        self, network: SemanticSequenceModel, prior: CooccurrencePrior | None = None, *, dense: bool = True
    ) -> None:
        self.network, self.prior = network, prior
        self.by_code = network.config.loss == "code"
        self.table: Tensor | None = None
        if self.by_code or (not dense and network.item_embedding is None):
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
        """Find the ``k`` best items after each history, best first; of equal scores the lower row first.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned, ``L`` at most ``max_length``.
            lengths: ``[B]`` int64, at least 1.
            k: number of items.
            exclude: ``[B, X]`` int64 items to exclude besides those that the network excludes; padded with -1.
            normalised: return log-probabilities, as ``SemanticSequenceModel.scores`` and the prior do; otherwise scores that
                differ from them by one number for each user.
            threads: number of threads of the compiled methods of ``ItemIndex``.

        Returns:
            ``(scores [B, k] float32, items [B, k] int64)``; -inf and -1 where fewer than ``k`` items remain.
        """
        scores = torch.empty(len(sequences), k, device=sequences.device)
        items = torch.empty(len(sequences), k, dtype=torch.int64, device=sequences.device)
        for rows, allowed in self._domains(sequences):
            request = self._request(sequences[rows], lengths[rows], None if exclude is None else exclude[rows])
            query, adjust = torch.stack(request.views).mean(0), _joined(request.adjust, request.prior_logits)
            best, best_items = self.index.top_k(
                query, k, exclude=request.exclude, adjust=adjust, allowed=allowed, threads=threads
            )
            if normalised:
                best = best - self._offset(request, allowed)[:, None]
            scores[rows], items[rows] = best, best_items
        return scores, items

    @torch.inference_mode()
    def rank(
        self, sequences: Tensor, lengths: Tensor, target: Tensor, *, exclude: Tensor | None = None, threads: int = 1
    ) -> Tensor:
        """Rank each target among all items, counting from 1, ties against the model.

        Args:
            sequences, lengths, exclude, threads: as for :meth:`top_k`.
            target: ``[B]`` int64 items.

        Returns:
            ``[B]`` int64; ``N``, the number of rows, for a target that cannot be recommended.
        """
        ranks = torch.empty(len(sequences), dtype=torch.int64, device=sequences.device)
        for rows, allowed in self._domains(sequences):
            request = self._request(sequences[rows], lengths[rows], None if exclude is None else exclude[rows])
            query, adjust = torch.stack(request.views).mean(0), _joined(request.adjust, request.prior_logits)
            ranks[rows] = self.index.rank(
                query, target[rows], exclude=request.exclude, adjust=adjust, allowed=allowed, threads=threads
            )
        return ranks

    def _domains(self, sequences: Tensor) -> list[tuple[Tensor | slice, Tensor | None]]:
        """Group the rows of the batch by their allowed items: ``(rows, allowed items)``."""
        domains = self.network.domains
        if domains is None:
            return [(slice(None), None)]
        row_domain = domains[sequences[:, 0]]
        return [((row_domain == domain).nonzero()[:, 0], domains == domain) for domain in row_domain.unique()]

    def _request(self, sequences: Tensor, lengths: Tensor, exclude: Tensor | None) -> _Request:
        network = self.network
        views = []
        for view in network.config.ranking_views:
            state = network.states(sequences, lengths, view, self.table)
            if isinstance(self.index, DenseIndex):
                views.append(state)
                continue
            tables = torch.einsum("bd,kmd->bkm", state, network.codebook)
            views.append(network.code_log_ratios(tables) if self.by_code else tables)
        real = torch.arange(sequences.shape[1], device=sequences.device) < lengths[:, None]
        history = torch.where(real, sequences, -1)
        if network.config.repeat_penalty == "exclude":
            exclude = history if exclude is None else torch.cat([history, exclude], 1)
        adjust = (history, (-network.penalty).expand(history.shape)) if network.repeat_penalty is not None else None
        return _Request(views, adjust, None if self.prior is None else self.prior.sparse_logits(sequences, lengths), exclude)

    def _offset(self, request: _Request, allowed: Tensor | None) -> Tensor:
        """Difference between scores and log-probabilities, ``[B]``."""
        base_logit = 0.0 if self.prior is None else self.prior.base_logit
        if self.by_code:
            return request.views[0].new_full((len(request.views[0]),), -float(base_logit))
        parts = [self.index.log_sum_exp(query, adjust=request.adjust, allowed=allowed) for query in request.views]
        return torch.stack(parts).mean(0) - base_logit


def _joined(first: Adjust | None, second: Adjust | None) -> Adjust | None:
    """Concatenate two lists of items and amounts."""
    if first is None or second is None:
        return first or second
    return torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 1)
