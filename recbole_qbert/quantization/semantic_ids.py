"""Semantic IDs: codes in memory, ``<a_2> <b_3> <c_1> <d_6>`` in a ``.sid`` file (paper 3.4), and their statistics."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.data.item_features import check_token
from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.utils.failures import reading
from recbole_qbert.utils.io import atomic_write, read_json, sha256, write_json

HEADER = "item_id:token\tsemantic_id:token_seq"
LARGEST = int(np.iinfo(np.int16).max)
_TOKEN = re.compile(r"<([A-Za-z]+)_(\d{1,9})>")


@dataclass(frozen=True)
class SemanticIDs:
    """Semantic IDs of a catalog.

    Attributes:
        items: ``N`` item tokens.
        codes: ``[N, K]`` int16; -1 at the levels of a modality that the item does not have.
        prefixes: ``K`` level names: ``a``-``z`` for the first code set (fused, or text), ``A``-``Z`` for the second (image),
            ``aa``, ``ba``, … for the third and so on, so that no two levels share a token.
        size: ``M``, codes a level.
        vocabulary: hash of the quantizer that made the IDs, '' if unknown. An ID means the same in all data sets of one
            vocabulary.
    """

    items: tuple[str, ...]
    codes: np.ndarray
    prefixes: tuple[str, ...]
    size: int
    vocabulary: str = ""

    def tokens(self, row: int) -> list[str]:
        """List the tokens of one item's ID; levels it does not have are left out."""
        return [f"<{p}_{c}>" for p, c in zip(self.prefixes, self.codes[row], strict=True) if c >= 0]

    def text(self, row: int) -> str:
        """Format one item's ID as in the paper: ``<a_2><b_3><c_1><d_6>``."""
        return "".join(self.tokens(row))

    def save(self, path: Path, **details: Any) -> None:
        """Write the ``.sid`` atomic file, and ``.sid.json`` with level names, size and vocabulary; both atomically.

        The earlier ``.sid.json`` is removed first, so that an interruption leaves none that is of another file.

        Args:
            path: the ``.sid`` file.
            details: more to write into ``.sid.json``.
        """
        details_path(path).unlink(missing_ok=True)
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(HEADER + "\n")
            for row, item in enumerate(self.items):
                handle.write(f"{item}\t{' '.join(self.tokens(row))}\n")
        details |= {"prefixes": self.prefixes, "codes_per_level": self.size, "vocabulary": self.vocabulary}
        write_json(details_path(path), {**details, "sha256": sha256(path)})

    def of_domain(self, domain: str) -> SemanticIDs:
        """Select the IDs of one data set of a union, under the item tokens of that data set."""
        rows = [row for row, item in enumerate(self.items) if item.partition("/")[0] == domain]
        items = tuple(self.items[row].partition("/")[2] for row in rows)
        return replace(self, items=items, codes=self.codes[rows])

    def aligned(self, items: Sequence[str], source: str) -> np.ndarray:
        """Look up the codes of items.

        Args:
            items: item tokens.
            source: name of these IDs in an error.

        Returns:
            ``[len(items), K]`` int16, in the order of ``items``.

        Raises:
            ValueError: an item has no ID.
        """
        rows = ItemVocabulary(self.items).rows(items)
        missing = [item for item, row in zip(items, rows, strict=True) if row < 0]
        if missing:
            share = len(missing) / len(items)
            hint = "it belongs to another data set" if share > 0.5 else "it is older than the data"
            raise ValueError(
                f"{source} has no semantic ID for {len(missing)} of {len(items)} items (first: {', '.join(missing[:3])}): "
                f"{hint}; remove or rebuild it, or point semantic_id_file to the right one"
            )
        return self.codes[rows]


def prefixes_of(levels: int, code_set: int) -> tuple[str, ...]:
    """Name the levels of a code set.

    Args:
        levels: number of levels.
        code_set: number of the code set, from 0.

    Raises:
        ValueError: more than 26 levels.
    """
    if not 1 <= levels <= 26:
        raise ValueError(f"{levels} levels; an ID has 1 to 26, one letter each")
    letters = string.ascii_lowercase[:levels]
    if code_set < 2:
        return tuple(letters.upper() if code_set else letters)
    return tuple(letter + string.ascii_lowercase[code_set - 2] for letter in letters)


def load(path: Path, size: int | None = None) -> SemanticIDs:
    """Read a ``.sid`` file.

    Args:
        path: the file.
        size: codes a level; when ``None``, from the file beside it, or from the largest code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a bad header, a malformed or repeated row, a code of ``size`` or more, or two items with the same ID.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; build it with 'run_recbole_qbert.py quantize'")
    rows: dict[str, dict[str, int]] = {}
    levels: dict[str, None] = {}
    with reading(path), open(path, encoding="utf-8") as handle:
        header = handle.readline().rstrip("\r\n")
        if header != HEADER:
            raise ValueError(f"{path}:1: header is {header!r}; it must be {HEADER!r}")
        for number, line in enumerate(handle, 2):
            item, code = _parse(line.rstrip("\r\n"), f"{path}:{number}")
            if item in rows:
                raise ValueError(f"{path}:{number}: item {item!r} has an ID already")
            rows[item] = code
            levels.update(dict.fromkeys(code))
    details = read_details(path)
    order = details.get("prefixes") or sorted(levels, key=_level_order)
    size = size or details.get("codes_per_level")
    codes = np.array([[code.get(level, -1) for level in order] for code in rows.values()], dtype=np.int16)
    largest = int(codes.max(initial=0))
    if size is not None and largest >= size:
        raise ValueError(f"{path} has code {largest}, but codes end at {size - 1}; set rq_codes to {largest + 1} or more")
    codes = codes.reshape(len(rows), len(order))
    ids = SemanticIDs(tuple(rows), codes, tuple(order), size or largest + 1, details.get("vocabulary", ""))
    require_unique(ids, str(path))
    return ids


def details_path(path: Path) -> Path:
    """Return the path of the ``.sid.json`` file of a ``.sid`` file."""
    return path.with_name(f"{path.name}.json")


def read_details(path: Path) -> dict[str, Any]:
    """Read what ``SemanticIDs.save`` wrote beside a ``.sid`` file; empty if there is nothing.

    Raises:
        ValueError: the file is not the one that was written.
    """
    beside = details_path(path)
    if not beside.exists():
        return {}
    way_out = f"build the IDs again, or remove {beside} if you changed them on purpose"
    details = read_json(beside, way_out)
    if details.get("sha256") != sha256(path):
        raise ValueError(f"{path} is not the file that {beside.name} beside it describes: {way_out}")
    for key, kind in (("prefixes", list), ("codes_per_level", int), ("vocabulary", str)):
        if not isinstance(details.get(key), kind):
            raise ValueError(f"{beside} has no {key}, or one of another type: {way_out}")
    return details


def require_unique(ids: SemanticIDs, source: str) -> None:
    """Check that no two items share an ID: a ranker could not tell these items apart.

    Args:
        ids: the IDs.
        source: name of these IDs in an error.

    Raises:
        ValueError: two items share an ID; names them and the ID.
    """
    seen: dict[bytes, int] = {}
    for row, code in enumerate(ids.codes):
        first = seen.setdefault(code.tobytes(), row)
        if first != row:
            if (code < 0).all():
                raise ValueError(f"{source}: items {ids.items[first]} and {ids.items[row]} have no codes; give each an ID")
            raise ValueError(
                f"{source}: items {ids.items[first]} and {ids.items[row]} share the semantic ID {ids.text(row)}; "
                "rebuild it with 'run_recbole_qbert.py quantize', which ends with unique IDs"
            )


def health(before: np.ndarray, after: np.ndarray, size: int, prefixes: Sequence[str]) -> dict[str, Any]:
    """Compute the statistics of one code set.

    Args:
        before: ``[N, K]`` codes before reallocation; -1 is no code.
        after: ``[N, K]`` codes after reallocation.
        size: ``M``.
        prefixes: ``K`` level names.

    Returns:
        Number of items, distinct IDs before and after, collision rate (share of items that share their ID) before and after,
        moved items, and for each level the share of codes in use and the perplexity of the final codes.
    """
    level_codes = [column[column >= 0] for column in after.T]
    return {
        "levels": list(prefixes),
        "codes_per_level": size,
        "items": len(after),
        "unique_before": len(np.unique(before, axis=0)),
        "unique": len(np.unique(after, axis=0)),
        "collision_rate_before": _collision_rate(before),
        "collision_rate": _collision_rate(after),
        "moved": int((before != after).any(1).sum()),
        "usage_per_level": [len(np.unique(codes)) / size for codes in level_codes],
        "perplexity_per_level": [_perplexity(codes) for codes in level_codes],
    }


def _collision_rate(codes: np.ndarray) -> float:
    _, number, count = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return float((count[number.ravel()] > 1).mean()) if len(codes) else 0.0


def _perplexity(codes: np.ndarray) -> float:
    share = np.unique(codes, return_counts=True)[1] / max(len(codes), 1)
    return math.exp(-float((share * np.log(share)).sum()))


def _parse(line: str, where: str) -> tuple[str, dict[str, int]]:
    item, tab, tokens = line.partition("\t")
    if not tab:
        raise ValueError(f"{where}: no tab in {line!r}; a row is an item token, a tab, and the ID's tokens")
    check_token(item, where)
    code: dict[str, int] = {}
    for token in tokens.split():
        match = _TOKEN.fullmatch(token)
        if not match or match[1] in code:
            raise ValueError(f"{where}: {token!r} is not a code token like <a_2> of a new level")
        code[match[1]] = int(match[2])
        if code[match[1]] > LARGEST:
            raise ValueError(f"{where}: {token!r} is beyond the largest code, {LARGEST}")
    return item, code


def _level_order(level: str) -> tuple[int, str, str]:
    if len(level) > 1:
        return 2, level[1:], level[0]
    return int(level.isupper()), "", level
