"""MQL4GRec as a RecBole model (Zhai et al., Multimodal Quantitative Language for Generative Recommendation, ICLR 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.config.generative import MQL4GRecConfig
from recbole_qbert.generative.examples import Task
from recbole_qbert.generative.fusion import FusedRanker
from recbole_qbert.generative.vocabulary import Vocabulary
from recbole_qbert.quantization.code_sets import CodeSet
from recbole_qbert.recbole_integration.generative_model import CodeRecommender, Rank
from recbole_qbert.recbole_integration.generative_pretraining import start_from

TEXT, IMAGE = 0, 1
#: The published tasks. Prompts stand before three of them, as in the released code; its figure shows one for each.
TASKS = {
    "seqrec": Task("seqrec", (TEXT,), (TEXT,)),
    "seqimage": Task("seqimage", (IMAGE,), (IMAGE,)),
    "item2image": Task("item2image", (TEXT,), (IMAGE,), next_item=False, prompt=0),
    "image2item": Task("image2item", (IMAGE,), (TEXT,), next_item=False, prompt=1),
    "fusionseqrec": Task("fusionseqrec", (TEXT, IMAGE), (IMAGE, TEXT), prompt=2),
}


class MQL4GRec(CodeRecommender):
    """Write the next item in text codes and in image codes, and join both rankings.

    Items without a picture have no image codes; they are left out of the image language's tasks and list. In a data set
    without pictures only ``seqrec`` remains, and text alone ranks.

    Args:
        config: RecBole's configuration with the keys of ``properties/model/MQL4GRec.yaml``.
        dataset: training part of a ``CodeDataset`` that was built.

    Raises:
        ValueError: ``tasks`` lacks the next item in the language that ranks, or ``pretrained`` does not fit.
    """

    settings_kind = MQL4GRecConfig
    settings: MQL4GRecConfig

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.code_rows = self.vocabulary.code_rows
        self.other_parameter_name.append("code_rows")
        if self.settings.pretrained:
            start_from(self, self.settings.pretrained)

    def choose_code_sets(self, code_sets: Sequence[CodeSet]) -> list[CodeSet]:
        """Choose the codes of text and image; those of the text alone where items have no pictures."""
        return list(code_sets[:2])

    def define(self, code_sets: Sequence[CodeSet]) -> tuple[Vocabulary, list[Task], int]:
        """Return the tokens and the tasks that the data set has the languages for."""
        settings = self.settings
        has_images = len(code_sets) > 1
        needed = {"text": ["seqrec"], "image": ["seqimage"], "lists": ["seqrec", "seqimage"]}[settings.fuse]
        needed = needed if has_images else ["seqrec"]
        if not has_images and settings.fuse == "image":
            raise ValueError("fuse is image, but the items have no image codes; set it to text")
        if missing := [name for name in needed if name not in settings.tasks]:
            raise ValueError(f"fuse is {settings.fuse}, which needs {', '.join(missing)} among tasks ({settings.tasks})")
        usable = [name for name in settings.tasks if has_images or name == "seqrec"]
        if len(usable) < len(settings.tasks):
            left_out = [name for name in settings.tasks if name not in usable]
            self.logger.warning(f"the items have no image codes: {', '.join(left_out)} are left out, and text alone ranks")
        usable.sort(key=lambda name: name != needed[0])  # the first one is that of calculate_loss
        prompts = settings.prompt_tokens * sum(task.prompt >= 0 for task in TASKS.values())
        languages = [(code_set.name, code_set.codes, code_set.sizes) for code_set in code_sets]
        vocabulary = Vocabulary.of(languages, prompts=prompts, unused=settings.unused_tokens)
        return vocabulary, [TASKS[name] for name in usable], settings.prompt_tokens

    @property
    def ranking_languages(self) -> tuple[int, ...]:
        """Return the languages whose lists rank."""
        if len(self.vocabulary.languages) == 1:
            return (TEXT,)
        return {"text": (TEXT,), "image": (IMAGE,), "lists": (TEXT, IMAGE)}[self.settings.fuse]

    def fused_ranker(self) -> FusedRanker:
        """Return the ranker that joins the lists of both languages."""
        return FusedRanker(self.ranker(TEXT), self.ranker(IMAGE), self.settings.ensemble_bonus, self.settings.beams)

    def full_scores(self, sequences: Tensor, users: Tensor) -> Tensor:
        """Score all items, ``[B, N + 1]``; -inf for the padding item."""
        languages = self.ranking_languages
        sources = [self.source(language, sequences, users) for language in languages]
        return self.ranker(languages[0]).scores(*sources) if len(languages) == 1 else self.fused_ranker().scores(*sources)

    def predict(self, interaction: Any) -> Tensor:
        """Return the score of one item per row, ``[B]``; joined lists need those of all items."""
        languages = self.ranking_languages
        if len(languages) == 1:
            source = self.source(languages[0], interaction[self.ITEM_SEQ], interaction[self.USER_ID])
            return self.ranker(languages[0]).item_scores(source, interaction[self.ITEM_ID])
        scores = self.full_sort_predict(interaction)
        return scores[torch.arange(len(scores), device=scores.device), interaction[self.ITEM_ID]]

    def rank_function(self) -> Rank:
        """Return a function from ``(rows, sequences, lengths, excluded items)`` to ranks of the rows' targets."""
        languages, most = self.ranking_languages, self.settings.most
        alone = self.ranker(languages[0])
        fused = self.fused_ranker() if len(languages) > 1 else None

        def rank(rows: Any, sequences: Tensor, lengths: Tensor, exclude: Tensor | None) -> Tensor:
            del lengths
            first, *second = (self.source(language, sequences, rows[self.USER_ID]) for language in languages)
            if fused is None:
                return alone.rank(first, rows[self.ITEM_ID], most, exclude)
            return fused.rank(first, second[0], rows[self.ITEM_ID], most, exclude)

        return rank
