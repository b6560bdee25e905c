"""TIGER as a RecBole model (Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_qbert.config.generative import TIGERConfig
from recbole_qbert.generative.examples import Task
from recbole_qbert.generative.vocabulary import Vocabulary
from recbole_qbert.quantization.code_sets import CodeSet
from recbole_qbert.recbole_integration.generative_model import CodeRecommender


class TIGER(CodeRecommender):
    """Write the semantic ID of the next item after a user token and the IDs of the history.

    The data set provides the IDs: codes of the text by an RQ-VAE, and a last digit that tells items with equal codes apart.
    The paper gives no end mark; here a target ends with one, as in most implementations, and it is not scored, because all
    IDs have the same length. Only IDs of the catalog are generated.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/TIGER.yaml``.
        dataset: training part of a ``CodeDataset`` that was built.
    """

    settings_kind = TIGERConfig
    settings: TIGERConfig

    def choose_code_sets(self, code_sets: Sequence[CodeSet]) -> list[CodeSet]:
        """Choose the first code set, which every item has."""
        return list(code_sets[:1])

    def define(self, code_sets: Sequence[CodeSet]) -> tuple[Vocabulary, list[Task], int]:
        """Return the tokens, and the one task."""
        languages = [(code_set.name, code_set.codes, code_set.sizes) for code_set in code_sets]
        vocabulary = Vocabulary.of(languages, users=self.settings.user_tokens, unused=self.settings.unused_tokens)
        return vocabulary, [Task("next item", (0,), (0,))], 0
