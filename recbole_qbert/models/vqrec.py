"""VQRec as a RecBole model: from scratch, pretraining, or fine-tuning of a pretrained checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.baselines.code_reassignment import nearest_permutation
from recbole_qbert.baselines.vqrec import VQRecNetwork
from recbole_qbert.config.baseline_schema import ProductQuantizerConfig, VQRecConfig
from recbole_qbert.config.schema import read
from recbole_qbert.recbole_integration import checkpoint_io, patches
from recbole_qbert.recbole_integration.scoring_model import ScoringRecommender
from recbole_qbert.utils.io import digest, sha256
from recbole_qbert.utils.tensor_file import load_weights

_TRAINED_LAST = ("code_embedding", "encoder.norm.weight", "encoder.norm.bias")


class VQRec(ScoringRecommender):
    """VQ-Rec: an item's text becomes codes, an item's vector the mean of its code embeddings (WWW 2023).

    From scratch (``pretrained: ~``) everything is trained. From a pretrained checkpoint, for ``reassign_epochs`` epochs a
    reassignment of code numbers alone is learned (``reassign: learned``); then positions and transformer are frozen, and
    code embeddings and the input's layer norm are trained. The released trainer does so without a checkpoint, too, and then
    freezes a transformer that was never trained.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/VQRec.yaml``.
        dataset: training part of a ``ProductCodeDataset`` that was built.

    Raises:
        ValueError: a setting is refused, or a pretrained file does not fit the model.
    """

    prior = None

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        values = patches.ConfigValues(config)
        self.settings = read(VQRecConfig, values | {"max_length": self.max_seq_length})
        size = read(ProductQuantizerConfig, values).codes
        codes = torch.full((self.n_items, dataset.product_codes.shape[1]), -1)
        codes[1:] = torch.from_numpy(dataset.product_codes.astype("int64"))
        self.network = VQRecNetwork(self.settings, codes, size)
        self.identifier_figures = {"product_codes": dataset.product_code_figures}
        self.catalog = digest(dataset.item_tokens())
        self.histories = digest([history.tolist() for history in dataset.histories])
        if self.settings.pretrained:
            self._start_from(self.settings.pretrained)
        # The same in every process.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        self._set_learning(0)

    def start_epoch(self, epoch: int) -> None:
        """Choose what is trained in an epoch; after the last epoch of the reassignment, apply it.

        Args:
            epoch: number of the epoch, from 0.

        Raises:
            ValueError: ``reassign`` is set without a pretrained checkpoint.
        """
        if self.settings.reassign != "none" and not self.settings.pretrained:
            raise ValueError(
                f"reassign is {self.settings.reassign!r}, but pretrained names no checkpoint: codes of a fresh table mean "
                "nothing yet; set reassign to none, or pretrained to the checkpoint of a run with train_stage: pretrain"
            )
        if not self.network.reassigned and self.network.reassignment is not None and epoch >= self.settings.reassign_epochs:
            self.network.reassign(nearest_permutation(self.network.reassignment))
        self._set_learning(epoch)

    def _set_learning(self, epoch: int) -> None:
        learns_order = self.network.reassignment is not None and epoch < self.settings.reassign_epochs
        for name, parameter in self.network.named_parameters():
            if name == "reassignment":
                parameter.requires_grad_(learns_order)
            else:
                parameter.requires_grad_(not self.settings.pretrained or (not learns_order and name in _TRAINED_LAST))

    def batch_loss(
        self, interaction: Any, masks: torch.Generator | None = None, share: tuple[int, int] = (0, 1), soft: None = None
    ) -> Tensor:
        """Return the loss of a batch, or of one process's share of it.

        Args:
            interaction: rows of whole training histories.
            masks: generator of everything that all processes draw alike.
            share: number of this process, and number of processes.
            soft: not used; this model has no teachers.
        """
        del soft
        loss = self.network.contrastive_loss if self.settings.train_stage == "pretrain" else self.network.loss
        return loss(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], masks, share)

    def fingerprint(self) -> str:
        """Return a digest of what training starts from besides the settings: data, codes, pretrained weights."""
        start = self.settings.pretrained and sha256(Path(self.settings.pretrained))
        return digest([self.catalog, self.histories, self.network.codes.cpu().numpy().tobytes().hex(), start])

    def _start_from(self, path: str) -> None:
        """Load pretrained code embeddings, positions and transformer; they do not depend on the catalog.

        Raises:
            ValueError: the checkpoint is of another model, or of other sizes.
        """
        checkpoint = checkpoint_io.load_checkpoint(path)
        weights = checkpoint_io.weights_of(checkpoint, path)
        own, taken = self.state_dict(), {}
        for name in (f"network.{name}" for name, _ in self.network.named_parameters() if name != "reassignment"):
            if name not in weights:
                raise ValueError(f"{path} holds no weights of VQRec: its state_dict has no {name}")
            if weights[name].shape != own[name].shape:
                raise ValueError(
                    f"{path} does not fit this model ({name}: {tuple(weights[name].shape)} there, {tuple(own[name].shape)} "
                    "here): it was trained with another hidden_size, n_layers, inner_size, MAX_ITEM_LIST_LENGTH, "
                    "opq_groups or opq_codes; set them as they were"
                )
            taken[name] = weights[name]
        load_weights(self, own | taken, path)
        if self.settings.reassign == "random":
            self.network.reassign(nearest_permutation(torch.randn(own["network.codes"].shape[1], *(self.network.size,) * 2)))
        self.logger.info(f"pretrained: {len(taken)} tensors taken from {path}")
