"""What the generative models share as RecBole models: vocabulary, network, loss, scores and ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor
from torch.nn import functional as F

from recbole_qbert.config.generative import GenerativeConfig
from recbole_qbert.config.schema import read
from recbole_qbert.generative.examples import ExampleBatch, Examples, Histories, Task
from recbole_qbert.generative.item_ranker import ItemRanker
from recbole_qbert.generative.packed_tokens import PackedTokens
from recbole_qbert.generative.t5 import T5, T5Sizes, shift
from recbole_qbert.generative.vocabulary import Vocabulary
from recbole_qbert.quantization.code_sets import CodeSet
from recbole_qbert.recbole_integration import patches
from recbole_qbert.utils.io import digest, sha256

Rank = Callable[[Any, Tensor, Tensor, "Tensor | None"], Tensor]


class GenerativeRecommender(SequentialRecommender):  # type: ignore[misc]
    """A T5 that reads a history as item IDs and writes the next item's ID.

    Args:
        config: RecBole's configuration with the keys of the model's property file.
        dataset: training part of a data set that was built, with ``histories`` and ``identifier_figures``.

    Raises:
        ValueError: a setting is refused, or the data set lacks what the model needs.
    """

    input_type = InputType.POINTWISE
    exclude_history = False  # in evaluation; a comparison sets it for every model (experiment.exclude_history)
    prior = None  # of the trainer: none is added to a generative model
    settings_kind: type[GenerativeConfig] = GenerativeConfig
    checked_on_load: tuple[str, ...] = ("catalog", "identifiers")  # attributes that a checkpoint holds
    length_power = 0  # 0: the loss is a mean over tokens; 1: of the sequences' means; 2: these divided by the lengths again

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        values = patches.ConfigValues(config)
        self.settings = read(self.settings_kind, values | {"longest": self.max_seq_length, "cuts": config["topk"]})
        self.identifier_figures = dict(dataset.identifier_figures)
        histories = Histories.of(dataset.histories, dataset.history_users)
        self.examples = self.build_examples(dataset, histories, int(config["seed"]))
        if not len(self.examples):
            raise ValueError(f"{config['dataset']}: no user has two training items, so there is nothing to learn from")
        self.vocabulary = self.examples.vocabulary
        self.network = self.build_network()
        self._tries: dict[int, ItemRanker] = {}
        self.catalog = digest(dataset.item_tokens())
        self.identifiers = digest([self.catalog, *(language.ids.tolist() for language in self.vocabulary.languages)])
        self.other_parameter_name = list(self.checked_on_load)
        self.histories = digest([history.tolist() for history in dataset.histories])

    # ------------------------------------------------------------------------------------------------- of each model
    @abstractmethod
    def build_examples(self, dataset: Any, histories: Histories, seed: int) -> Examples:
        """Return the examples of an epoch, with the vocabulary that they are written in."""

    def build_network(self) -> T5:
        """Return the network before its first step: a T5 of the settings' sizes."""
        return T5(self.sizes())

    def sizes(self) -> T5Sizes:
        """Return the sizes that the settings name, with the vocabulary's number of tokens."""
        names = T5Sizes.__dataclass_fields__.keys() & self.settings.__dataclass_fields__.keys()
        return T5Sizes(vocab_size=self.vocabulary.size, **{name: getattr(self.settings, name) for name in names})

    def ranked_ids(self, language: int) -> Tensor:
        """Return the IDs that rank, ``[N + 1, K]`` int64 tokens; -1 behind an end.

        The end mark is left out, because all IDs of a code set have one length.
        """
        return self.vocabulary.languages[language].ids

    def full_scores(self, sequences: Tensor, users: Tensor) -> Tensor:
        """Score all items, ``[B, N + 1]``; -inf for the padding item."""
        return self.ranker(0).scores(self.source(0, sequences, users))

    def rank_function(self) -> Rank:
        """Return a function from ``(rows, sequences, lengths, excluded items)`` to ranks of the rows' targets."""
        ranker = self.ranker(0)

        def rank(rows: Any, sequences: Tensor, lengths: Tensor, exclude: Tensor | None) -> Tensor:
            del lengths
            source = self.source(0, sequences, rows[self.USER_ID])
            return ranker.rank(source, rows[self.ITEM_ID], self.settings.most, exclude)

        return rank

    # ------------------------------------------------------------------------------------------------------- training
    def calculate_loss(self, interaction: Any) -> Tensor:
        """Return the loss of all next items of a batch of users, ``[]``."""
        return self.batch_loss(self.examples.of_users(interaction[self.USER_ID].cpu()).to(self.device))

    def batch_loss(
        self, batch: ExampleBatch, masks: Any = None, share: tuple[int, int] = (0, 1), soft: Any = None
    ) -> Tensor:
        """Return the mean cross-entropy of a batch's targets, or one process's part of it; the parts sum to it.

        The mean is over tokens, or over sequences (``length_power``).

        Args:
            batch: examples of the whole batch.
            masks: not used; a generative model draws no masks.
            share: number of this process, and number of processes.
            soft: not used.
        """
        del masks, soft
        total, own = batch.total(self.length_power), batch.share(*share)
        if not len(own.source):
            return next(one for one in self.network.parameters() if one.requires_grad).sum() * 0.0
        source = PackedTokens.of(own.source)
        target = own.target[source.order]
        states = self.network.decode(shift(target.clamp(min=0)), self.network.encode(source))
        real = target >= 0
        loss: Tensor = F.cross_entropy(self.network.logits(states[real]).float(), target[real], reduction="none")
        weight = (real.sum(1, keepdim=True).expand_as(real)[real]).float() ** -self.length_power
        return loss.dot(weight) / total

    # -------------------------------------------------------------------------------------------------------- ranking
    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Return the scores of all items, ``[B, n_items]``; -inf for padding."""
        return self.full_scores(interaction[self.ITEM_SEQ], interaction[self.USER_ID])

    def predict(self, interaction: Any) -> Tensor:
        """Return the score of one item per row, ``[B]``, equal to that of ``full_sort_predict`` up to rounding."""
        source = self.source(0, interaction[self.ITEM_SEQ], interaction[self.USER_ID])
        return self.ranker(0).item_scores(source, interaction[self.ITEM_ID])

    def source(self, language: int, sequences: Tensor, users: Tensor, prompt: int = -1) -> PackedTokens:
        """Write histories ``[B, L]`` in a language."""
        return PackedTokens.of(self.examples.source(language, sequences, users, prompt))

    def ranker(self, language: int) -> ItemRanker:
        """Return the ranker of a language, on the model's device."""
        known = self._tries.get(language)
        if known is None or known.ids.device != self.network.embedding.device:
            ids = self.ranked_ids(language).to(self.network.embedding.device)
            known = ItemRanker(self.network, ids, self.settings.ranking, self.settings.beams)
            self._tries[language] = known
        return known

    # ---------------------------------------------------------------------------------------------------- checkpoints
    def fingerprint(self) -> str:
        """Return a digest of what training starts from besides the settings: data and IDs."""
        start = getattr(self.settings, "pretrained", None)
        return digest([self.identifiers, self.histories, *([sha256(Path(start))] if start else [])])

    def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
        """Check that a checkpoint was trained with the IDs that the model has.

        Raises:
            ValueError: it was trained with others; its weights mean other items.
        """
        if para and para.get("identifiers", self.identifiers) != self.identifiers:
            raise ValueError(
                "the checkpoint was trained with other item IDs than the data set has now: its tokens mean other items; use "
                "the IDs of the training (semantic_id_dir, semantic_id_file), or train again"
            )
        super().load_other_parameter(para)


class CodeRecommender(GenerativeRecommender):
    """A ``GenerativeRecommender`` whose languages are the code sets of a ``CodeDataset``."""

    def build_examples(self, dataset: Any, histories: Histories, seed: int) -> Examples:
        """Return the examples of the tasks that ``define`` names."""
        self.code_sets = self.choose_code_sets(dataset.code_sets)
        vocabulary, tasks, prompt_tokens = self.define(self.code_sets)
        return Examples(tasks, vocabulary, histories, self.max_seq_length, prompt_tokens, seed=seed)

    def choose_code_sets(self, code_sets: Sequence[CodeSet]) -> list[CodeSet]:
        """Choose the code sets that the model uses."""
        return list(code_sets)

    @abstractmethod
    def define(self, code_sets: Sequence[CodeSet]) -> tuple[Vocabulary, list[Task], int]:
        """Return the tokens, the tasks, of which the first is to predict the next item, and the tokens of a prompt."""
