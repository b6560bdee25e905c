"""RecBole's atomic files: the columns that the header names, and the rows by column name.

An atomic file is a table of text. Its first line names the columns as ``name:type``. RecBole reads the other lines with
pandas' Python engine, that is with the ``csv`` module: quotes around a cell are removed, blank lines are skipped, and a cell
of more than 131,072 characters is refused. This module reads with ``csv`` as well, so that its cells are RecBole's cells.
Whether a cell is a word that pandas takes for a missing value (``NA``) is left to the caller.

:class:`AtomicFormat` holds RecBole's properties on the files; its methods read a file that is written so.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from recbole_qbert.utils.spelling import did_you_mean

TYPES = ("token", "token_seq", "float", "float_seq")
FIELD_SEPARATOR = "\t"  # RecBole's defaults of field_separator and encoding
ENCODING = "utf-8"
#: Properties of RecBole that say how atomic files are written, in the order of `AtomicFormat`'s attributes.
FORMAT_PROPERTIES = ("field_separator", "seq_separator", "encoding", "USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")
#: Encodings without a byte order mark -> mark, and the encoding that reads it as what it is.
_MARKED = {
    "utf-8": (codecs.BOM_UTF8, "utf-8-sig"),
    "utf-16-le": (codecs.BOM_UTF16_LE, "utf-16"),
    "utf-16-be": (codecs.BOM_UTF16_BE, "utf-16"),
    "utf-32-le": (codecs.BOM_UTF32_LE, "utf-32"),
    "utf-32-be": (codecs.BOM_UTF32_BE, "utf-32"),
}


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

    def __post_init__(self) -> None:
        if len(self.field_separator) != 1 or self.field_separator in '"\r\n':
            raise ValueError(f"field_separator is {self.field_separator!r}; it must be one character (default: a tab)")
        if not self.seq_separator:
            raise ValueError("seq_separator is empty; it must stand between the parts of a list (default: a space)")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding is {self.encoding!r}, which Python does not know; name the one of the files, such as utf-8, "
                "latin-1, cp1252 or utf-16"
            ) from None

    @classmethod
    def from_config(cls, config: Any) -> AtomicFormat:
        """Read the format from RecBole's configuration or any mapping of its keys; absent keys keep the defaults.

        Raises:
            ValueError: a value cannot be used.
        """
        given = [config[key] if key in config else None for key in FORMAT_PROPERTIES]  # noqa: SIM401  Config has no get
        return cls(**{n: str(v) for n, v in zip(cls.__dataclass_fields__, given, strict=True) if v is not None})

    @property
    def properties(self) -> dict[str, str]:
        """RecBole's properties that say the same."""
        return dict(zip(FORMAT_PROPERTIES, astuple(self), strict=True))

    @property
    def fields(self) -> tuple[str, str, str]:
        """Names of the columns of users, items and times."""
        return self.user_field, self.item_field, self.time_field

    def rename(self, columns: Sequence[str]) -> list[str]:
        """Replace RecBole's default names of users, items and times by the names of this format.

        >>> AtomicFormat(item_field="product_id").rename(["user_id", "item_id", "rating"])
        ['user_id', 'product_id', 'rating']
        """
        names = dict(zip(AtomicFormat().fields, self.fields, strict=True))
        return [names.get(column, column) for column in columns]

    def header(self, path: Path) -> Header:
        """Read the columns that the first line names (`read_header`)."""
        return read_header(path, separator=self.field_separator, encoding=self.encoding)

    def rows(self, path: Path, columns: Sequence[str], *, pad: bool = False) -> Iterator[tuple[int, list[str]]]:
        """Read some columns row by row (`read_rows`)."""
        return read_rows(path, columns, pad=pad, separator=self.field_separator, encoding=self.encoding)


RECBOLE_FORMAT = AtomicFormat()


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

    def type_of(self, name: str) -> str:
        """Return the type of a column; empty where it has none, or where there is no such column."""
        return next((column.type for column in self.columns if column.name == name), "")


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
    with open(path, encoding=real_encoding(path, encoding), newline="") as handle:
        try:
            return Header(path, parse_columns(handle.readline(), separator))
        except UnicodeError as error:
            raise ValueError(f"{path}:{_undecodable(path, encoding)}: {error}; {_advice(path, encoding)}") from error


def real_encoding(path: Path, encoding: str = ENCODING) -> str:
    """Return the encoding that reads the byte order mark at the start of a file as a mark, not as text.

    Args:
        path: an atomic file.
        encoding: RecBole's ``encoding``.

    Raises:
        FileNotFoundError: there is no such file.
    """
    mark, with_mark = _MARKED.get(codecs.lookup(encoding).name, (b"", encoding))
    with open(path, "rb") as handle:
        return with_mark if mark and handle.read(len(mark)) == mark else encoding


def _undecodable(path: Path, encoding: str) -> int:
    """Return the first line that is not text in an encoding; files are decoded in blocks, whose errors tell no line."""
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return number
    return 1


def _advice(path: Path, encoding: str) -> str:
    """Say what to do about a file that is not text in an encoding."""
    with open(path, "rb") as handle:
        start = handle.read(2)
    found = "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin-1"
    return f"set the property encoding to that of the file (such as {found}), or convert it to {encoding}"


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
    with open(path, encoding=real_encoding(path, encoding), newline="") as handle:
        rows = csv.reader(handle, delimiter=separator, strict=True)  # as in pandas' Python engine
        try:
            next(rows, None)
            for cells in rows:
                if len(cells) < 2 and not "".join(cells).strip():
                    continue
                if len(cells) > width or (len(cells) < width and not pad):
                    raise ValueError(
                        f"{path}:{rows.line_num}: {len(cells)} cells, but the header names {width} columns; complete the "
                        f"row or remove it (field_separator is {separator!r})"
                    )
                cells += [""] * (width - len(cells))
                yield rows.line_num, [cells[position] for position in positions]
        except UnicodeError as error:
            raise ValueError(f"{path}:{_undecodable(path, encoding)}: {error}; {_advice(path, encoding)}") from error
        except csv.Error as error:
            raise ValueError(
                f"{path}:{rows.line_num}: {error}; RecBole cannot read the file either, 'doctor' explains"
            ) from error
