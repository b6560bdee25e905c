"""QBERT4Rec as a RecBole model. It reads the configuration and adapts the network to RecBole's batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.config.schema import SequenceConfig, TrainConfig, read
from recbole_qbert.recbole_integration import checkpoint_io, patches
from recbole_qbert.recbole_integration.scoring_model import ScoringRecommender
from recbole_qbert.sequence.candidates import CandidateSampler
from recbole_qbert.sequence.code_initialization import SPREAD, content_codebook
from recbole_qbert.sequence.cooccurrence_prior import CooccurrencePrior
from recbole_qbert.sequence.model import SemanticSequenceModel
from recbole_qbert.sequence.soft_targets import SoftTargets
from recbole_qbert.utils.io import digest, sha256
from recbole_qbert.utils.tensor_file import load_weights


class QBERT4Rec(ScoringRecommender):
    """Masked and causal sequence model over semantic IDs (Q-BERT4Rec, stage 3).

    The data set provides the IDs (``recbole_integration.identifiers``). With ``semantic_ids: none`` there are none, and the
    model is a plain SASRec, BERT4Rec or both at once, for comparisons.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/QBERT4Rec.yaml``.
        dataset: training part of a ``QBERT4RecDataset`` that was built.

    Raises:
        ValueError: a setting is refused, the IDs do not fit the data, or a pretrained file does not fit the model.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        values = patches.ConfigValues(config)
        self.settings = read(TrainConfig, values)
        sequence = read(SequenceConfig, values | {"max_length": self.max_seq_length})
        tokens = dataset.item_tokens()
        self.ids, self.identifier_figures = dataset.semantic_ids, dataset.identifier_figures
        codes = torch.full((self.n_items, self.ids.codes.shape[1]), -1)
        codes[1:] = torch.from_numpy(self.ids.aligned(tokens, "the .sid file").astype("int64"))
        domains = None if config["domains"] is None else domains_of(tokens, config["domains"])
        self.network = SemanticSequenceModel(sequence, codes, self.ids.size, domains)
        self.sampler = None
        if sequence.loss == "sampled":
            self.sampler = CandidateSampler(dataset.inter_feat[self.ITEM_SEQ], self.n_items, self.settings.sampled_items)
        self.prior = None
        if self.settings.structural_prior == "cooccurrence":
            self.prior = CooccurrencePrior(dataset.histories, self.n_items, content=dataset.content_likeness())
        # Number of batches, which chooses the view of the next one; a buffer, so that a resumed run continues the order.
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.catalog, self.vocabulary = digest(tokens), self.ids.vocabulary
        self.other_parameter_name = ["catalog", "vocabulary"]
        self.histories = digest([history.tolist() for history in dataset.histories])
        takes_codes = self.settings.pretrained and "codebook" in self.settings.pretrained_parts
        if self.settings.code_init == "content" and self.ids.codes.shape[1] and not takes_codes:
            self._start_from_content(dataset)
        if self.settings.pretrained:
            self._start_from(self.settings.pretrained)
        # The same in every process, and int16, which process groups cannot send.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.split(".")[0] not in self.settings.freeze)

    def take_over(self, other: QBERT4Rec) -> None:
        """Become another model of the same catalog and data, with its semantic IDs and its network; the prior stays."""
        self.ids, self.identifier_figures, self.vocabulary = other.ids, other.identifier_figures, other.vocabulary
        self.network = other.network

    def batch_loss(
        self,
        interaction: Any,
        masks: torch.Generator | None = None,
        share: tuple[int, int] = (0, 1),
        soft: SoftTargets | None = None,
        views: Sequence[str] | None = None,
    ) -> Tensor:
        """Return the loss of a batch, or of one process's share of it (``network.loss``).

        Views take turns batch by batch, or are summed in every batch (``view_schedule``).

        Args:
            interaction: rows of whole training histories.
            masks: generator of the masks.
            share: number of this process, and number of processes.
            soft: what teachers expect, of the batch's rows.
            views: views to train; all by default.
        """
        sequences, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        views = views or self.network.config.views
        if self.settings.view_schedule == "alternate":
            views = (views[int(self.batches) % len(views)],)
            self.batches += 1
        return self.network.loss(sequences, lengths, views, self.settings.mask_ratios, masks, share, soft, self.sampler)

    def _scores(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        scores = super()._scores(sequences, lengths)
        return scores if self.prior is None else scores + self.prior(sequences, lengths)

    def fingerprint(self) -> str:
        """Return a digest of what training starts from besides the settings: data, IDs, pretrained weights."""
        start = self.settings.pretrained and sha256(Path(self.settings.pretrained))
        return digest([self.catalog, self.histories, self.ids.codes.tobytes().hex(), start])

    def _start_from_content(self, dataset: Any) -> None:
        """Start the embeddings of codes from the features of the items that have them; without features they stay random."""
        vectors = dataset.content_vectors()
        if vectors is None:
            self.logger.info("code_init is content, but the data set has no features: code embeddings start at random")
            return
        codes, codebook = self.network.codes[1:].long(), self.network.codebook
        embeddings, known = content_codebook(torch.from_numpy(vectors), codes, *codebook.shape[1:])
        with torch.no_grad():
            codebook[known] = embeddings[known] * (SPREAD * self.network.config.initializer_range)

    def _start_from(self, path: str) -> None:
        """Load pretrained weights of ``pretrained_parts``; the item embedding only if the catalog is the same.

        Items of another catalog start as their codes say: an item embedding of random numbers beside pretrained codes would
        only be noise, so it starts at 0 (paper silent).

        Raises:
            ValueError: the checkpoint is of another vocabulary or another shape.
        """
        checkpoint = checkpoint_io.load_checkpoint(path)
        weights = {k: v for k, v in checkpoint_io.weights_of(checkpoint, path).items() if k.startswith("network.")}
        other = checkpoint_io.other_of(checkpoint, path)
        same_items = other.get("catalog") == self.catalog
        own = self.state_dict()
        codes = weights.get("network.codes")
        if codes is None:
            raise ValueError(f"{path} holds no weights of QBERT4Rec: its state_dict has no network.codes")
        if (same_items and not torch.equal(codes.to(own["network.codes"].device), own["network.codes"])) or (
            self.vocabulary and other.get("vocabulary") and self.vocabulary != other["vocabulary"]
        ):
            raise ValueError(
                f"{path} was trained with other semantic IDs, of another quantizer: its code embeddings mean other codes; "
                "pretrain again, or use the .sid file of the vocabulary it was trained with (semantic_id_file)"
            )
        loaded, untouched = {}, []
        for name, parameter in self.named_parameters():
            part = name.split(".")[1]
            per_item = part == "item_embedding"
            if part not in self.settings.pretrained_parts:
                untouched.append(name)
            elif name in weights and weights[name].shape == parameter.shape and (same_items or not per_item):
                loaded[name] = weights[name]
            else:
                untouched.append(name)
        needed = tuple(f"network.{part}" for part in ("encoder", "codebook") if part in self.settings.pretrained_parts)
        misfits = [name for name in untouched if name.startswith(needed)] if needed else []
        if misfits:
            theirs = tuple(weights[misfits[0]].shape) if misfits[0] in weights else "nothing"
            raise ValueError(
                f"{path} does not fit this model ({misfits[0]}: {theirs} there, {tuple(own[misfits[0]].shape)} here): it "
                "was trained with another hidden_size, n_layers, n_heads, inner_size, MAX_ITEM_LIST_LENGTH or number of "
                "codes; set them as they were"
            )
        load_weights(self, {**own, **loaded}, path)
        embedding = self.network.item_embedding
        if embedding is not None and "network.item_embedding" in untouched and "network.codebook" in loaded:
            torch.nn.init.zeros_(embedding)
        anew = ", ".join(untouched) or "none"
        self.logger.info(f"pretrained: {len(loaded)} tensors taken from {path}; started anew: {anew}")


def domains_of(tokens: Sequence[str], domains: Sequence[str]) -> Tensor:
    """Return the number of each item's domain, ``[N + 1]`` int64 with the padding first.

    Args:
        tokens: ``N`` item tokens of the form ``<domain>/<item>``.
        domains: names of the domains.

    Raises:
        ValueError: a token belongs to none of the domains.
    """
    number_of = {domain: number for number, domain in enumerate(domains)}
    numbers = [number_of.get(token.partition("/")[0], -1) for token in tokens]
    if -1 in numbers:
        raise ValueError(
            f"item {tokens[numbers.index(-1)]!r} is of none of the domains {', '.join(domains)}; items of a union of data "
            "sets are named <data set>/<item>"
        )
    return torch.tensor([0, *numbers])
