"""P5-CID as a RecBole model (Hua et al., How to Index Item IDs for Recommendation Foundation Models, SIGIR-AP 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.generative.sentence_examples import Drawing
from recbole_qbert.generative.words import Words
from recbole_qbert.recbole_integration.sentence_model import SentenceRecommender

#: Ten sentences, as many as the release has, in our words. As there, one has the items before the user.
TEMPLATES = (
    "Here is what {user} has bought so far , the newest item last : {history} ; predict the item that {user} buys next :",
    "The purchases of {user} in the order of time are {history} . Which item will follow ?",
    "Given that {user} has bought the items {history} , what should be recommended to this user now ?",
    "{user} went through these items one after another : {history} . Name the next one :",
    "I know the history of {user} , which is {history} . Can you tell the item that comes after it ?",
    "What is {user} going to buy next , after having bought {history} ?",
    "Choose the next product for {user} , whose history reads {history} :",
    "Up to now {user} has picked {history} . Continue the list by one item :",
    "The items {history} were bought in this order by {user} . Which item did this user buy then ?",
    "According to the records {user} has bought {history} ; the item that {user} wants next is",
)


class P5CID(SentenceRecommender):
    """Write the next item's path in a tree of co-occurrence clusters, after a sentence with the user and the history.

    All weights learn. An epoch has every position of every history as a target, each in a random one of ten sentences. The
    loss is the mean over targets of the mean over a target's tokens, as released.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/P5CID.yaml``.
        dataset: training part of a ``CollaborativeIDDataset`` that was built.
    """

    templates = TEMPLATES
    length_power = 1

    def drawing(self) -> Drawing:
        """Return how examples are drawn: from all ten sentences."""
        return Drawing(self.settings.target_draw, self.settings.draws, range(len(TEMPLATES)))

    def write_items(self, dataset: Any, words: Words) -> tuple[Tensor, Tensor, int]:
        """Write each item as ``item_`` and the new tokens of its path, in a history as in a target."""
        prefix = torch.tensor(words.pieces("item_"))
        paths = torch.from_numpy(dataset.path_ids)
        ids = F.pad(torch.where(paths < 0, -1, paths + words.size), (len(prefix), 0))
        ids[:, : len(prefix)] = prefix
        return ids, ids, words.size + dataset.identifier_figures["collaborative_ids"]["tokens"]
