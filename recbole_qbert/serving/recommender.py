"""Recommend items for histories of item tokens with a trained model; from an exported folder without RecBole."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.quantization import semantic_ids as id_files
from recbole_qbert.retrieval.catalog_ranker import CatalogRanker
from recbole_qbert.serving import cold_start, export
from recbole_qbert.serving.export import TrainedModel

log = logging.getLogger(__name__)

NAMED = 5  # number of unknown items that are named in a warning


class Recommendation(NamedTuple):
    """One recommended item.

    Attributes:
        item: token.
        score: log-probability, mean over the views, plus the prior if the model has one; higher is better.
        title: ``None`` if the item has no title.
        semantic_id: ``<a_170><b_224><c_251><d_151>``.
    """

    item: str
    score: float
    title: str | None
    semantic_id: str


@dataclass(frozen=True)
class Skipped:
    """Unknown items and histories that were skipped; can be added up over blocks of histories.

    Attributes:
        items: number of unknown items, counted as often as they occur.
        first: the first few of them.
        histories: number of histories without any known item, which get no recommendations.
    """

    items: int = 0
    first: tuple[str, ...] = ()
    histories: int = 0

    def __add__(self, other: Skipped) -> Skipped:
        first = tuple(dict.fromkeys(self.first + other.first))[:NAMED]
        return Skipped(self.items + other.items, first, self.histories + other.histories)

    def lines(self) -> list[str]:
        """Describe what was skipped in sentences; none if nothing was."""
        sentences = []
        if self.items:
            first = ", ".join(self.first)
            sentences.append(f"{self.items} items of histories are unknown to the model: skipped (first: {first})")
        if self.histories:
            sentences.append(f"{self.histories} histories hold no item that the model knows: no recommendations for them")
        return sentences


@dataclass(frozen=True)
class Ranked:
    """Recommendations of many histories as arrays.

    Attributes:
        rows: ``[H, min(k, N)]`` int64 rows of ``Recommender.items``, best first, padded with -1.
        scores: ``[H, min(k, N)]`` float32; -inf where the row is -1.
        skipped: unknown items and histories.
    """

    rows: np.ndarray
    scores: np.ndarray
    skipped: Skipped


class Recommender:
    """Rank all items of a catalog for histories of item tokens.

    Args:
        model: the trained model.
        device: device to compute on.

    Attributes:
        items: ``N`` item tokens; new ones (``semantic_ids`` of ``load``) follow those of the training.
        semantic_ids: semantic IDs of the items, in their order.
        titles: item token -> title, for items that have one; more can be added.
        form: how the atomic files of the model's data set are written.
    """

    def __init__(self, model: TrainedModel, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = model.network.to(self.device).eval()
        self.prior = None if model.prior is None else model.prior.to(self.device)
        self.semantic_ids, self.items, self.titles, self.form = model.ids, model.ids.items, model.titles, model.form
        self._vocabulary = ItemVocabulary(self.items)
        self._id_texts: dict[int, str] = {}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        data_path: str | os.PathLike[str] | None = None,
        semantic_ids: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
        properties: Mapping[str, Any] | None = None,
        config_files: Sequence[str | os.PathLike[str]] = (),
    ) -> Recommender:
        """Read a model.

        Args:
            path: folder written by the ``export`` command, or a checkpoint (``.pth``), which needs RecBole and its data.
            data_path: for a checkpoint, folder that holds the data set's folder; by default the one used at training.
            semantic_ids: ``.sid`` file of the ``add`` command: the model's IDs and those of new items. The ``.neighbours``
                file beside it is read, too. New items are ranked, and may occur in histories.
            device: device to compute on.
            properties: properties that override those of the training. Of an exported folder only those that say how files
                are written can be given (``atomic_files.FORMAT_PROPERTIES``).
            config_files: property files, likewise; other properties in them are of the training, and not read for a folder.

        Raises:
            ImportError: a checkpoint without RecBole.
            FileNotFoundError: the model, or a file of it, is missing.
            ValueError: a file is damaged or of another format, or the IDs are of another vocabulary.
        """
        source = Path(path)
        if source.suffix == ".pth" or source.is_file():
            data = None if data_path is None else Path(data_path)
            model = export.from_checkpoint(source, data, properties=properties, config_files=config_files)
        else:
            model = export.load(source, properties, config_files)
        if semantic_ids is not None:
            sid_file = Path(semantic_ids)
            model = model.with_items(id_files.load(sid_file), cold_start.load_beside(sid_file))
        return cls(model, device)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        batch_size: int = 512,
        normalised: bool = True,
    ) -> list[list[Recommendation]]:
        """Recommend the best items for each history; unknown items are logged as a warning.

        Args:
            histories: item tokens, oldest first. Unknown items are skipped, and the newest ``max_length`` known ones are
                used. A history without any known item gets an empty list, since the model is not trained for this.
            k: number of items; fewer if the catalog has no more.
            exclude_seen: exclude all items of the history, including those that are too old to be used.
            batch_size: number of histories computed at a time; the result does not depend on it.
            normalised: scores are log-probabilities, which takes a pass over the whole catalog. Without, they are lower or
                higher by one number for each history: the items and their order are the same, and sooner there.

        Returns:
            One list for each history, best first; of equal scores the item with the lower row comes first.

        Raises:
            ValueError: ``k`` or ``batch_size`` below 1, or a history that is a string.
        """
        ranked = self.recommend_arrays(histories, k, exclude_seen=exclude_seen, batch_size=batch_size, normalised=normalised)
        for line in ranked.skipped.lines():
            log.warning("%s", line)
        return self.named(ranked)

    def recommend_arrays(
        self,
        histories: Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        batch_size: int = 512,
        normalised: bool = True,
    ) -> Ranked:
        """Recommend items for many histories: as ``recommend``, but returns arrays and logs no warning.

        Args:
            histories, k, exclude_seen, batch_size, normalised: as for :meth:`recommend`.
        """
        if k < 1 or batch_size < 1:
            raise ValueError(f"k is {k} and batch_size {batch_size}; both must be at least 1")
        encoded, skipped = self._encode(histories)
        shape = (len(encoded), min(k, len(self.items)))
        rows, scores = np.full(shape, -1), np.full(shape, -np.inf, dtype=np.float32)
        lengths = np.array([len(history) for history in encoded], dtype=np.int64)
        # Sorted by length, so that short histories are not padded to the longest.
        order = np.argsort(lengths, kind="stable")
        order = order[np.count_nonzero(lengths == 0) :]
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            some = [encoded[number] for number in part]
            rows[part], scores[part] = self._best(some, shape[1], exclude_seen, normalised)
        return Ranked(rows, scores, skipped)

    def named(self, ranked: Ranked) -> list[list[Recommendation]]:
        """Add item tokens, titles and semantic IDs to the result of ``recommend_arrays``."""
        pairs = zip(ranked.rows.tolist(), ranked.scores.tolist(), strict=True)
        return [
            [
                Recommendation(item := self.items[row], score, self.titles.get(item), self.id_text(row))
                for row, score in zip(rows, scores, strict=True)
                if row >= 0
            ]
            for rows, scores in pairs
        ]

    def id_text(self, row: int) -> str:
        """Format the semantic ID of the item in a row of ``items``."""
        if row not in self._id_texts:
            self._id_texts[row] = self.semantic_ids.text(row)
        return self._id_texts[row]

    @cached_property
    def _ranker(self) -> CatalogRanker:
        return CatalogRanker(self.network, self.prior, dense=False)

    @torch.inference_mode()
    def scores(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """Score all items.

        Args:
            sequences: ``[B, L]`` int64 rows of ``items``, plus 1, left-aligned; ``L`` at most ``max_length``.
            lengths: ``[B]`` int64, at least 1.

        Returns:
            ``[B, N + 1]`` float32; the first column, padding, is -inf.
        """
        scores = self.network.scores(sequences, lengths)
        return scores if self.prior is None else scores + self.prior(sequences, lengths)

    def _best(
        self, histories: Sequence[np.ndarray], k: int, exclude_seen: bool, normalised: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find rows of ``items`` and scores, ``[B, k]`` each, for histories of network rows."""
        newest = [torch.from_numpy(history[-self.network.config.max_length :]) for history in histories]
        lengths = torch.tensor([len(history) for history in newest], device=self.device)
        sequences = pad_sequence(newest, batch_first=True).to(self.device)
        seen = None
        if exclude_seen:
            full = [torch.from_numpy(history) for history in histories]
            seen = pad_sequence(full, batch_first=True, padding_value=-1).to(self.device)
        threads = torch.get_num_threads()
        best, rows = self._ranker.top_k(sequences, lengths, k, exclude=seen, normalised=normalised, threads=threads)
        return ItemVocabulary.from_recbole(rows).clamp(min=-1).cpu().numpy(), best.cpu().numpy()

    def _encode(self, histories: Sequence[Sequence[str]]) -> tuple[list[np.ndarray], Skipped]:
        """Look up the network rows of the known items of each history, and count what is skipped."""
        encoded: list[np.ndarray] = []
        first: dict[str, None] = {}
        unknown = empty = 0
        for history in histories:
            if isinstance(history, str):
                raise ValueError(f"a history is a list of item tokens, not the string {history!r}; put it into a list")
            rows = self._vocabulary.rows(history)
            if rows.size and rows.min() < 0:
                missing = [item for item, row in zip(history, rows, strict=True) if row < 0]
                unknown += len(missing)
                if len(first) < NAMED:
                    first |= dict.fromkeys(map(str, missing))
                rows = rows[rows >= 0]
            encoded.append(ItemVocabulary.to_recbole(rows))
            empty += not rows.size
        return encoded, Skipped(unknown, tuple(first)[:NAMED], empty)
