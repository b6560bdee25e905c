"""The sequence model: item vectors composed from codes, the training loss and exact scores (paper 3.5-3.6).

It works on tensors only, so the RecBole model, an export or a server can all drive it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.config.schema import SequenceConfig
from recbole_qbert.sequence import masking
from recbole_qbert.sequence.candidates import Candidates, CandidateSampler
from recbole_qbert.sequence.encoder import SequenceEncoder
from recbole_qbert.sequence.losses import code_loss, item_softmax_loss
from recbole_qbert.sequence.packing import PackedSequences
from recbole_qbert.sequence.scoring import code_scores
from recbole_qbert.sequence.training_views import (
    ViewTargets,
    causal_targets,
    length_bucket,
    masked_targets,
    rows_by_length,
)

if TYPE_CHECKING:
    from recbole_qbert.sequence.soft_targets import SoftTargets

# The penalty has the scale of logits (about 2 to 10), the other weights that of 0.02. It is stored divided by this number,
# so that one learning rate serves both: AdamW moves every entry by about the learning rate a step.
PENALTY_SCALE = 25.0
# Where it starts. From 0 it still rises at the best epoch of a small data set, which knows within a few hundred steps that
# nobody repeats an item.
PENALTY_START = 5.0
#: Weights that had another name before version 0.2: old name -> new name.
RENAMED_WEIGHTS = {"rows": "item_embedding"}


class SemanticSequenceModel(nn.Module):
    """Score every item of a catalog for histories of items that are described by semantic IDs (Eq. 1-2).

    An item's vector is the sum of its code embeddings (one table a level) and, with ``use_item_embedding``, an embedding of
    its own. The same vectors serve as input and output. Row 0 of ``codes`` is padding and is never recommended.

    Args:
        config: shape and behaviour of the network.
        codes: ``[N, K]`` integer codes in ``[-1, M)``; -1 where an item lacks the modality of that level; row 0 all -1.
            With ``use_item_embedding``, ``K`` may be 0: a model without IDs, for comparison.
        codes_per_level: ``M``.
        domains: ``[N]`` int64 domain of each item (any at row 0) when several catalogs are trained together; an item then
            competes with the items of its own domain only. ``None`` for one catalog.
    """

    codes: Tensor
    valid: Tensor
    flat_codes: Tensor
    domains: Tensor | None

    def __init__(self, config: SequenceConfig, codes: Tensor, codes_per_level: int, domains: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("domains", domains, persistent=False)
        items, levels = codes.shape
        self.register_buffer("codes", codes.to(torch.int16))
        self.register_buffer("valid", torch.arange(items) > 0, persistent=False)
        flat = torch.where(codes >= 0, codes + codes_per_level * torch.arange(levels), levels * codes_per_level)
        self.register_buffer("flat_codes", flat.int(), persistent=False)
        self.codebook = nn.Parameter(torch.empty(levels, codes_per_level, config.hidden_size))
        self.item_embedding = nn.Parameter(torch.empty(items, config.hidden_size)) if config.use_item_embedding else None
        self.mask_vector = nn.Parameter(torch.empty(config.hidden_size))
        self.repeat_penalty = None
        if config.repeat_penalty == "learned":
            self.repeat_penalty = nn.Parameter(torch.tensor(PENALTY_START / PENALTY_SCALE))
        self.encoder = SequenceEncoder(
            width=config.hidden_size,
            layers=config.n_layers,
            heads=config.n_heads,
            inner=config.inner_size,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attn_dropout_prob,
            positions=config.max_length + 1,  # one more for the [MASK] after a full history
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 or name == "mask_vector":
                nn.init.normal_(parameter, std=self.config.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Load as torch does, but refuse weights of other codes: ``flat_codes`` is made from the codes and not loaded."""
        for old, new in RENAMED_WEIGHTS.items():
            if prefix + old in state_dict:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        codes = state_dict.get(f"{prefix}codes")
        if codes is not None and not torch.equal(codes.to(self.codes), self.codes):
            raise ValueError(
                f"the weights were trained with other semantic IDs ({tuple(codes.shape)} codes there, "
                f"{tuple(self.codes.shape)} here) or another catalog; use the .sid file of the training (semantic_id_file)"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def penalty(self) -> Tensor:
        """Amount subtracted from the logit of an item of the history; ``[]``."""
        if self.repeat_penalty is None:
            return self.codebook.new_zeros(())
        return self.repeat_penalty * PENALTY_SCALE

    def item_table(self) -> Tensor:
        """Compose the vectors of all items, ``[N, D]``: the sum of code embeddings and, if used, the item embedding."""
        return self._compose(self.flat_codes, self.item_embedding)

    def item_vectors(self, items: Tensor) -> Tensor:
        """Compose the vectors of some items, ``[...]`` int64 to ``[..., D]``: the same as ``item_table()[items]``."""
        flat = items.flatten()
        own: Tensor | None = None
        if self.item_embedding is not None and self.config.loss == "sampled":  # a gradient for these rows alone
            own = F.embedding(flat, self.item_embedding, sparse=True)
        elif self.item_embedding is not None:
            own = self.item_embedding[flat]
        return self._compose(self.flat_codes[flat], own).view(*items.shape, self.codebook.shape[2])

    def _compose(self, flat_codes: Tensor, own: Tensor | None) -> Tensor:
        levels, size, width = self.codebook.shape
        if not levels and own is not None:
            return own
        weight = torch.cat([self.codebook.view(levels * size, width), self.codebook.new_zeros(1, width)])
        vectors = F.embedding_bag(flat_codes, weight, mode="sum", padding_idx=levels * size)
        return vectors if own is None else vectors + own

    @torch.no_grad()
    def with_items(
        self, codes: Tensor, nearest: Tensor | None = None, weights: Tensor | None = None
    ) -> SemanticSequenceModel:
        """Copy the network onto a larger catalog; for ranking, not for training.

        With neighbors, a new item's vector is the weighted mean of theirs, scaled to the mean of their lengths (a mean of
        vectors is shorter than the vectors and would rank low for that alone). Without neighbors, it is the sum of the
        item's code embeddings and, with ``use_item_embedding``, the mean of all item embeddings. With ``loss: code``, items
        are ranked by their codes and neighbors have no effect. The paper is silent; measured in benchmarks/cold.py.

        Args:
            codes: ``[N', K]`` codes of the old items, in their order, and then of the new ones.
            nearest: ``[N' - N, k]`` int64 rows of old items.
            weights: ``[N' - N, k]`` float; a row sums to 1, or to 0 for an item without neighbors.

        Returns:
            A new network in evaluation mode.

        Raises:
            ValueError: the codes of the old items differ.
        """
        old = len(self.codes)
        if not torch.equal(codes[:old].to(self.codes), self.codes):
            raise ValueError("the first rows of the larger catalog are not the items that the network was trained with")
        table = self.item_table()
        own = torch.zeros_like(table) if self.item_embedding is None else self.item_embedding.detach()
        mean_own = own[1:].mean(0, keepdim=True).expand(len(codes) - old, -1)
        larger = SemanticSequenceModel(replace(self.config, use_item_embedding=True), codes, self.codebook.shape[1])
        larger.load_state_dict({**self.state_dict(), "codes": larger.codes, "item_embedding": torch.cat([own, mean_own])})
        if nearest is not None and weights is not None:
            neighbors = table[nearest]
            mean = (weights[:, :, None] * neighbors).sum(1)
            length = (weights * neighbors.norm(dim=2)).sum(1, keepdim=True)
            vectors = mean * (length / mean.norm(dim=1, keepdim=True).clamp(min=1e-9))
            assert larger.item_embedding is not None
            larger.item_embedding[old:] += torch.where(
                weights.any(1, keepdim=True), vectors - larger.item_table()[old:], 0.0
            )
        return larger.eval()

    def loss(
        self,
        sequences: Tensor,
        lengths: Tensor,
        views: str | Sequence[str],
        ratios: Mapping[str, float],
        generator: torch.Generator | None = None,
        share: tuple[int, int] = (0, 1),
        soft: SoftTargets | None = None,
        sampler: CandidateSampler | None = None,
    ) -> Tensor:
        """Sum the views' losses over a batch of whole training sequences (Eq. 11).

        Args:
            sequences: ``[B, L]`` int64 items, left-aligned.
            lengths: ``[B]`` int64; rows of fewer than 2 items are skipped.
            views: ``causal`` (predict every item from those before it), ``masked`` (predict hidden items from the others) or
                both. Both go through the encoder together: half as many steps, each of twice the size.
            ratios: mask strategy -> share of hidden positions, for the masked view.
            generator: random numbers of the masks; torch's global generator when ``None``.
            share: ``(process, processes)``. A process computes every ``processes``-th row, but draws masks for, and takes
                the mean over, the whole batch: the losses of all processes add up to the loss of one process.
            soft: what teachers expect at the positions of the causal view, learned beside the true items. It takes
                ``loss: item`` and one domain.
            sampler: draws the items of the softmax, with ``loss: sampled``.

        Returns:
            ``[]`` float; a view's loss is the mean over its supervised positions, 0 (with a gradient) if it has none.

        Raises:
            ValueError: ``masked`` with ``ratios`` that ``masking.draw`` refuses.
        """
        views = (views,) if isinstance(views, str) else tuple(views)
        candidates = self._candidates(sequences, generator, sampler)
        hidden = masking.draw(lengths, sequences.shape[1], ratios, generator) if "masked" in views else None
        process_rows = torch.arange(len(lengths), device=lengths.device)[share[0] :: share[1]]
        buckets = [length_bucket(sequences, lengths, process_rows[rows]) for rows in rows_by_length(lengths[process_rows])]
        if not buckets:
            unused: list[Tensor] = [parameter for parameter in self.parameters() if parameter.requires_grad]
            if candidates is not None and candidates.log_weight is not None:  # a gradient of the kind that others have
                unused = [parameter for parameter in unused if parameter is not self.item_embedding] + [candidates.vectors]
            return torch.stack([parameter.sum() for parameter in unused]).sum() * 0.0
        items = torch.cat([bucket.items.flatten()[bucket.packed.position] for bucket in buckets])
        vectors = (
            self.item_vectors(items) if candidates is None else F.embedding(candidates.columns(items), candidates.vectors)
        )
        targets = [
            causal_targets(buckets, lengths, None if soft is None else soft.start)
            if hidden is None or view == "causal"
            else masked_targets(buckets, hidden)
            for view in views
        ]
        supervised = [torch.cat(view_targets.supervised) for view_targets in targets]
        tokens = [
            vectors if view_targets.causal else torch.where(is_hidden[:, None], self.mask_vector, vectors)
            for view_targets, is_hidden in zip(targets, supervised, strict=True)
        ]
        layout = [(bucket.packed, view_targets.causal) for view_targets in targets for bucket in buckets]
        states = self.encoder.encode(torch.cat(tokens), layout, torch.cat(supervised))
        losses = [
            self._view_loss(candidates, sequences, view_targets, state, soft if view_targets.causal else None)
            * (view_targets.count / view_targets.total)
            for view_targets, state in zip(
                targets, states.split([view_targets.count for view_targets in targets]), strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _candidates(
        self, batch: Tensor, generator: torch.Generator | None, sampler: CandidateSampler | None
    ) -> Candidates | None:
        """Return the items of the softmax over items; the loss over codes has none and needs only a few vectors."""
        if self.config.loss == "code":
            return None
        if self.config.loss == "item":
            return Candidates(torch.arange(len(self.codes), device=batch.device), self.item_table())
        if sampler is None:
            raise ValueError("loss is 'sampled', which needs a sampler of candidates")
        items, log_weight = sampler.draw(batch, generator)
        return Candidates(items, self.item_vectors(items), log_weight)

    def _view_loss(
        self,
        candidates: Candidates | None,
        batch: Tensor,
        targets: ViewTargets,
        state: Tensor,
        soft: SoftTargets | None = None,
    ) -> Tensor:
        """Mean loss over a view's supervised tokens, given their ``state [P, D]``; over codes without candidates."""
        target = torch.cat(targets.items)
        if candidates is None:
            tables = torch.einsum("pd,kmd->pkm", state, self.codebook)
            return code_loss(tables, self.codes[target].long())
        position, item = (torch.cat(part) for part in zip(*targets.history, strict=True))
        if soft is not None:
            items, shares = soft.at(torch.cat(targets.numbers))
            part = soft.weight / (1 + soft.weight)
            all_targets = torch.cat([target[:, None], items], 1)
            all_shares = torch.cat([torch.full_like(shares[:, :1], 1 - part), part * shares], 1)
            history = (position, item)
            return item_softmax_loss(
                state, candidates.vectors, all_targets, self.penalty, history, self.valid, shares=all_shares
            )
        own = None
        if candidates.log_weight is not None:
            own = candidates.columns(batch)[torch.cat(targets.rows)]
        return self._item_loss(candidates, state, candidates.columns(target), (position, candidates.columns(item)), own)

    def _item_loss(
        self, candidates: Candidates, state: Tensor, target: Tensor, history: tuple[Tensor, Tensor], own: Tensor | None
    ) -> Tensor:
        """Softmax loss over the candidates of the target's domain (``losses.item_softmax_loss``).

        Args:
            candidates: ``C`` items.
            state: ``[P, D]``.
            target: ``[P]`` columns.
            history: positions and columns.
            own: ``[P, L]`` columns of each position's whole row, for candidates that are weighted.
        """
        is_item = candidates.items > 0
        if self.domains is None:
            weights = None if own is None else (candidates.log_weight, own)
            return item_softmax_loss(state, candidates.vectors, target, self.penalty, history, is_item, weights=weights)
        losses = []
        domains = self.domains[candidates.items]
        target_domain = domains[target]
        position, column = history
        for domain in target_domain.unique().tolist():
            members = ((domains == domain) | ~is_item).nonzero()[:, 0]  # padding stays the first
            place = torch.zeros_like(domains).index_put_((members,), torch.arange(len(members), device=members.device))
            in_domain = target_domain == domain
            number, pairs = in_domain.cumsum(0) - 1, in_domain[position]
            weights = None
            if own is not None and candidates.log_weight is not None:
                weights = candidates.log_weight[members], place[own[in_domain]]
            loss = item_softmax_loss(
                state[in_domain],
                candidates.vectors[members],
                place[target[in_domain]],
                self.penalty,
                (number[position[pairs]], place[column[pairs]]),
                is_item[members],
                weights=weights,
            )
            losses.append(loss * (in_domain.sum() / len(target)))
        return torch.stack(losses).sum()

    def states(self, sequences: Tensor, lengths: Tensor, view: str, table: Tensor | None = None) -> Tensor:
        """Encode histories into the states from which the next item is predicted.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned, ``L`` at most ``max_length``.
            lengths: ``[B]`` int64, at least 1.
            view: ``causal`` reads the state of the last item, ``masked`` that of a ``[MASK]`` put after it (paper 3.6).
            table: ``item_table()`` if the caller has it; otherwise only the vectors of the histories' items are composed.

        Returns:
            ``[B, D]`` float.

        Raises:
            ValueError: a history is empty.
        """
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError("a history is empty; each needs at least 1 item")
        vectors = self.item_vectors(sequences) if table is None else table[sequences]
        if view == "masked":
            vectors = torch.cat([vectors, vectors.new_zeros(len(vectors), 1, vectors.shape[2])], 1)
            vectors[torch.arange(len(sequences), device=sequences.device), lengths] = self.mask_vector
            lengths = lengths + 1
        rows = PackedSequences.of(lengths, vectors.shape[1])
        last = torch.zeros(len(rows.position), dtype=torch.bool, device=lengths.device)
        last[lengths.cumsum(0) - 1] = True
        return self.encoder.encode(rows.pack(vectors), [(rows, view == "causal")], last)

    def causal_states(self, sequences: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode histories in the causal view; the states of all their positions, row by row: ``[sum of lengths, D]``.

        Args:
            sequences, lengths, table: as for :meth:`states`.
        """
        rows = PackedSequences.of(lengths, sequences.shape[1])
        everywhere = torch.ones(len(rows.position), dtype=torch.bool, device=lengths.device)
        return self.encoder.encode(rows.pack(table[sequences]), [(rows, True)], everywhere)

    def scores(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Score every item by the mean over ``score_views`` of its log-probability (Eq. 2).

        With ``loss: item`` or ``sampled``, the log-probability is a softmax over the catalog (penalty included). With
        ``loss: code``, it is the sum over levels of the log-probability of the item's code relative to a uniform guess, so
        that a level which the item does not have neither helps nor harms.

        Args:
            sequences, lengths: as for :meth:`states`.

        Returns:
            ``[B, N]`` float; -inf for padding and for items of another domain than the history's.
        """
        table = self.item_table()
        excluded = ~self.valid
        if self.domains is not None:
            excluded = excluded | (self.domains != self.domains[sequences[:, :1]])
        total: Tensor | None = None
        views = self.config.ranking_views
        for view in views:
            state = self.states(sequences, lengths, view, table)
            if self.config.loss == "code":
                tables = torch.einsum("bd,kmd->bkm", state, self.codebook)
                score = code_scores(self.code_log_ratios(tables), self.codes).masked_fill(excluded, -torch.inf)
            else:
                logits = state @ table.T - self.penalty * self._history_marks(sequences, lengths)
                score = logits.masked_fill(excluded, -torch.inf).log_softmax(1)
            total = score if total is None else total + score
        assert total is not None
        total = total / len(views)
        if self.config.repeat_penalty == "exclude":
            total = total.masked_fill(self._history_marks(sequences, lengths).bool(), -torch.inf)
        return total

    @staticmethod
    def code_log_ratios(tables: Tensor) -> Tensor:
        """Turn logits of codes into log-probabilities relative to a uniform guess; both ``[B, K, M]``."""
        return tables.log_softmax(2) + math.log(tables.shape[2])

    def _history_marks(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Mark the items of each history with 1; ``[B, N]`` float."""
        real = torch.arange(sequences.shape[1], device=sequences.device) < lengths[:, None]
        history = self.codebook.new_zeros(len(sequences), len(self.codes))
        history.scatter_(1, torch.where(real, sequences, 0), 1.0)
        history[:, 0] = 0.0
        return history
