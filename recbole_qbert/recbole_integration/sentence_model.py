"""What the models that read sentences share as RecBole models: words, templates, weights to start from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.config.sentences import SentenceConfig
from recbole_qbert.generative.examples import Histories
from recbole_qbert.generative.sentence_examples import Drawing, SentenceExamples
from recbole_qbert.generative.sentence_t5 import SentenceT5, start_from
from recbole_qbert.generative.sentences import SentenceWriter
from recbole_qbert.generative.t5 import T5Sizes
from recbole_qbert.generative.t5_weights import Backbone, load_backbone, sizes_of
from recbole_qbert.generative.trie import Trie
from recbole_qbert.generative.vocabulary import Language, Vocabulary, with_end
from recbole_qbert.generative.words import PretrainedWords, WordList, Words
from recbole_qbert.recbole_integration.generative_model import GenerativeRecommender
from recbole_qbert.utils.io import digest

FROM_SCRATCH = "from scratch"


class SentenceRecommender(GenerativeRecommender):
    """A T5 that reads a sentence with a user and a history, and writes the next item's ID.

    It starts from the T5 of the property ``backbone``, with that T5's tokenizer, or from random weights with a list of the
    words that occur. The log and the results say which.

    Args:
        config: RecBole's configuration with the keys of the model's property file.
        dataset: training part of the model's data set, built.

    Raises:
        FileNotFoundError: ``backbone`` is no folder and no name of a model, or lacks a file.
        ValueError: a setting is refused, or ``backbone`` is another architecture.
    """

    templates: ClassVar[tuple[str, ...]] = ()
    separators: ClassVar[tuple[str, ...]] = (",",)
    checked_on_load = (*GenerativeRecommender.checked_on_load, "backbone_digest")
    settings_kind: type[SentenceConfig] = SentenceConfig
    settings: SentenceConfig

    # ------------------------------------------------------------------------------------------------- of each model
    @abstractmethod
    def drawing(self) -> Drawing:
        """Return how examples are drawn."""

    @abstractmethod
    def write_items(self, dataset: Any, words: Words) -> tuple[Tensor, Tensor, int]:
        """Write the items in tokens.

        Args:
            dataset: the data set.
            words: the tokens of words; new tokens count from ``words.size`` on, after the last word was looked up.

        Returns:
            ``(IDs that are written [N, K] int64, items in a history [N, S] int64, number of tokens)``; -1 behind an end.
        """

    # ---------------------------------------------------------------------------------------------------------- parts
    def build_examples(self, dataset: Any, histories: Histories, seed: int) -> SentenceExamples:
        """Return the examples of an epoch."""
        settings = self.settings
        if not 1 <= settings.test_prompt <= len(self.templates):
            raise ValueError(f"test_prompt is {settings.test_prompt}; it must be from 1 to {len(self.templates)}")
        self._backbone: Backbone | None = load_backbone(settings.backbone) if settings.backbone else None
        words: Words = WordList()
        if self._backbone:
            rows = len(self._backbone.weights["shared.weight"])
            words = PretrainedWords(self._backbone.tokenizer, rows, self._backbone.name)
        users = [f"user_{number}" for number in range(dataset.user_num)]
        writer = SentenceWriter.of(words, self.templates, users, self.separators)
        ids, in_history, size = self.write_items(dataset, words)
        vocabulary = Vocabulary(size, 0, 0, 0, (Language("items", F.pad(ids, (0, 0, 1, 0), value=-1)),))
        self._starts = F.pad(words.starts(), (0, size - words.size))
        writer = replace(writer, items=F.pad(in_history, (0, 0, 1, 0), value=-1))
        return SentenceExamples(
            vocabulary, histories, self.max_seq_length, writer, self.drawing(), settings.test_prompt - 1, seed
        )

    def sizes(self) -> T5Sizes:
        """Return the sizes of the backbone, or those of the settings."""
        if self._backbone is None:
            return super().sizes()
        return replace(sizes_of(self._backbone.config, self.settings.dropout_rate), vocab_size=self.vocabulary.size)

    def build_network(self) -> SentenceT5:
        """Return the network, with the backbone's weights if there is one."""
        network = self.new_network(self.sizes(), self._starts)
        backbone, self._backbone = self._backbone, None  # the weights are not needed twice
        self.start = FROM_SCRATCH
        if backbone is not None:
            start_from(network, backbone, self.settings.new_rows)
            self.start = f"{backbone.name} ({backbone.digest[:12]})"
        self.backbone_digest = backbone.digest if backbone else FROM_SCRATCH
        self.identifier_figures["backbone"] = self.start
        self.logger.info(f"{type(self).__name__} starts {'' if backbone is None else 'from '}{self.start}")
        return network

    def new_network(self, sizes: T5Sizes, starts: Tensor) -> SentenceT5:
        """Return a network of random weights."""
        return SentenceT5(sizes, starts, self.settings.whole_words)

    def ranked_ids(self, language: int) -> Tensor:
        """Return the IDs that rank, with their end marks where an ID is the beginning of another one, or always."""
        ids = super().ranked_ids(language)
        trie = Trie.of(ids.numpy())
        nodes = torch.arange(len(trie))
        is_prefix = bool((trie.has_items(nodes) & trie.has_children(nodes)).any())
        return with_end(ids) if is_prefix or self.settings.score_end == "always" else ids

    def fingerprint(self) -> str:
        """Return a digest of what training starts from besides the settings: data, IDs and weights."""
        return digest([super().fingerprint(), self.backbone_digest])

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        """Check that a checkpoint was trained with the IDs and the backbone that the model has.

        Raises:
            ValueError: it was trained with others; its tokens mean other words, or frozen weights are not in it.
        """
        if para and (trained := para.get("backbone_digest", self.backbone_digest)) != self.backbone_digest:
            raise ValueError(
                f"the checkpoint was trained from the backbone {trained[:12]}, and backbone is {self.start} now; name the "
                "backbone of the training"
            )
        super().load_other_parameter(para)
