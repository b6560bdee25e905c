"""The network of VQ-Rec: an item is the mean of its code embeddings, a user the last state of a causal transformer.

Hou, He, McAuley, Zhao: Learning Vector-Quantized Item Representation for Transferable Sequential Recommenders (WWW 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_qbert.baselines.code_reassignment import gumbel_sinkhorn, nearest_permutation, straight_through
from recbole_qbert.baselines.position_encoder import PositionEncoder
from recbole_qbert.config.baseline_schema import VQRecConfig
from recbole_qbert.sequence.losses import item_softmax_loss
from recbole_qbert.sequence.packing import PackedSequences
from recbole_qbert.sequence.training_views import rows_by_length


class VQRecNetwork(nn.Module):
    """Score every item of a catalog for histories of items that are described by codes.

    The table of code embeddings has ``M + 1`` rows a group: an empty slot, which items without codes have, and ``M`` codes.
    Row 0 of ``codes`` is padding; it is masked in the softmax, where the release has one more class with a random vector.

    Args:
        config: shape and behaviour of the network.
        codes: ``[N, G]`` integer codes in ``[0, M)``, or -1.
        size: ``M``.
    """

    codes: Tensor
    flat_codes: Tensor
    valid: Tensor
    alike: Tensor
    reassigned: Tensor
    domains = None  # one catalog

    def __init__(self, config: VQRecConfig, codes: Tensor, size: int) -> None:
        super().__init__()
        self.config, self.size = config, size
        groups = codes.shape[1]
        self.register_buffer("codes", codes.to(torch.int16))
        first = (size + 1) * torch.arange(groups)
        self.register_buffer("flat_codes", first + 1 + codes.long(), persistent=False)
        self.register_buffer("valid", torch.arange(len(codes)) > 0, persistent=False)
        # The first item with the codes of each item, whose score it gets: a product may give equal vectors other last bits.
        number = codes.unique(dim=0, return_inverse=True)[1]
        first_item = torch.full((len(codes),), len(codes)).scatter_reduce_(0, number, torch.arange(len(codes)), "amin")
        self.register_buffer("alike", first_item[number], persistent=False)
        self.code_embedding = nn.Parameter(torch.empty(groups * (size + 1), config.hidden_size))
        self.encoder = PositionEncoder(config)
        self.reassignment = nn.Parameter(torch.empty(groups, size, size)) if config.reassign == "learned" else None
        # Whether code_embedding has been permuted; a buffer, so that a checkpoint says what its embeddings mean.
        self.register_buffer("reassigned", torch.tensor(config.reassign == "none"))
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            if name == "reassignment":
                nn.init.normal_(parameter)
            elif parameter.dim() > 1:
                nn.init.normal_(parameter, std=self.config.initializer_range)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        """Load as torch does, but refuse weights of other codes."""
        codes = state_dict.get(f"{prefix}codes")
        if codes is not None and not torch.equal(codes.to(self.codes), self.codes):
            there, here = tuple(codes.shape), tuple(self.codes.shape)
            raise ValueError(
                f"the weights were trained with other item codes ({there} there, {here} here): of "
                "other features, another seed or other opq_ settings; set them as they were"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    # ------------------------------------------------------------------------------------------------------- codes
    def code_table(self, generator: torch.Generator | None = None) -> Tensor:
        """Return the code embeddings by the data set's own code numbers, ``[G (M + 1), D]``.

        While a reassignment is learned, a noisy one is drawn in training; in evaluation the one of largest weight is taken,
        where the release takes the last one drawn, which no checkpoint holds.

        Args:
            generator: of the noise.
        """
        if self.reassignment is None or self.reassigned:
            return self.code_embedding
        groups, width = len(self.reassignment), self.code_embedding.shape[1]
        rows = self.code_embedding.view(groups, self.size + 1, width)
        if self.training:
            config = self.config
            soft = gumbel_sinkhorn(self.reassignment, config.sinkhorn_iterations, config.sinkhorn_temperature, generator)
            moved = straight_through(soft) @ rows[:, 1:]
        else:
            moved = self._permuted(rows, nearest_permutation(self.reassignment))
        return torch.cat([rows[:, :1], moved], 1).view(-1, width)

    @torch.no_grad()
    def reassign(self, order: Tensor) -> None:
        """Permute the code embeddings for good, once.

        Args:
            order: ``[G, M]`` int64, the old code that stands at each new code.
        """
        rows = self.code_embedding.view(len(order), self.size + 1, -1)
        rows[:, 1:] = self._permuted(rows, order)
        self.reassigned.fill_(True)

    @staticmethod
    def _permuted(rows: Tensor, order: Tensor) -> Tensor:
        return rows[:, 1:].gather(1, order[:, :, None].expand(-1, -1, rows.shape[2]))

    def item_table(self, generator: torch.Generator | None = None) -> Tensor:
        """Compose the vectors of all items, ``[N, D]``: the mean of their code embeddings."""
        return F.embedding_bag(self.flat_codes, self.code_table(generator), mode="mean")

    # ------------------------------------------------------------------------------------------------------ scores
    def states(self, sequences: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
        """Encode histories into the states at their last items.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned.
            lengths: ``[B]`` int64, at least 1.
            table: ``item_table()``.

        Returns:
            ``[B, D]`` float.

        Raises:
            ValueError: a history is empty.
        """
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError("a history is empty; each needs at least 1 item")
        rows = PackedSequences.of(lengths, sequences.shape[1])
        last = torch.zeros(len(rows.position), dtype=torch.bool, device=lengths.device)
        last[rows.lengths.cumsum(0) - 1] = True
        return self.encoder(F.embedding(sequences.flatten()[rows.position], table), [rows], last)

    def scores(self, sequences: Tensor, lengths: Tensor, table: Tensor | None = None) -> Tensor:
        """Score every item by its cosine with the state, or, with ``temperature`` of 0 or less, by the dot product.

        Args:
            sequences: ``[B, L]`` int64 histories, left-aligned.
            lengths: ``[B]`` int64, at least 1.
            table: ``item_table()`` if the caller has it.

        Returns:
            ``[B, N]`` float; -inf for padding. Items of equal codes have equal scores.
        """
        table = self.item_table() if table is None else table
        scores = self._unit(self.states(sequences, lengths, table)) @ self._unit(table).T
        return scores[:, self.alike].masked_fill(~self.valid, -torch.inf)

    def _unit(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=1) if self.config.temperature > 0 else vectors

    @property
    def _sharpness(self) -> float:
        """Factor of the scores in a softmax."""
        return 1 / self.config.temperature if self.config.temperature > 0 else 1.0

    # ------------------------------------------------------------------------------------------------------ losses
    def loss(
        self, sequences: Tensor, lengths: Tensor, generator: torch.Generator | None = None, share: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """Compute the mean cross-entropy of every item but the first among all items, given those before it.

        Attention is causal, so the state at a position of a whole row is that of the prefix that ends there: one row a user
        gives the same sum as one row a prefix.

        Args:
            sequences: ``[B, L]`` int64 whole training histories, left-aligned; ``L`` at most ``max_length + 1``.
            lengths: ``[B]`` int64; rows of fewer than 2 items are skipped.
            generator: of the reassignment's noise.
            share: ``(process, processes)``; the losses of all processes add up to the loss of one.

        Returns:
            ``[]`` float.
        """
        table = self.item_table(generator)
        process_rows = torch.arange(len(lengths), device=lengths.device)[share[0] :: share[1]]
        groups, inputs, targets = [], [], []
        for bucket in rows_by_length(lengths[process_rows]):
            own = process_rows[bucket]
            width = int(lengths[own].max()) - 1
            rows = PackedSequences.of(lengths[own] - 1, width)
            groups.append(rows)
            inputs.append(sequences[own, :width].flatten()[rows.position])
            targets.append(sequences[own, 1 : width + 1].flatten()[rows.position])
        if not groups:
            return table.sum() * 0.0
        states = self.encoder(F.embedding(torch.cat(inputs), table), groups)
        nothing = lengths.new_zeros(0)
        target = torch.cat(targets)
        loss = item_softmax_loss(
            self._unit(states) * self._sharpness,
            self._unit(table),
            target,
            table.new_zeros(()),
            (nothing, nothing),
            self.valid,
        )
        return loss * (len(target) / int((lengths - 1).clamp(min=0).sum()))

    def contrastive_loss(
        self, sequences: Tensor, lengths: Tensor, generator: torch.Generator | None = None, share: tuple[int, int] = (0, 1)
    ) -> Tensor:
        """Compute the pretraining loss: one random prefix a row against the targets of the batch and a made negative.

        ``L_i = -log(exp(s_ii) / (sum_j m_ij exp(s_ij) + exp(f_i)))``, where ``m_ij`` is 0 for another row with the same
        target, and ``f_i`` is the score of the target with some codes replaced at random.

        Args:
            sequences, lengths, share: as of :meth:`loss`.
            generator: of prefixes and codes, the same in all processes.

        Returns:
            ``[]`` float, mean over the rows.
        """
        device = lengths.device
        use = (lengths > 1).nonzero()[:, 0]
        own = torch.arange(len(use), device=device)[share[0] :: share[1]]
        table = self.item_table()
        drawn = torch.rand(len(use), generator=generator, device=device)
        end = 1 + (drawn * (lengths[use] - 1)).long().clamp(max=lengths[use] - 2)
        target = sequences[use, end]
        fake = self._made_negatives(target, generator)
        if not len(own):
            return table.sum() * 0.0
        state = self._unit(self.states(sequences[use][own, : int(end[own].max())], end[own], table)) * self._sharpness
        logits = state @ self._unit(table[target]).T
        positive = logits.gather(1, own[:, None])[:, 0]
        same = (target[own, None] == target[None, :]).scatter(1, own[:, None], False)
        against = (state * self._unit(F.embedding_bag(fake[own], self.code_table(), mode="mean"))).sum(1)
        total = torch.cat([logits.masked_fill(same, -torch.inf), against[:, None]], 1).logsumexp(1)
        return (total - positive).sum() / len(use)

    def _made_negatives(self, target: Tensor, generator: torch.Generator | None) -> Tensor:
        """Replace codes of items ``target [P]`` by random ones of the same group; rows of the code table, ``[P, G]``."""
        flat = self.flat_codes[target]
        first = (self.size + 1) * torch.arange(flat.shape[1], device=flat.device)
        replace = torch.rand(flat.shape, generator=generator, device=flat.device) < self.config.fake_ratio
        code = torch.randint(self.size, flat.shape, generator=generator, device=flat.device)
        return torch.where(replace, first + 1 + code, flat)
