"""Histories read from files: RecBole ``.inter``, ``.tsv``, ``.csv`` or ``.parquet``.

A file has one row for each interaction, with the columns ``user_id``, ``item_id`` and optionally ``timestamp``; or one row
for each history, with the columns ``history`` (a list in parquet, otherwise item tokens separated by spaces) and optionally
``user_id``. RecBole's types behind a colon are ignored. A data set whose fields have other names (``AtomicFormat``) may have
them here, too, and its ``.inter`` file is read in its separator and encoding.
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

from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat, real_encoding

SUFFIXES = (".inter", ".tsv", ".csv", ".parquet")
PYARROW = "pip install 'pyarrow<22'"
USUAL = RECBOLE_FORMAT.fields
BATCH = 65_536  # rows of a parquet file in memory at a time


class Histories:
    """Iterate over the histories of a file; each iteration reads the file from the start.

    Items are sorted by time, and by their order in the file where times are equal or missing. Users are in the order of
    their first row.

    Memory: a file with one row a history, or in which each user's rows are consecutive, is streamed; checking this takes
    about 30 bytes a user. Otherwise all interactions are loaded as numbers: about 30 bytes an interaction and 200 a user.

    Args:
        path: the file.
        form: names of the columns, besides the usual ones; encoding of a text file; separator of an ``.inter`` file.

    Attributes:
        count: number of histories.
        grouped: whether each user's rows are consecutive.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: another suffix, missing columns, a row with a wrong number of fields, or a parquet file without pyarrow.
            Ids and times are checked while iterating.
    """

    def __init__(self, path: Path, form: AtomicFormat = RECBOLE_FORMAT) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; it should hold histories, as {', '.join(SUFFIXES)}")
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} ends in {path.suffix!r}; histories are read from {', '.join(SUFFIXES)}")
        self.path, self.form = path, form
        names = self._column_names()
        user, item, time = (own if own in names else usual for own, usual in zip(form.fields, USUAL, strict=True))
        self._is_history_file = "history" in names
        columns = (user, "history") if self._is_history_file else (user, item, time)
        needed = columns[1:] if self._is_history_file else columns[:2]
        if not set(needed) <= set(names):
            raise ValueError(
                f"{path}:1: columns are {', '.join(names)}; histories need {' and '.join(form.fields[:2])} (and "
                f"{form.time_field}, if the rows are not in the order of time), or history"
            )
        self._names = names
        # Index of each column, None where the file does not have it.
        self._column_numbers = [names.index(name) if name in names else None for name in columns]
        self.count, self.grouped = self._survey()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        """Yield ``(user, item tokens, oldest first)``; without users, the user is the number of the history, from 1."""
        if self._is_history_file:
            for number, (where, (user, history)) in enumerate(self._rows(), 1):
                yield str(number) if user is None else str(user), _tokens(history, where)
        elif self.grouped:
            for user, rows in groupby(self._interactions(), key=lambda row: row[0]):
                yield user, [item for _, item, _ in sorted(rows, key=lambda row: row[2])]
        else:
            yield from self._regrouped()

    def _survey(self) -> tuple[int, bool]:
        """Count the histories, and tell whether they can be streamed."""
        if self._is_history_file:
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
            yield str(user), str(item), 0.0 if self._column_numbers[2] is None else _time(time, where)

    def _regrouped(self) -> Iterator[tuple[str, list[str]]]:
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        user_numbers, item_numbers, times = array("i"), array("i"), array("d")
        for user, item, time in self._interactions():
            user_numbers.append(users.setdefault(user, len(users)))
            item_numbers.append(items.setdefault(item, len(items)))
            times.append(time)
        owner = np.frombuffer(user_numbers, dtype=np.int32)
        order = np.lexsort((np.frombuffer(times), owner))  # stable: ties in the order of the file
        ends = np.bincount(owner).cumsum()
        rows, tokens, start = np.frombuffer(item_numbers, dtype=np.int32), list(items), 0
        for user, end in zip(users, ends.tolist(), strict=True):
            yield user, [tokens[row] for row in rows[order[start:end]].tolist()]
            start = end

    def _column_names(self) -> list[str]:
        if self.path.suffix == ".parquet":
            return [name.split(":")[0] for name in _parquet(self.path).schema_arrow.names]
        if self.path.suffix == ".inter":
            return list(self.form.header(self.path).names)
        header = next(iter(self._lines()), (0, [""]))[1]
        return [name.strip().split(":")[0] for name in header]

    def _rows(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield ``(file and line, values of the columns)``; ``None`` for a column that the file does not have."""
        if self.path.suffix in (".parquet", ".inter"):
            yield from self._parquet_rows() if self.path.suffix == ".parquet" else self._atomic_rows()
            return
        width = None
        for number, fields in self._lines():
            if width is None:
                width = len(fields)
                continue
            if len(fields) != width:
                raise ValueError(f"{self.path}:{number}: {len(fields)} fields where the header has {width}")
            yield f"{self.path}:{number}", [None if column is None else fields[column] for column in self._column_numbers]

    def _atomic_rows(self) -> Iterator[tuple[str, list[Any]]]:
        names = [None if number is None else self._names[number] for number in self._column_numbers]
        there = [name for name in names if name is not None]
        for line, cells in self.form.rows(self.path, there):
            given = dict(zip(there, cells, strict=True))
            yield f"{self.path}:{line}", [None if name is None else given[name] for name in names]

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Yield line number and fields of every line that is not blank."""
        encoding = real_encoding(self.path, self.form.encoding)
        with open(self.path, encoding=encoding, newline="" if self.path.suffix == ".csv" else None) as handle:
            try:
                if self.path.suffix == ".csv":
                    reader = csv.reader(handle)
                    yield from ((reader.line_num, fields) for fields in reader if fields)
                else:
                    for number, line in enumerate(handle, 1):
                        if text := line.rstrip("\n"):
                            yield number, text.split("\t")
            except (csv.Error, UnicodeError) as error:
                encoding = self.form.encoding.upper()
                raise ValueError(f"{self.path} cannot be read as a table in {encoding}: {error}") from error

    def _parquet_rows(self) -> Iterator[tuple[str, list[Any]]]:
        file = _parquet(self.path)
        names = file.schema_arrow.names
        columns = [names[column] for column in self._column_numbers if column is not None]
        number = 0
        for batch in self._batches(file, columns):
            lists = {name: batch.column(name).to_pylist() for name in columns}
            empty = [None] * batch.num_rows
            for values in zip(*(empty if c is None else lists[names[c]] for c in self._column_numbers), strict=True):
                number += 1
                yield f"{self.path}, row {number}", list(values)

    def _batches(self, file: Any, columns: list[str]) -> Iterator[Any]:
        try:
            yield from file.iter_batches(BATCH, columns=columns)
        except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
            raise ValueError(f"{self.path} is damaged: {error}; make or fetch it again") from error


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(f"{path} is a parquet file, and reading it requires pyarrow ({error}): {PYARROW}") from None
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a parquet file, or is damaged: {error}") from error


def _tokens(history: Any, where: str) -> list[str]:
    if history is None or isinstance(history, str):
        return (history or "").split()
    if not isinstance(history, list):
        raise ValueError(f"{where}: history is {history!r}; it must be a list of item tokens, or tokens separated by spaces")
    return [str(item) for item in history]


def _time(value: Any, where: str) -> float:
    try:
        time = float(value)
    except (TypeError, ValueError):
        time = math.nan
    if math.isnan(time):
        raise ValueError(f"{where}: timestamp is {value!r}; it must be a number")
    return time
