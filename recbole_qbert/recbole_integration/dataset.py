"""RecBole data sets with one training row per user, and RecBole's own rows for validation and test.

RecBole makes a training row of every prefix of every history. Our models learn from all positions of a history at once, so
here a history is one row. On Amazon data these are about six times fewer rows, built by one gather instead of a Python loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_qbert.config.schema import IdentifierConfig, SequenceConfig, TrainConfig, read
from recbole_qbert.data.atomic_files import parse_columns
from recbole_qbert.data.item_features import READ_AS_MISSING, check_token
from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.recbole_integration import identifiers
from recbole_qbert.recbole_integration.patches import ConfigValues


class HistoryDataset(SequentialDataset):  # type: ignore[misc]
    """Split each user's history by leave-one-out, as RecBole's ``LS: valid_and_test`` does.

    Training rows hold the whole training history (the newest ``MAX_ITEM_LIST_LENGTH + 1`` items) in the item list, and the
    last of them in the target field, too. Validation and test rows are those of ``SequentialDataset``.

    Attributes:
        histories: whole training history of each user, RecBole's item ids; set by ``split``.
    """

    inter_feat: Any
    histories: list[np.ndarray]

    def __init__(self, config: Any) -> None:
        inter = Path(config["data_path"]) / f"{config['dataset']}.inter"
        if inter.exists():
            refuse_lost_ids(inter, config["field_separator"], (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]))
        super().__init__(config)

    def split(self) -> list[HistoryDataset]:
        """Return the training, validation and test parts, as RecBole's ``build`` does."""
        parts: list[HistoryDataset] = super().build()
        return parts

    def catalog(self) -> Catalog:
        """Return the items and training histories; call it after ``split``."""
        histories = [ItemVocabulary.from_recbole(history) for history in self.histories]
        return Catalog(self.config["dataset"], Path(self.config["data_path"]), self.item_tokens(), histories)

    def content_likeness(self) -> sp.csr_matrix | None:
        """Return how alike the content of items is, ``[n_items, n_items]``; ``None`` without features."""
        return identifiers.content_likeness(self.config, self.catalog())

    def data_augmentation(self) -> None:
        """Make one row per user and part in place of RecBole's prefix rows.

        Raises:
            ValueError: ``eval_args.split`` is not ``LS: valid_and_test``.
        """
        split = self.config["eval_args"]["split"]
        if split != {"LS": "valid_and_test"}:
            raise ValueError(
                f"eval_args.split is {split}; QBERT4Rec trains on whole histories and needs {{'LS': 'valid_and_test'}}"
            )
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        _, count = torch.unique_consecutive(self.inter_feat[self.uid_field], return_counts=True)
        start = count.cumsum(0) - count
        # RecBole splits the n - 1 prefix rows of a user: of 2 rows the second is a test row, 1 row is a training row.
        held = (count - 2).clamp(min=0, max=2)
        train = count - held
        width = self.config["MAX_ITEM_LIST_LENGTH"]
        use = count >= 2
        valid, test = held == 2, held >= 1
        parts = (
            self._rows(start[use], train[use], train[use] - 1, width + 1),
            self._rows(start[valid], count[valid] - 2, count[valid] - 2, width),
            self._rows(start[test], count[test] - 1, count[test] - 1, width),
        )
        items = self.inter_feat[self.iid_field].numpy()
        self.histories = [items[s : s + n] for s, n in zip(start.tolist(), train.tolist(), strict=True)]
        self.inter_feat, self._held_out = parts[0], parts[1:]

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[HistoryDataset]:
        """Return the three parts that ``data_augmentation`` made."""
        del group_by, leave_one_mode
        parts = [self.inter_feat, *self._held_out]
        del self._held_out
        for part in parts:
            self.inter_feat = part
            for field in (self.config["unused_col"] or {}).get("inter", ()):
                if field in part.interaction:
                    part.drop(column=field)
        self.inter_feat = parts[0]
        return [self.copy(part) for part in parts]

    @property
    def item_counter(self) -> Counter[int]:
        """Count how often each item is a training target, as RecBole counts its prefix rows (popularity metrics)."""
        targets = [history[1:] for history in self.histories]
        return Counter(np.concatenate(targets).tolist() if targets else [])

    def item_tokens(self) -> tuple[str, ...]:
        """Return the item tokens in the order of internal ids, without the padding at 0."""
        return tuple(str(token) for token in self.field2id_token[self.iid_field][1:])

    def _rows(self, start: Tensor, length: Tensor, target: Tensor, width: int) -> Interaction:
        """Make one row per user: the newest ``width`` interactions of a history, and its target.

        Args:
            start: position of each user's first interaction, ``[U]``.
            length: number of each user's interactions in the history, ``[U]``.
            target: offset of the target from ``start``, ``[U]``.
            width: columns of the item list.
        """
        row_length = length.clamp(max=width)
        position = torch.arange(width)
        real = position < row_length[:, None]
        source = torch.where(real, (start + length - row_length)[:, None] + position, 0)
        rows = {self.item_list_length_field: row_length}
        for field in self.inter_feat:
            value = self.inter_feat[field]
            rows[field] = value[start + target]
            if field != self.uid_field:
                shape = real.shape + (1,) * (value.dim() - 1)
                rows[getattr(self, f"{field}_list_field")] = torch.where(real.view(shape), value[source], 0).to(value.dtype)
        return Interaction(rows)


class QBERT4RecDataset(HistoryDataset):
    """A ``HistoryDataset`` whose items have semantic IDs. ``build`` loads them, or makes them from the training part.

    Attributes:
        semantic_ids: IDs of all items; set by ``build``.
        identifier_figures: figures on how the IDs were made; set by ``build``.
    """

    semantic_ids: SemanticIDs
    identifier_figures: dict[str, Any]

    def build(self) -> list[HistoryDataset]:
        """Split the data and load or build the semantic IDs.

        Raises:
            ValueError: a setting of any stage is refused, or the IDs do not fit the data.
        """
        _check_settings(self.config)  # before stages 1 and 2 spend their time
        parts = self.split()
        self.set_semantic_ids([self, *parts])
        return parts

    def set_semantic_ids(self, parts: Sequence[QBERT4RecDataset]) -> None:
        """Load or build the semantic IDs, and give them to the parts of the data set."""
        ids, figures = identifiers.load_or_build(self.config, self.catalog())
        for part in parts:
            part.semantic_ids, part.identifier_figures = ids, figures

    @classmethod
    def update_saved_parts(cls, parts: Sequence[Any], config: Any) -> None:
        """Update the semantic IDs of parts that RecBole has read from a file of loaders to the current settings.

        Args:
            parts: training, validation and test parts.
            config: RecBole's configuration.

        Raises:
            ValueError: as of ``build``.
        """
        _check_settings(config)
        for part in parts:
            part.config = config
        parts[0].set_semantic_ids(parts)


def _check_settings(config: Any) -> None:
    """Read the settings of all stages once, so that invalid values are refused."""
    values = ConfigValues(config)
    for kind in (TrainConfig, IdentifierConfig):
        read(kind, values)
    read(SequenceConfig, values | {"max_length": values["MAX_ITEM_LIST_LENGTH"]})


def refuse_lost_ids(path: Path, separator: str, fields: tuple[str, ...]) -> None:
    """Refuse an atomic file with user or item ids that RecBole would drop silently.

    Args:
        path: the ``.inter`` file.
        separator: separator of the columns.
        fields: names of the id columns.

    Raises:
        ValueError: names the file, the line and the id.
    """
    with open(path, encoding="utf-8") as handle:
        names = [column.name for column in parse_columns(handle.readline(), separator)]
        columns = [(names.index(field), field) for field in fields if field in names]
        for number, line in enumerate(handle, 2):
            if not line.strip():  # pandas skips it
                continue
            cells = line.rstrip("\n").split(separator)
            for column, field in columns:
                if column < len(cells) and cells[column] in READ_AS_MISSING:
                    check_token(cells[column], f"{path}:{number}", field)
