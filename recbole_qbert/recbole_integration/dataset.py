"""RecBole data set with one row a user for training, and RecBole's own rows for validation and test.

RecBole makes one training row of every prefix of every history. The model learns from all positions of a history at once,
so a history is one row here: about six times fewer rows on Amazon data, built by one gather instead of a Python loop.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_qbert.data.item_features import READ_AS_MISSING, check_token


class QBERT4RecDataset(SequentialDataset):  # type: ignore[misc]
    """Leave-one-out per user, as RecBole's ``LS: valid_and_test``.

    Training rows hold the whole training history (the newest ``MAX_ITEM_LIST_LENGTH + 1`` items) in the item list, the
    last of them in the target field too. Validation and test rows are those of ``SequentialDataset``.
    """

    inter_feat: Any
    histories: list[np.ndarray]

    def __init__(self, config: Any) -> None:
        inter = Path(config["data_path"]) / f"{config['dataset']}.inter"
        if inter.exists():
            refuse_lost_ids(inter, config["field_separator"], (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]))
        super().__init__(config)

    def data_augmentation(self) -> None:
        """Replace RecBole's prefix rows.

        Raises:
            ValueError: another split than ``LS: valid_and_test`` is asked for.
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
        # RecBole splits the n - 1 prefix rows of a user: with 2 of them the second is a test row, with 1 it is training.
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

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[QBERT4RecDataset]:
        """The three parts that ``data_augmentation`` made."""
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
        """How often each item is a training target, as RecBole counts over its prefix rows (popularity metrics)."""
        targets = [history[1:] for history in self.histories]
        return Counter(np.concatenate(targets).tolist() if targets else [])

    def item_tokens(self) -> tuple[str, ...]:
        """Item tokens by internal id, without the padding at 0."""
        return tuple(str(token) for token in self.field2id_token[self.iid_field][1:])

    def _rows(self, start: Tensor, length: Tensor, target: Tensor, width: int) -> Interaction:
        """One row a user: the newest ``width`` of ``length`` interactions from ``start`` on, and the one at ``target``."""
        kept = length.clamp(max=width)
        position = torch.arange(width)
        real = position < kept[:, None]
        source = torch.where(real, (start + length - kept)[:, None] + position, 0)
        rows = {self.item_list_length_field: kept}
        for field in self.inter_feat:
            value = self.inter_feat[field]
            rows[field] = value[start + target]
            if field != self.uid_field:
                shape = real.shape + (1,) * (value.dim() - 1)
                rows[getattr(self, f"{field}_list_field")] = torch.where(real.view(shape), value[source], 0).to(value.dtype)
        return Interaction(rows)


def refuse_lost_ids(path: Path, separator: str, fields: tuple[str, ...]) -> None:
    """Refuse an atomic file with user or item ids that RecBole would drop without a word.

    Args:
        path: the ``.inter`` file.
        separator: between columns.
        fields: names of the id columns.

    Raises:
        ValueError: names the file, the line and the id.
    """
    with open(path, encoding="utf-8") as handle:
        header = [name.split(":")[0] for name in handle.readline().rstrip("\n").split(separator)]
        columns = [(header.index(field), field) for field in fields if field in header]
        for number, line in enumerate(handle, 2):
            cells = line.rstrip("\n").split(separator)
            for column, field in columns:
                if column < len(cells) and cells[column] in READ_AS_MISSING:
                    check_token(cells[column], f"{path}:{number}", field)
