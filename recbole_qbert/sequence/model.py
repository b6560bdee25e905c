"""Stage 3 without its host: embeddings composed from codes, both views, losses and exact scores (paper 3.5-3.6).

Knows tensors only; the RecBole model, an export or a server can all drive it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.config.schema import SequenceConfig
from recbole_qbert.sequence import masking
from recbole_qbert.sequence.encoder import SequenceEncoder
from recbole_qbert.sequence.losses import code_loss, item_softmax_loss
from recbole_qbert.sequence.packing import PackedSequences
from recbole_qbert.sequence.scoring import code_scores

# The penalty lives on the scale of logits (about 2 to 10), the other weights on that of 0.02. Storing it divided by this
# lets one learning rate serve both: AdamW moves every entry by about the learning rate a step.
PENALTY_SCALE = 25.0
#: Names of weights in files of before version 0.2.
RENAMED_WEIGHTS = {"rows": "item_embedding"}


@dataclass(frozen=True)
class _LengthBucket:
    """Rows of like length.

    Attributes:
        numbers: ``[B]`` int64, which rows of the batch.
        lengths: ``[B]`` int64.
        items: ``[B, L]`` int64.
        packed: where they stand among the packed tokens.
    """

    numbers: Tensor
    lengths: Tensor
    items: Tensor
    packed: PackedSequences


@dataclass
class _ViewTargets:
    """What a view asks about all buckets, in their order.

    Attributes:
        causal: which view it is.
        total: supervised positions of the whole batch, those of other processes, too.
        where: supervised tokens, ``[T]`` bool a bucket.
        wanted: their items, ``[P]`` a bucket.
        seen: ``(number of the supervised token among all buckets, item of its history)``, a bucket each.
        count: supervised tokens so far.
    """

    causal: bool
    total: int
    where: list[Tensor] = field(default_factory=list)
    wanted: list[Tensor] = field(default_factory=list)
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    count: int = 0

    def add(self, bucket: _LengthBucket, where: Tensor, wanted: Tensor, seen: Tensor) -> None:
        """One bucket.

        Args:
            bucket: whose rows are supervised.
            where: ``[B, L]`` bool, supervised positions.
            wanted: ``[B, L]`` int64, their items.
            seen: ``[B, L, L]`` bool, positions whose items are the history of a position, each item once.
        """
        number = where.flatten().cumsum(0).view_as(where) - 1 + self.count
        row, position, source = (where[:, :, None] & seen).nonzero(as_tuple=True)
        self.seen.append((number[row, position], bucket.items[row, source]))
        self.where.append(where.flatten()[bucket.packed.real])
        self.wanted.append(wanted[where])
        self.count += len(self.wanted[-1])


class SemanticSequenceModel(nn.Module):
    """Scores every item of a catalog for histories of items that are described by semantic IDs.

    Item vector: the sum of its code embeddings (one table a level) plus, with ``use_item_embedding``, an embedding of its
    own. The same vectors serve as input and output. Row 0 of ``codes`` is padding and never an answer.

    Args:
        config: shape and behaviour of the network.
        codes: ``[N, K]`` integer codes in ``[-1, M)``; -1 where an item lacks the modality of that level; row 0 all -1.
            With ``use_item_embedding``, ``K`` may be 0: items without IDs, to compare with.
        codes_per_level: ``M``.
        domains: ``[N]`` int64 domain of each item (any at row 0) when several catalogs are trained together: an item
            then competes with the items of its own domain only. ``None`` for one catalog.
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
        self.repeat_penalty = nn.Parameter(torch.zeros(())) if config.repeat_penalty == "learned" else None
        self.encoder = SequenceEncoder(
            width=config.hidden_size,
            layers=config.n_layers,
            heads=config.n_heads,
            inner=config.inner_size,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attn_dropout_prob,
            positions=config.max_length + 1,  # one more for the [MASK] after a full history
        )
        self._start()

    def _start(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1 or name == "mask_vector":
                nn.init.normal_(parameter, std=self.config.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """As torch's; weights of other codes are refused, for what is derived from the codes is not among the weights."""
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
        """What is subtracted from the logit of an item of the history; ``[]``."""
        if self.repeat_penalty is None:
            return self.codebook.new_zeros(())
        return self.repeat_penalty * PENALTY_SCALE

    def item_table(self) -> Tensor:
        """Vectors of all items, ``[N, D]``: the sum of their code embeddings, and their own row if there is one."""
        return self._vectors(self.flat_codes, self.item_embedding)

    def item_vectors(self, items: Tensor) -> Tensor:
        """The rows of ``item_table()`` for some items, ``[...]`` int64 to ``[..., D]``, without the table."""
        flat = items.flatten()
        rows = None if self.item_embedding is None else self.item_embedding[flat]
        return self._vectors(self.flat_codes[flat], rows).view(*items.shape, self.codebook.shape[2])

    def _vectors(self, flat_codes: Tensor, rows: Tensor | None) -> Tensor:
        levels, size, width = self.codebook.shape
        if not levels and rows is not None:
            return rows
        weight = torch.cat([self.codebook.view(levels * size, width), self.codebook.new_zeros(1, width)])
        vectors = F.embedding_bag(flat_codes, weight, mode="sum", padding_idx=levels * size)
        return vectors if rows is None else vectors + rows

    @torch.no_grad()
    def with_items(
        self, codes: Tensor, nearest: Tensor | None = None, weights: Tensor | None = None
    ) -> SemanticSequenceModel:
        """The same network over a larger catalog, with copies of its weights; for ranking, not for training.

        With neighbours, a new item's vector is the weighted mean of theirs, stretched to the mean of their lengths (a mean
        of vectors is shorter than they are, and would rank low for that alone). Without, it is the sum of the item's code
        embeddings and, with ``use_item_embedding``, the mean row. Paper silent; measured in benchmarks/cold.py. With
        ``loss: code`` items are ranked by their codes, and neighbours say nothing.

        Args:
            codes: ``[N', K]`` codes of the old items, in their order, and then of the new ones.
            nearest: ``[N' - N, k]`` int64 rows of old items.
            weights: ``[N' - N, k]`` float, rows sum to 1, or 0 for an item without neighbours.

        Raises:
            ValueError: the old items' codes differ.
        """
        old = len(self.codes)
        if not torch.equal(codes[:old].to(self.codes), self.codes):
            raise ValueError("the first rows of the larger catalog are not the items that the network was trained with")
        table = self.item_table()
        rows = torch.zeros_like(table) if self.item_embedding is None else self.item_embedding.detach()
        typical = rows[1:].mean(0, keepdim=True).expand(len(codes) - old, -1)
        larger = SemanticSequenceModel(replace(self.config, use_item_embedding=True), codes, self.codebook.shape[1])
        larger.load_state_dict({**self.state_dict(), "codes": larger.codes, "item_embedding": torch.cat([rows, typical])})
        if nearest is not None and weights is not None:
            theirs = table[nearest]
            mean = (weights[:, :, None] * theirs).sum(1)
            length = (weights * theirs.norm(dim=2)).sum(1, keepdim=True)
            wanted = mean * (length / mean.norm(dim=1, keepdim=True).clamp(min=1e-9))
            assert larger.item_embedding is not None
            larger.item_embedding[old:] += torch.where(weights.any(1, keepdim=True), wanted - larger.item_table()[old:], 0.0)
        return larger.eval()

    def loss(
        self,
        sequences: Tensor,
        lengths: Tensor,
        views: str | Sequence[str],
        ratios: Mapping[str, float],
        generator: torch.Generator | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> Tensor:
        """Sum of the views' losses over a batch of whole training sequences.

        Args:
            sequences: ``[B, L]`` int64 items, left-aligned.
            lengths: ``[B]`` int64; rows of fewer than 2 items teach nothing and are skipped.
            views: one or both of ``causal`` (every item predicted from those before it) and ``masked`` (hidden ones from the
                others). Both go through the encoder together: half as many steps, of twice the size.
            ratios: mask strategy -> share, for the masked view.
            generator: where masks come from; torch's global one when ``None``.
            share: ``(process, processes)``. A process computes every ``processes``-th row, but masks are drawn for, and the
                mean is taken over, the whole batch: the losses of all processes add up to that of one.

        Returns:
            ``[]`` float; a view's loss is the mean over its supervised positions, 0 (with a gradient) if it has none.
        """
        views = (views,) if isinstance(views, str) else tuple(views)
        table = self.item_table() if self.config.loss == "item" else None  # the loss over codes needs few of its rows
        hidden = masking.draw(lengths, sequences.shape[1], ratios, generator) if "masked" in views else None
        own = torch.arange(len(lengths), device=lengths.device)[share[0] :: share[1]]
        buckets = [_bucket(sequences, lengths, own[rows]) for rows in _by_length(lengths[own])]
        if not buckets:
            return torch.stack([parameter.sum() for parameter in self.parameters() if parameter.requires_grad]).sum() * 0.0
        items = torch.cat([bucket.items.flatten()[bucket.packed.real] for bucket in buckets])
        vectors = self.item_vectors(items) if table is None else F.embedding(items, table)
        targets = [
            _causal(buckets, lengths) if hidden is None or view == "causal" else _masked(buckets, hidden) for view in views
        ]
        wheres = [torch.cat(view_targets.where) for view_targets in targets]
        tokens = [
            vectors if view_targets.causal else torch.where(where[:, None], self.mask_vector, vectors)
            for view_targets, where in zip(targets, wheres, strict=True)
        ]
        layout = [(bucket.packed, view_targets.causal) for view_targets in targets for bucket in buckets]
        states = self.encoder.encode(torch.cat(tokens), layout, torch.cat(wheres))
        losses = [
            self._loss_of(table, view_targets, state) * (view_targets.count / view_targets.total)
            for view_targets, state in zip(targets, states.split([one.count for one in targets]), strict=True)
        ]
        return torch.stack(losses).sum()

    def _loss_of(self, table: Tensor | None, targets: _ViewTargets, state: Tensor) -> Tensor:
        """Mean loss over the supervised tokens of a view, of which ``state [P, D]`` is; without a table, over codes."""
        target = torch.cat(targets.wanted)
        if table is None:
            tables = torch.einsum("pd,kmd->pkm", state, self.codebook)
            return code_loss(tables, self.codes[target].long())
        position, item = (torch.cat(part) for part in zip(*targets.seen, strict=True))
        return self._item_loss(table, state, target, position, item)

    def _item_loss(self, table: Tensor, state: Tensor, target: Tensor, position: Tensor, item: Tensor) -> Tensor:
        """Softmax loss over the items of the target's domain; arguments as of ``losses.item_softmax_loss``."""
        if self.domains is None:
            return item_softmax_loss(state, table, target, self.penalty, (position, item), self.valid)
        parts = []
        domain_of = self.domains[target]
        for domain in domain_of.unique().tolist():
            members = ((self.domains == domain) & self.valid).nonzero()[:, 0]
            place = torch.zeros_like(self.domains).index_put_((members,), torch.arange(len(members), device=members.device))
            mine = domain_of == domain
            number, kept = mine.cumsum(0) - 1, mine[position]
            seen = number[position[kept]], place[item[kept]]
            loss = item_softmax_loss(
                state[mine], table[members], place[target[mine]], self.penalty, seen, self.valid[members]
            )
            parts.append(loss * (mine.sum() / len(target)))
        return torch.stack(parts).sum()

    def states(self, sequences: Tensor, lengths: Tensor, view: str, table: Tensor | None = None) -> Tensor:
        """Encoder output from which the item after each history is predicted, ``[B, D]``.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned, ``L`` at most ``max_length``.
            lengths: ``[B]`` int64, at least 1.
            view: ``causal`` reads the last item's position, ``masked`` that of a ``[MASK]`` put after it.
            table: ``item_table()`` if it is at hand; without it, the vectors of the histories' items are made.

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
        last = torch.zeros(len(rows.real), dtype=torch.bool, device=lengths.device)
        last[lengths.cumsum(0) - 1] = True
        return self.encoder.encode(rows.pack(vectors), [(rows, view == "causal")], last)

    def scores(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Mean over the views of each view's log-probability of every item; ``[B, N]``, padding at -inf.

        With ``loss: item`` the log-probability is a softmax over the catalog (penalty included); with ``loss: code`` it is
        the sum over levels of the log-probability of the item's code, relative to a uniform guess, so that a level the
        item does not have neither helps nor harms. Items of another domain than the history's are at -inf.
        """
        table = self.item_table()
        never = ~self.valid
        if self.domains is not None:
            never = never | (self.domains != self.domains[sequences[:, :1]])
        total: Tensor | None = None
        for view in self.config.views:
            state = self.states(sequences, lengths, view, table)
            if self.config.loss == "code":
                tables = torch.einsum("bd,kmd->bkm", state, self.codebook)
                score = code_scores(self.code_log_ratios(tables), self.codes).masked_fill(never, -torch.inf)
            else:
                logits = state @ table.T - self.penalty * self._history(sequences, lengths)
                score = logits.masked_fill(never, -torch.inf).log_softmax(1)
            total = score if total is None else total + score
        assert total is not None
        total = total / len(self.config.views)
        if self.config.repeat_penalty == "exclude":
            total = total.masked_fill(self._history(sequences, lengths).bool(), -torch.inf)
        return total

    @staticmethod
    def code_log_ratios(tables: Tensor) -> Tensor:
        """Logits of the codes of each level to log-probabilities relative to a uniform guess; both ``[B, K, M]``."""
        return tables.log_softmax(2) + math.log(tables.shape[2])

    def _history(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """1 where an item stands in the row's history, ``[B, N]`` float."""
        real = torch.arange(sequences.shape[1], device=sequences.device) < lengths[:, None]
        history = self.codebook.new_zeros(len(sequences), len(self.codes))
        history.scatter_(1, torch.where(real, sequences, 0), 1.0)
        history[:, 0] = 0.0
        return history


def _bucket(sequences: Tensor, lengths: Tensor, numbers: Tensor) -> _LengthBucket:
    length = lengths[numbers]
    items = sequences[numbers, : int(length.max())]
    return _LengthBucket(numbers, length, items, PackedSequences.of(length, items.shape[1]))


def _causal(buckets: Sequence[_LengthBucket], lengths: Tensor) -> _ViewTargets:
    """Every item but the first, from those before it; ``lengths`` of the whole batch."""
    targets = _ViewTargets(True, int((lengths - 1).clamp(min=0).sum()))
    for bucket in buckets:
        position = torch.arange(bucket.items.shape[1], device=bucket.items.device)
        where = position < (bucket.lengths - 1)[:, None]
        seen = (position[None, :] <= position[:, None]) & _first_of(bucket.items, where)[:, None, :]
        targets.add(bucket, where, bucket.items.roll(-1, 1), seen)
    return targets


def _masked(buckets: Sequence[_LengthBucket], hidden: Tensor) -> _ViewTargets:
    """The items at ``hidden [B, L]`` of the batch, from the others of their row."""
    targets = _ViewTargets(False, int(hidden.sum()))
    for bucket in buckets:
        width = bucket.items.shape[1]
        where = hidden[bucket.numbers, :width]
        visible = ~where & (torch.arange(width, device=where.device) < bucket.lengths[:, None])
        targets.add(bucket, where, bucket.items, _first_of(bucket.items, visible)[:, None, :].expand(-1, width, -1))
    return targets


def _first_of(items: Tensor, real: Tensor) -> Tensor:
    """True at the first real occurrence of each item in its row, ``[B, L]``: a history is a set, counted once."""
    same = (items[:, :, None] == items[:, None, :]) & real[:, None, :]
    earlier = same.tril(-1).any(2)
    return real & ~earlier


def _by_length(lengths: Tensor) -> Iterator[Tensor]:
    """Row numbers in buckets of like length (up to 8, 16, 32, … items): attention pads no short row to the longest."""
    bucket = lengths.clamp(min=8).sub(1).log2().floor()
    for value in bucket[lengths > 1].unique().tolist():
        yield ((bucket == value) & (lengths > 1)).nonzero()[:, 0]
