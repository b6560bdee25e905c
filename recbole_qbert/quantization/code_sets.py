"""Semantic IDs by code set: the codes of the text, those of the image, each a language of its own for a generative model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recbole_qbert.data.item_features import check_token
from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.quantization.collision_resolution import append_digit
from recbole_qbert.quantization.semantic_ids import LARGEST, SemanticIDs
from recbole_qbert.utils.failures import reading

NAMES = ("text", "image")  # of the code sets in the order of their letters: a-z, A-Z


@dataclass(frozen=True)
class CodeSet:
    """The codes of one modality.

    Attributes:
        name: ``text``, ``image``, ``fused``, ...
        codes: ``[N, K]`` int64; -1 at all levels of an item without the modality.
        sizes: ``K`` numbers, codes a level.
    """

    name: str
    codes: np.ndarray
    sizes: tuple[int, ...]

    def shared(self) -> int:
        """Count the items that share their codes with another item."""
        described = self.codes[(self.codes >= 0).all(1)]
        count = np.unique(described, axis=0, return_counts=True)[1]
        return int(count[count > 1].sum())

    def with_digit(self, items: Sequence[str]) -> CodeSet:
        """Append a level that counts the items of an ID (``append_digit``)."""
        described = np.flatnonzero((self.codes >= 0).all(1))
        codes = np.pad(self.codes, ((0, 0), (0, 1)), constant_values=-1)
        codes[described] = append_digit(self.codes[described], [items[row] for row in described])
        return replace(self, codes=codes, sizes=(*self.sizes, int(codes[:, -1].max(initial=0)) + 1))


def split(ids: SemanticIDs, items: Sequence[str], source: str) -> list[CodeSet]:
    """Split semantic IDs into their code sets, in the order of their letters.

    Args:
        ids: the IDs.
        items: ``N`` item tokens, whose order the codes get.
        source: name of these IDs in an error.

    Raises:
        ValueError: an item has no ID, or a part of a code set.
    """
    codes = ids.aligned(items, source).astype(np.int64)
    kinds = [_kind(prefix) for prefix in ids.prefixes]
    sets = []
    for kind in dict.fromkeys(kinds):
        columns = [column for column, own in enumerate(kinds) if own == kind]
        part = codes[:, columns]
        partial = (part >= 0).any(1) & (part < 0).any(1)
        if partial.any():
            item = items[int(np.flatnonzero(partial)[0])]
            raise ValueError(f"{source}: item {item} has only some codes of its levels {ids.prefixes[columns[0]]} and on")
        name = NAMES[kind] if kind < len(NAMES) else f"code set {kind + 1}"
        sets.append(CodeSet(name, part, tuple(max(ids.size, int(part[:, k].max()) + 1) for k in range(len(columns)))))
    return sets


def read_table(path: Path, name: str, items: Sequence[str]) -> CodeSet:
    """Read the codes of a modality from a table ``item_id, code_0, code_1, ...``, separated by tabs.

    Args:
        path: the file.
        name: name of the code set.
        items: ``N`` item tokens, whose order the codes get; items without a line get -1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, an item stands there twice, or none of the items does.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it should hold the {name} codes of the items, one item a line")
    with reading(path), open(path, encoding="utf-8") as handle:
        header = handle.readline().rstrip("\r\n").split("\t")
        if header[:1] != ["item_id"] or len(header) < 2:
            raise ValueError(f"{path}:1: the header must be item_id and a column for each level, separated by tabs")
        codes_of: dict[str, list[int]] = {}
        for number, line in enumerate(handle, 2):
            item, *cells = line.rstrip("\r\n").split("\t")
            check_token(item, f"{path}:{number}")
            if len(cells) != len(header) - 1 or not all(cell.isdecimal() and int(cell) <= LARGEST for cell in cells):
                raise ValueError(f"{path}:{number}: {line.rstrip()[:80]!r} is not an item and {len(header) - 1} codes")
            if item in codes_of:
                raise ValueError(f"{path}:{number}: item {item!r} has codes already")
            codes_of[item] = [int(cell) for cell in cells]
    table = np.array(list(codes_of.values()), dtype=np.int64).reshape(len(codes_of), len(header) - 1)
    rows = ItemVocabulary(tuple(codes_of)).rows(items)
    if not len(rows) or (rows < 0).all():
        raise ValueError(f"{path} has codes of none of the {len(items)} items; it belongs to another data set")
    codes = np.full((len(items), table.shape[1]), -1, dtype=np.int64)
    codes[rows >= 0] = table[rows[rows >= 0]]
    return CodeSet(name, codes, tuple((table.max(0) + 1).tolist()))


def _kind(prefix: str) -> int:
    """Return the number of the code set that a level's name belongs to (``semantic_ids.prefixes_of``)."""
    return ord(prefix[1]) - ord("a") + 2 if len(prefix) > 1 else int(prefix.isupper())
