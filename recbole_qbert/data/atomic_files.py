"""RecBole's atomic files: the columns that the header names, and the rows by column name.

An atomic file is a table of text. Its first line names the columns as ``name:type``. RecBole reads the other lines with
pandas'
Python engine, that is with the ``csv`` module: quotes around a cell are removed, blank lines are skipped, and a cell of more
than 131,072 characters is refused. This module reads with ``csv`` as well, so that its cells are RecBole's cells. Whether a
cell is a word that pandas takes for a missing value (``NA``) is left to the caller.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_qbert.utils.spelling import did_you_mean

TYPES = ("token", "token_seq", "float", "float_seq")
FIELD_SEPARATOR = "\t"  # RecBole's defaults of field_separator and encoding
ENCODING = "utf-8"


@dataclass(frozen=True)
class AtomicFormat:
    """How atomic files are written, as RecBole's properties of the same meaning say; the defaults are RecBole's.

    Attributes:
        field_separator: between the columns of a row.
        seq_separator: between the parts of a ``token_seq`` or ``float_seq`` cell.
        encoding: of the text.
        user_field: name of the column of users (``USER_ID_FIELD``).
        item_field: name of the column of items (``ITEM_ID_FIELD``).
        time_field: name of the column of times (``TIME_FIELD``).
    """

    field_separator: str = FIELD_SEPARATOR
    seq_separator: str = " "
    encoding: str = ENCODING
    user_field: str = "user_id"
    item_field: str = "item_id"
    time_field: str = "timestamp"

    @classmethod
    def from_config(cls, config: Any) -> AtomicFormat:
        """Read the format from RecBole's configuration or any mapping of its keys; absent keys keep the defaults."""
        keys = ("field_separator", "seq_separator", "encoding", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")
        given = [config[key] if key in config else None for key in keys]  # noqa: SIM401  RecBole's Config has no get
        return cls(**{name: v for name, v in zip(cls.__dataclass_fields__, given, strict=True) if v is not None})


@dataclass(frozen=True)
class Column:
    """One column of an atomic file.

    Attributes:
        name: text before the first colon.
        type: text behind it: one of `TYPES` in a sound file, empty where there is no colon.
    """

    name: str
    type: str = ""


@dataclass(frozen=True)
class Header:
    """The columns of an atomic file, in their order.

    Attributes:
        path: the file, for errors.
        columns: all columns; of two with the same name, lookups take the first.
    """

    path: Path
    columns: tuple[Column, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, without their types."""
        return tuple(column.name for column in self.columns)

    def positions(self, names: Sequence[str]) -> list[int]:
        """Return the position of each named column.

        Raises:
            ValueError: a column is missing.
        """
        missing = [name for name in names if name not in self.names]
        if missing:
            hint = did_you_mean(missing[0], self.names)
            columns = ", ".join(self.names) or "nothing"
            raise ValueError(f"{self.path}:1: no column {', '.join(missing)}{hint}; the header names {columns}")
        return [self.names.index(name) for name in names]


def parse_columns(line: str, separator: str = FIELD_SEPARATOR) -> tuple[Column, ...]:
    r"""Split a header line into columns; a byte order mark and the line end are ignored.

    >>> parse_columns("item_id:token\tprice\n")
    (Column(name='item_id', type='token'), Column(name='price', type=''))
    """
    cells = line.removeprefix("\ufeff").rstrip("\r\n").split(separator)
    return tuple(Column(*cell.split(":", 1)) for cell in cells if cell or len(cells) > 1)


def read_header(path: Path, *, separator: str = FIELD_SEPARATOR, encoding: str = ENCODING) -> Header:
    """Read the columns that the first line names.

    Args:
        path: an atomic file.
        separator: RecBole's ``field_separator``.
        encoding: RecBole's ``encoding``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text in this encoding.
    """
    with open(path, encoding=encoding, newline="") as handle:
        try:
            return Header(path, parse_columns(handle.readline(), separator))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:1: {error}; give the encoding of the file, or convert it to {encoding}") from error


def read_rows(
    path: Path, columns: Sequence[str], *, pad: bool = False, separator: str = FIELD_SEPARATOR, encoding: str = ENCODING
) -> Iterator[tuple[int, list[str]]]:
    """Read some columns row by row; only one row is in memory at a time.

    Args:
        path: an atomic file.
        columns: names of the columns wanted.
        pad: fill a row that ends early with empty cells, as RecBole does; otherwise it is an error.
        separator: RecBole's ``field_separator``.
        encoding: RecBole's ``encoding``.

    Yields:
        Number of the line on which the row ends, and the row's cells in the order of ``columns``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing; a row has more or fewer cells than the header; quotes do not match; a cell is
            longer than ``csv`` accepts; the file is not text in this encoding.
    """
    header = read_header(path, separator=separator, encoding=encoding)
    positions, width = header.positions(columns), len(header.columns)
    with open(path, encoding=encoding, newline="") as handle:
        rows = csv.reader(handle, delimiter=separator, strict=True)  # as in pandas' Python engine
        try:
            next(rows, None)
            for cells in rows:
                if len(cells) < 2 and not "".join(cells).strip():
                    continue
                if len(cells) > width or (len(cells) < width and not pad):
                    raise ValueError(f"{path}:{rows.line_num}: {len(cells)} cells, but the header names {width} columns")
                cells += [""] * (width - len(cells))
                yield rows.line_num, [cells[position] for position in positions]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{rows.line_num + 1}: {error}; convert the file to {encoding}") from error
        except csv.Error as error:
            raise ValueError(
                f"{path}:{rows.line_num}: {error}; RecBole cannot read the file either, 'doctor' explains"
            ) from error
