"""RecBole data sets with one training row per user, and RecBole's own rows for validation and test.

RecBole makes a training row of every prefix of every history. Our models learn from all positions of a history at once, so
here a history is one row. On Amazon data these are about six times fewer rows, built by one gather instead of a Python loop.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource
from torch import Tensor

from recbole_qbert.data.atomic_files import AtomicFormat, Header
from recbole_qbert.data.interactions import check_interactions
from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.recbole_integration import identifiers


@dataclass(frozen=True)
class _Interactions:
    """The interactions of a part, from which it tells RecBole's figures.

    Attributes:
        rows: interactions of all parts, sorted by user and time.
        start: position of each user's first interaction, ``[U]``.
        length: number of each user's interactions in this part, ``[U]``.
    """

    rows: Interaction
    start: Tensor
    length: Tensor


class HistoryDataset(SequentialDataset):  # type: ignore[misc]
    """Split each user's history by leave-one-out, as RecBole's ``LS: valid_and_test`` does.

    Training rows hold the whole training history (the newest ``MAX_ITEM_LIST_LENGTH + 1`` items) in the item list, and the
    last of them in the target field, too. Validation and test rows are those of ``SequentialDataset``. What RecBole tells of
    a part (``inter_num``, ``inter_matrix``, ``item_counter``, ...) is what ``SequentialDataset`` tells of its prefix rows;
    only ``len`` and the rows themselves are ours.

    Attributes:
        histories: whole training history of each user, RecBole's item ids; set by ``split``.
        history_users: RecBole's user id of each of ``histories``, ``[U]`` int64; set by ``split``.

    Raises:
        ValueError: a setting asks for other rows, or RecBole would misread the ``.inter`` file; names the setting, or the
            file, the line and the value.
    """

    inter_feat: Any
    histories: list[np.ndarray]
    history_users: np.ndarray
    _interactions: _Interactions | None = None

    def __init__(self, config: Any) -> None:
        _refuse_other_rows(config)
        super().__init__(config)

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        """Check the ``.inter`` file before RecBole reads it."""
        path = Path(dataset_path) / f"{token}.inter"
        if path.exists():
            self._check_columns(check_interactions(path, AtomicFormat.from_config(self.config)))
        super()._load_inter_feat(token, dataset_path)

    def _check_columns(self, header: Header) -> None:
        """Refuse columns that stand where the histories go, and the lack of those that make them."""
        load, unload = self._get_load_and_unload_col(FeatureSource.INTERACTION)
        loaded = [name for name in header.names if (load is None or name in load) and name not in (unload or ())]
        for field in (self.uid_field, self.iid_field, self.time_field):
            if field not in loaded:
                raise ValueError(
                    f"load_col and unload_col leave out {field} of {header.path} (they load {', '.join(loaded) or 'none'}); "
                    "name the columns of users, items and times in load_col.inter"
                )
        lists = {self.iid_field + self.config["LIST_SUFFIX"]} & set(header.names)
        lists |= {name + self.config["LIST_SUFFIX"] for name in loaded} & set(loaded)
        lists |= {self.item_list_length_field} & set(loaded)
        if lists:
            raise ValueError(
                f"{header.path}:1: column {', '.join(sorted(lists))} holds histories that were cut before; "
                f"{type(self).__name__} makes them of single interactions: give one row an interaction "
                f"({self.uid_field}, {self.iid_field}, {self.time_field}), and remove the column"
            )

    def _filter_by_inter_num(self) -> None:
        """Filter as RecBole does, unless every number of interactions is allowed: counting takes a third of loading."""
        intervals = {self.config["user_inter_num_interval"], self.config["item_inter_num_interval"]}
        if not intervals <= {None, "[0,inf)"}:
            super()._filter_by_inter_num()

    def build(self) -> list[HistoryDataset]:
        """Split the data, and complete its parts.

        Raises:
            FileNotFoundError: a file that the model reads besides is missing, such as that of ``pretrained``.
            ValueError: no user has enough interactions to train, validate and test on, or what the model reads besides does
                not fit the data.
        """
        self.require_named_files(self.config)
        parts = self.split()
        self._require_evaluation(parts)
        self.complete([self, *parts])
        return parts

    @classmethod
    def require_named_files(cls, config: Any) -> None:
        """Refuse a property that names a missing file, before stages 1 and 2 spend their time.

        Raises:
            FileNotFoundError: names the property and the file.
        """
        if (path := config["pretrained"]) and not Path(path).is_file():
            raise FileNotFoundError(f"pretrained is {str(path)!r}, which is no file; it must name a checkpoint (.pth)")

    def complete(self, parts: Sequence[Any]) -> None:
        """Give the parts of the data set what its model reads besides rows: nothing here, item IDs or features in others."""

    @classmethod
    def update_saved_parts(cls, parts: Sequence[Any], config: Any) -> None:
        """Complete parts that RecBole has read from a file of loaders anew, by the current settings.

        Args:
            parts: training, validation and test parts.
            config: RecBole's configuration.

        Raises:
            FileNotFoundError, ValueError: as of ``build``.
        """
        cls.require_named_files(config)
        for part in parts:
            part.config = config
        parts[0].complete(parts)

    def split(self) -> list[HistoryDataset]:
        """Return the training, validation and test parts, as RecBole's ``build`` does."""
        parts: list[HistoryDataset] = super().build()
        return parts

    def _require_evaluation(self, parts: Sequence[HistoryDataset]) -> None:
        if not len(parts[1]):
            longest = max((len(history) for history in self.histories), default=0)
            raise ValueError(
                f"{self.config['dataset']}: no user has the 4 interactions that training, validation and test need together "
                f"({len(self.histories)} users, of whom none has more than {longest} in training); lower "
                "user_inter_num_interval or add interactions"
            )

    def catalog(self) -> Catalog:
        """Return the items and training histories; call it after ``split``."""
        histories = [ItemVocabulary.from_recbole(history) for history in self.histories]
        form = AtomicFormat.from_config(self.config)
        return Catalog(self.config["dataset"], Path(self.config["data_path"]), self.item_tokens(), histories, form)

    def content_likeness(self) -> sp.csr_matrix | None:
        """Return how alike the content of items is, ``[n_items, n_items]``; ``None`` without features."""
        return identifiers.content_likeness(self.config, self.catalog())

    def content_vectors(self) -> np.ndarray | None:
        """Return the standardized features of the items, ``[n_items - 1, D]`` without padding; ``None`` without features."""
        return identifiers.content_vectors(self.config, self.catalog())

    def data_augmentation(self) -> None:
        """Make one row per user and part in place of RecBole's prefix rows."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        _, count = torch.unique_consecutive(self.inter_feat[self.uid_field], return_counts=True)
        start = count.cumsum(0) - count
        # RecBole splits the n - 1 prefix rows of a user: of 2 rows the second is a test row, 1 row is a training row.
        held = (count - 2).clamp(min=0, max=2)
        train = count - held
        width = self.config["MAX_ITEM_LIST_LENGTH"]
        valid, test = held == 2, held >= 1
        learned = self._trained_users(len(count))
        use = (count >= 2) & learned
        parts = (
            self._training_rows(start[use], train[use], width),
            self._rows(start[valid], count[valid] - 2, count[valid] - 2, width),
            self._rows(start[test], count[test] - 1, count[test] - 1, width),
        )
        items = self.inter_feat[self.iid_field].numpy()
        self.histories = [items[s : s + n] for s, n in zip(start[learned].tolist(), train[learned].tolist(), strict=True)]
        self.history_users = self.inter_feat[self.uid_field][start[learned]].numpy()
        self._interactions = _Interactions(self.inter_feat, start, count)
        self._training = _Interactions(self.inter_feat, start, train)
        self.inter_feat, self._held_out = parts[0], parts[1:]

    def _trained_users(self, users: int) -> Tensor:
        """Mark the users whose histories are trained on, ``[U]`` bool: a share, which holds the users of a smaller share."""
        share = self.config["train_users"]
        if share is None or share == 1:
            return torch.ones(users, dtype=torch.bool)
        place = torch.randperm(users, generator=torch.Generator().manual_seed(int(self.config["seed"])))
        return place < max(1, round(share * users))

    def _training_rows(self, start: Tensor, length: Tensor, width: int) -> Interaction:
        """Make one row per user, with the whole training history.

        Args:
            start: position of each user's first interaction, ``[U]``.
            length: number of each user's training interactions, ``[U]``.
            width: ``MAX_ITEM_LIST_LENGTH``.
        """
        return self._rows(start, length, length - 1, width + 1)

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[HistoryDataset]:
        """Return the three parts that ``data_augmentation`` made."""
        del group_by, leave_one_mode
        parts = [self.inter_feat, *self._held_out]
        training = self._training
        del self._held_out, self._training
        for part in parts:
            self.inter_feat = part
            for field in (self.config["unused_col"] or {}).get("inter", ()):
                if field in part.interaction:
                    part.drop(column=field)
        self.inter_feat = parts[0]
        copies = [self.copy(part) for part in parts]
        copies[0]._interactions = training
        return copies

    # ----------------------------------------------------------------------------- what RecBole tells of its prefix rows
    def copy(self, new_inter_feat: Any) -> HistoryDataset:
        """Return the data set with other rows, which are taken for what they are."""
        part: HistoryDataset = super().copy(new_inter_feat)
        part._interactions = None
        return part

    @property
    def inter_num(self) -> int:
        """Return the number of RecBole's rows."""
        return len(self._with_prefix_rows().inter_feat)

    @property
    def avg_actions_of_users(self) -> Any:
        """Return the mean number of RecBole's rows a user."""
        return SequentialDataset.avg_actions_of_users.fget(self._with_prefix_rows())

    @property
    def avg_actions_of_items(self) -> Any:
        """Return the mean number of RecBole's rows an item."""
        return SequentialDataset.avg_actions_of_items.fget(self._with_prefix_rows())

    def counter(self, field: str) -> Counter[Any]:
        """Count the tokens of a field in RecBole's rows."""
        counts: Counter[Any] = SequentialDataset.counter(self._with_prefix_rows(), field)
        return counts

    def inter_matrix(self, form: str = "coo", value_field: str | None = None) -> Any:
        """Return the sparse matrix of users and items, as RecBole makes it of its rows."""
        return SequentialDataset.inter_matrix(self._with_prefix_rows(), form, value_field)

    def _history_matrix(self, row: str, value_field: str | None = None, max_history_len: int | None = None) -> Any:
        return SequentialDataset._history_matrix(self._with_prefix_rows(), row, value_field, max_history_len)

    def _with_prefix_rows(self) -> HistoryDataset:
        """Return this part with the rows that ``SequentialDataset`` has, one for each prefix of a history.

        Of the lists they hold only the first item, which is all that RecBole's figures read.
        """
        if self._interactions is None:  # the rows are RecBole's already
            return self
        rows, start, length = self._interactions.rows, self._interactions.start, self._interactions.length
        number = (length - 1).clamp(min=0)
        place = 1 + torch.arange(int(number.sum())) - (number.cumsum(0) - number).repeat_interleave(number)
        target = start.repeat_interleave(number) + place
        place = place.clamp(max=self.config["MAX_ITEM_LIST_LENGTH"])
        prefixes = {self.item_list_length_field: place}
        for field in rows:
            if field in self.inter_feat:  # not one of unused_col
                prefixes[field] = rows[field][target]
            if field != self.uid_field:
                prefixes[getattr(self, f"{field}_list_field")] = rows[field][target - place][:, None]
        part = copy.copy(self)
        part.inter_feat, part._interactions = Interaction(prefixes), None
        return part

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

    def complete(self, parts: Sequence[Any]) -> None:
        """Load or build the semantic IDs, and give them to the parts of the data set."""
        ids, figures = identifiers.load_or_build(self.config, self.catalog())
        for part in parts:
            part.semantic_ids, part.identifier_figures = ids, figures

    def with_settings(self, config: Any) -> QBERT4RecDataset:
        """Return this part with the semantic IDs of other settings.

        Raises:
            ValueError: as of ``build``.
        """
        part = copy.copy(self)
        part.config = config
        part.complete([part])
        return part


def _refuse_other_rows(config: Any) -> None:
    """Refuse properties that ask for other rows than whole histories, split by leave-one-out."""
    model, parts = config["model"], config["benchmark_filename"]
    split, order = config["eval_args"]["split"], config["eval_args"]["order"]
    if parts is not None:
        raise ValueError(
            f"benchmark_filename is {parts}: {model} trains on whole histories and splits them itself; "
            f"put all interactions into {config['dataset']}.inter, one a row, and leave the property out"
        )
    if split != {"LS": "valid_and_test"}:
        raise ValueError(
            f"eval_args.split is {split}; {model} trains on whole histories and needs {{'LS': 'valid_and_test'}}"
        )
    if order != "TO":
        raise ValueError(f"eval_args.order is {order!r}; {model} needs histories in the order of time: TO")
    if config["transform"] is not None:
        raise ValueError(
            f"transform is {config['transform']!r}, and {model} does not use it: it draws its own masks (views, mask_ratio, "
            "pretrain_masks); leave the property out"
        )
