"""VIP5 as a RecBole model (Geng et al., Towards Multimodal Foundation Models for Recommendation, EMNLP Findings 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_qbert.config.sentences import VIP5Config
from recbole_qbert.generative.sentence_examples import Drawing
from recbole_qbert.generative.t5 import T5Sizes
from recbole_qbert.generative.visual_t5 import Pictures, VisualT5
from recbole_qbert.generative.words import Words, matrix_of
from recbole_qbert.recbole_integration.sentence_model import SentenceRecommender

#: The release's sequential family, in our words, without its two sentences that ask yes or no. The last one is not trained.
TEMPLATES = (
    "Given the purchases of {user} so far : {history} , predict the next item that this user buys :",
    "Here are the items that {user} has bought in the order of time : {history} What comes next ?",
    "{user} has the purchase history {history} . Recommend an item to buy now :",
    "Read the purchase history of the customer {user} , then name the next item : {history}",
    "The list {history} holds what {user} has bought . Which item follows ?",
    "After {history} , which item does {user} choose ?",
    "What would {user} like to have next , with {history} bought before ?",
)
NOT_TRAINED = 1  # sentences at the end that only tests have


class VIP5(SentenceRecommender):
    """Write the next item's number after a sentence in which each item is its number and its picture.

    From a backbone, T5's own weights are frozen: adapters, norms and the layers of the pictures learn. From scratch, all
    weights learn. Of the paper's three families of tasks only the sequential one is trained.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/VIP5.yaml``.
        dataset: training part of a ``PictureDataset`` that was built.
    """

    templates = TEMPLATES
    separators = (",", "->")
    length_power = 2
    settings_kind = VIP5Config
    settings: VIP5Config

    def drawing(self) -> Drawing:
        """Return how examples are drawn: from all sentences but the last."""
        return Drawing(self.settings.target_draw, self.settings.draws, range(len(TEMPLATES) - NOT_TRAINED))

    def write_items(self, dataset: Any, words: Words) -> tuple[Tensor, Tensor, int]:
        """Write each item as the digits of its number, in a history with the tokens of its picture behind."""
        ids = matrix_of([words.pieces(str(number)) for number in dataset.item_numbers.tolist()])
        self._pictures: Pictures | None = None
        if dataset.pictures is None:
            return ids, ids, words.size
        present = torch.from_numpy(dataset.has_picture)
        self._pictures = Pictures(torch.from_numpy(dataset.pictures), present, self.settings.visual_tokens)
        seen = words.size + torch.arange(ids.shape[0] * self._pictures.tokens).view(len(ids), -1)
        if self.settings.missing_image == "skip":
            seen = torch.where(present[:, None], seen, -1)
        return ids, torch.cat([ids, seen], 1), words.size

    def new_network(self, sizes: T5Sizes, starts: Tensor) -> VisualT5:
        """Return a network of random weights; those of T5 are frozen where a backbone will replace them."""
        settings = self.settings
        network = VisualT5(sizes, starts, settings.whole_words, self._pictures, settings.adapter_reduction)
        if settings.backbone and settings.freeze_backbone:
            network.freeze_backbone(settings.train_tables)
        return network
