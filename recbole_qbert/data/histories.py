"""Histories in files: RecBole ``.inter``, ``.tsv``, ``.csv`` or ``.parquet``, one user after the other.

Columns, with or without RecBole's types behind a colon: ``user_id``, ``item_id`` and perhaps ``timestamp``, a row for each
interaction; or ``history`` (a list in parquet, else item tokens with spaces between) and perhaps ``user_id``, a row for each
history.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

ENDINGS = (".inter", ".tsv", ".csv", ".parquet")
PYARROW = "pip install 'pyarrow<22'"
BATCH = 65_536  # rows of a parquet file held at a time


class Histories:
    """The histories of a file; each iteration reads it from the start.

    Items are in the order of their time (of the file, where times are equal or there are none). Users come in the order of
    their first row.

    Memory: a file with a history a row, or in which the rows of every user stand together, is streamed; finding that out
    takes about 30 bytes a user. Where they do not stand together, all interactions are held as numbers: about 30 bytes an
    interaction and 200 a user.

    Args:
        path: the file.

    Attributes:
        count: how many there are.
        grouped: whether the rows of every user stand together.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, columns that are not known, a row that is no row, or a parquet file without pyarrow. Ids
            and times are read, and refused, when it comes to them.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; it should hold histories, as {', '.join(ENDINGS)}")
        if path.suffix not in ENDINGS:
            raise ValueError(f"{path} ends in {path.suffix!r}; histories are read from {', '.join(ENDINGS)}")
        self.path = path
        names = self._names()
        self.whole = "history" in names
        wanted = ("user_id", "history") if self.whole else ("user_id", "item_id", "timestamp")
        needed = wanted[1:] if self.whole else wanted[:2]
        if not set(needed) <= set(names):
            raise ValueError(
                f"{path}:1: columns are {', '.join(names)}; histories need user_id and item_id (and timestamp, if the rows "
                "are not in the order of time), or history"
            )
        # Place of each wanted column, None where the file does without.
        self._places = [names.index(name) if name in names else None for name in wanted]
        self.count, self.grouped = self._survey()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """``(user, item tokens, oldest first)``; without users the number of the history, from 1, stands for them."""
        if self.whole:
            for number, (where, (user, history)) in enumerate(self._rows(), 1):
                yield str(number) if user is None else str(user), _tokens(history, where)
        elif self.grouped:
            for user, rows in groupby(self._interactions(), key=lambda row: row[0]):
                yield user, [item for _, item, _ in sorted(rows, key=lambda row: row[2])]
        else:
            yield from self._gathered()

    def _survey(self) -> tuple[int, bool]:
        """Number of histories, and whether they can be streamed."""
        if self.whole:
            return sum(1 for _ in self._rows()), True
        starts, last = array("q"), None
        for _, (user, _, _) in self._rows():
            if user != last:
                starts.append(hash(str(user)))
                last = user
        users = len(np.unique(np.frombuffer(starts, dtype=np.int64)))
        return users, users == len(starts)

    def _interactions(self) -> Iterator[tuple[str, str, float]]:
        for where, (user, item, time) in self._rows():
            if user in ("", None) or item in ("", None):
                raise ValueError(f"{where}: {'user_id' if user in ('', None) else 'item_id'} is empty")
            yield str(user), str(item), 0.0 if self._places[2] is None else _time(time, where)

    def _gathered(self) -> Iterator[tuple[str, list[str]]]:
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        owner, what, when = array("i"), array("i"), array("d")
        for user, item, time in self._interactions():
            owner.append(users.setdefault(user, len(users)))
            what.append(items.setdefault(item, len(items)))
            when.append(time)
        order = np.lexsort((np.frombuffer(when), np.frombuffer(owner, dtype=np.int32)))  # stable: ties as in the file
        ends = np.bincount(np.frombuffer(owner, dtype=np.int32)).cumsum()
        rows, tokens, start = np.frombuffer(what, dtype=np.int32), list(items), 0
        for user, end in zip(users, ends.tolist(), strict=True):
            yield user, [tokens[row] for row in rows[order[start:end]].tolist()]
            start = end

    # --------------------------------------------------------------------------------------------------------- files
    def _names(self) -> list[str]:
        if self.path.suffix == ".parquet":
            return [name.split(":")[0] for name in _parquet(self.path).schema_arrow.names]
        header = next(iter(self._lines()), (0, [""]))[1]
        return [name.strip().split(":")[0] for name in header]

    def _rows(self) -> Iterator[tuple[str, list[Any]]]:
        """``(where, values of the wanted columns)``; ``None`` for a column that the file does without."""
        if self.path.suffix == ".parquet":
            yield from self._parquet_rows()
            return
        width = None
        for number, cells in self._lines():
            if width is None:
                width = len(cells)
                continue
            if len(cells) != width:
                raise ValueError(f"{self.path}:{number}: {len(cells)} fields where the header has {width}")
            yield f"{self.path}:{number}", [None if place is None else cells[place] for place in self._places]

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and cells of every line that is not blank."""
        with open(self.path, encoding="utf-8-sig", newline="" if self.path.suffix == ".csv" else None) as handle:
            try:
                if self.path.suffix == ".csv":
                    reader = csv.reader(handle)
                    yield from ((reader.line_num, cells) for cells in reader if cells)
                else:
                    for number, line in enumerate(handle, 1):
                        if text := line.rstrip("\n"):
                            yield number, text.split("\t")
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{self.path} is not a text file in UTF-8 with a cell a field: {error}") from error

    def _parquet_rows(self) -> Iterator[tuple[str, list[Any]]]:
        file = _parquet(self.path)
        names = file.schema_arrow.names
        wanted = [names[place] for place in self._places if place is not None]
        number = 0
        for batch in file.iter_batches(BATCH, columns=wanted):
            columns = {name: batch.column(name).to_pylist() for name in wanted}
            nothing = [None] * batch.num_rows
            for values in zip(*(nothing if p is None else columns[names[p]] for p in self._places), strict=True):
                number += 1
                yield f"{self.path}, row {number}", list(values)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"{path} is a parquet file, and reading it takes pyarrow ({error}): {PYARROW}") from None
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no parquet file, or damaged: {error}") from error


def _tokens(history: Any, where: str) -> list[str]:
    if history is None or isinstance(history, str):
        return (history or "").split()
    if not isinstance(history, list):
        raise ValueError(f"{where}: history is {history!r}; it must be a list of item tokens, or tokens with spaces between")
    return [str(item) for item in history]


def _time(value: Any, where: str) -> float:
    try:
        time = float(value)
    except (TypeError, ValueError):
        time = math.nan
    if math.isnan(time):
        raise ValueError(f"{where}: timestamp is {value!r}; it must be a number")
    return time
