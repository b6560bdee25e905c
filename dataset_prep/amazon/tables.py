"""Read tables as lines of JSON, which the parsers of `editions` read: CSV, TSV, Parquet, Arrow and ORC.

Numbers count rows: row 1 of a CSV file is its header, row 1 of a Parquet file the first record.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from dataset_prep.amazon.file_kinds import AmazonFormatError
from dataset_prep.amazon.unpacking import FETCH_AGAIN, DamagedFileError

Row = tuple[bytes, str]  # a line of JSON, and why it is a bad one ("" if it is not)
DELIMITERS = {",": "comma-separated (CSV)", "\t": "tab-separated (TSV)", ";": "semicolon-separated", "|": "separated by '|'"}
USERS = {"reviewerID", "user_id"}
ITEMS = {"asin", "parent_asin", "item_id"}
NUMBERS = {"overall", "rating", "unixReviewTime", "timestamp"}
FIELDS = "title brand store categories category description features details price images imUrl imageURL imageURLHighRes"
COLUMNS = USERS | ITEMS | NUMBERS | {*FIELDS.split(), "image_urls", "helpful", "salesRank"}  # the others are not read
ROWS = 1000  # rows in memory at a time
_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*")
_ASIN = re.compile(r"[0-9]{9}[0-9X]|B[0-9A-Z]{9}")
_AMAZON_USER = re.compile(r"A[0-9A-Z]{9,}")
_RATINGS = {
    "2014": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "2018": ("asin", "reviewerID", "overall", "unixReviewTime"),
}


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is read.

    Attributes:
        kind: ``reviews`` or ``metadata``.
        edition: edition that the user gave; None without one.
        fields: names of the columns of users, items, ratings and times of a RecBole file.
    """

    kind: str = "reviews"
    edition: str | None = None
    fields: tuple[str, ...] = ("user_id", "item_id", "rating", "timestamp")

    @property
    def columns(self) -> set[str]:
        """Names of the columns that are read."""
        return COLUMNS | {*self.fields}

    @property
    def numbers(self) -> set[str]:
        """Names of the columns that hold numbers."""
        return NUMBERS | {*self.fields[2:]}

    @property
    def ids(self) -> set[str]:
        """Names of the columns that hold ids."""
        return USERS | ITEMS | {*self.fields[:2]}

    def check_columns(self, path: Path, kind: str, names: Sequence[str]) -> None:
        """Check that a table names users and items.

        Args:
            path: the file, for the error.
            kind: what it is.
            names: its columns.

        Raises:
            AmazonFormatError: a column is missing or occurs twice.
        """
        for what, known in (("users", USERS | {self.fields[0]}), ("items", ITEMS | {self.fields[1]})):
            if not known.intersection(names) and (what == "items" or self.kind == "reviews"):
                raise AmazonFormatError(
                    f"{path}: this is a {kind} file with the columns {', '.join(names)[:200]}; none of them holds {what} "
                    f"({', '.join(sorted(known))}): rename a column"
                )
        if repeated := {name for name in names if names.count(name) > 1} & self.columns:
            raise AmazonFormatError(f"{path}: the column {min(repeated)} occurs twice; remove one of the two")


ANY_REVIEWS = Expected()


@dataclass(frozen=True)
class CsvLayout:
    """How a delimited text is laid out.

    Attributes:
        delimiter: between cells.
        names: names of the columns.
        header: whether the first row holds them.
        edition: edition whose order of columns a file without header has.
    """

    delimiter: str
    names: tuple[str, ...]
    header: bool = True
    edition: str = ""


# ------------------------------------------------------------------------------------------------ delimited text


def csv_layout(path: Path, head: bytes, expected: Expected) -> CsvLayout | None:
    """Recognise delimited text by its first lines; None if it is JSON, an atomic file or anything else.

    Args:
        path: the file, for errors.
        head: first bytes of the text.
        expected: what is known of it.

    Raises:
        AmazonFormatError: it is delimited text whose columns are not known.
    """
    lines = [line for line in head.decode("utf-8", "replace").splitlines() if line.strip()]
    lines = lines[: max(1, len(lines) - 1)][:100]  # the last may be cut
    if not lines or lines[0].lstrip().startswith(("{", "[")) or (":token" in lines[0] and "\t" in lines[0]):
        return None
    for delimiter, name in DELIMITERS.items():
        names = tuple(cell.strip().split(":")[0] for cell in _cells(lines[0], delimiter))
        if len(names) > 1 and expected.ids.intersection(names):
            expected.check_columns(path, name, names)
            return CsvLayout(delimiter, names)
    if any(line.lstrip().startswith(("{", "[", '"{')) for line in lines):
        return None
    for delimiter, name in DELIMITERS.items():
        rows = [_cells(line, delimiter) for line in lines]
        widths = {len(row) for row in rows}
        if widths == {4} and all(_NUMBER.fullmatch(cell) for row in rows for cell in row[2:]) and expected.kind == "reviews":
            return _ratings_layout(path, delimiter, rows, expected.edition)
        if len(widths) == 1 and len(rows) > 1 and widths != {1}:
            what = (
                "no column that names the items" if expected.kind == "metadata" else "no columns that name users and items"
            )
            raise AmazonFormatError(
                f"{path}:1: this is a {name} file with {what}; its first row is {lines[0][:200]!r}. Name the columns in a "
                "first row: user_id, item_id, rating, timestamp (seconds), or those of an edition"
            )
    return None


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _ratings_layout(path: Path, delimiter: str, rows: Sequence[Sequence[str]], edition: str | None) -> CsvLayout:
    """Decide the order of a ratings-only file without header: by ids as Amazon gives them, else by the edition."""
    first, second = ({row[place].strip() for row in rows} for place in (0, 1))
    seen = {
        "2014": all(map(_ASIN.fullmatch, second)) and not any(map(_ASIN.fullmatch, first)),
        "2018": all(map(_ASIN.fullmatch, first)) and not any(map(_ASIN.fullmatch, second)),
    }
    by_content = next((name for name, is_so in seen.items() if is_so), None)
    if by_content is None and all(map(_AMAZON_USER.fullmatch, first)) != all(map(_AMAZON_USER.fullmatch, second)):
        by_content = "2014" if all(map(_AMAZON_USER.fullmatch, first)) else "2018"
    begins = delimiter.join(rows[0])
    orders = "2014 for user, item, rating, time; 2018 for item, user, rating, time"
    if by_content is not None and edition not in (None, by_content):
        raise AmazonFormatError(
            f"{path}:1: the row {begins!r} has the order of the {by_content} edition, but edition is {edition} ({orders})"
        )
    if (by_content or edition) not in _RATINGS:
        raise AmazonFormatError(
            f"{path}:1: the file has no header, and {begins!r} does not tell whether the user or the item comes first; give "
            f"the edition ({orders}), or name the columns in a first row"
        )
    order = str(by_content or edition)
    return CsvLayout(delimiter, _RATINGS[order], header=False, edition=order)


def csv_rows(path: Path, pieces: Iterator[bytes], layout: CsvLayout, expected: Expected, longest: int) -> Iterator[Row]:
    """Yield the rows below the header as lines of JSON with the columns that are used.

    Args:
        path: the file, for errors.
        pieces: its text.
        layout: its layout.
        expected: what is known of it.
        longest: most characters of a cell.

    Raises:
        AmazonFormatError: quotes do not match, or a cell is too long.
        DamagedFileError: the text is not UTF-8.
    """
    rows = csv.reader(_lines(pieces), delimiter=layout.delimiter, strict=True)
    used = [(place, name) for place, name in enumerate(layout.names) if name in expected.columns]
    numbers = expected.numbers
    while layout.header and not any(next(rows)):
        pass
    while True:
        before = csv.field_size_limit(longest)  # is the process's: the reader of atomic files relies on the default
        try:
            batch = list(islice(rows, ROWS))
        except csv.Error as error:
            raise AmazonFormatError(
                f"{path}: {error}, near line {rows.line_num}; quotes in a cell are doubled, and a cell with a quote stands "
                "in quotes: write the file with a library, such as pandas"
            ) from error
        finally:
            csv.field_size_limit(before)
        if not batch:
            return
        for cells in batch:
            yield _csv_row(cells, used, numbers, layout)


def _csv_row(cells: list[str], used: list[tuple[int, str]], numbers: set[str], layout: CsvLayout) -> Row:
    if not any(cell.strip() for cell in cells):
        return b"", ""
    if len(cells) != len(layout.names):
        return layout.delimiter.join(cells).encode(), f"{len(cells)} cells, but there are {len(layout.names)} columns"
    record = {name: _number(cells[place]) if name in numbers else cells[place] for place, name in used}
    return msgspec.json.encode(record), ""


def _number(cell: str) -> float | str | None:
    if not cell.strip():
        return None
    return float(cell) if _NUMBER.fullmatch(cell) else cell


def _lines(pieces: Iterator[bytes]) -> Iterator[str]:
    decoder, rest = codecs.getincrementaldecoder("utf-8")(), ""
    try:
        for piece in pieces:
            *lines, rest = (rest + decoder.decode(piece)).split("\n")
            for line in lines:
                yield f"{line}\n"
        rest += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"the text is not UTF-8 here ({error}); convert the file to UTF-8") from error
    if rest:
        yield rest


# ------------------------------------------------------------------------------------------------ binary tables


def table_rows(path: Path, kind: str, expected: Expected) -> Iterator[Row]:
    """Yield the records of a binary table as lines of JSON with the columns that are used.

    Args:
        path: the file.
        kind: as `file_kinds.table_of` names it.
        expected: what is known of it.

    Raises:
        AmazonFormatError: no column is an id, or the ids are not text.
        DamagedFileError: the file is damaged or incomplete.
    """
    try:
        for batch in _batches(path, kind, expected):
            for record in batch.to_pylist():
                yield msgspec.json.encode(record, enc_hook=str), ""
    except AmazonFormatError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DamagedFileError(f"the {kind} file is damaged or incomplete ({reason}); {FETCH_AGAIN}") from error


def _batches(path: Path, kind: str, expected: Expected) -> Iterator[pa.RecordBatch]:
    source: Any
    if kind == "Parquet":
        source = pq.ParquetFile(path, page_checksum_verification=True)
        names = _used(path, kind, source.schema_arrow, expected)
        batches = source.iter_batches(batch_size=ROWS, columns=names)
    elif kind == "ORC":
        from pyarrow import orc

        source = orc.ORCFile(path)
        names = _used(path, kind, source.schema, expected)
        batches = (source.read_stripe(number, columns=names) for number in range(source.nstripes))
    else:
        handle = pa.memory_map(str(path))
        source = pa.ipc.open_file(handle) if kind == "Arrow IPC" else pa.ipc.open_stream(handle)
        names = _used(path, kind, source.schema, expected)
        count = source.num_record_batches if kind == "Arrow IPC" else None
        whole = source if count is None else (source.get_batch(number) for number in range(count))
        batches = (batch.select(names) for batch in whole)
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS):
            yield _plain(batch.slice(start, ROWS))


def _used(path: Path, kind: str, schema: pa.Schema, expected: Expected) -> list[str]:
    """Return the columns to read, after a check of the ids."""
    expected.check_columns(path, kind, schema.names)
    names = [name for name in schema.names if name in expected.columns]
    for name in expected.ids.intersection(names):
        held = schema.field(name).type
        kept = held.value_type if pa.types.is_dictionary(held) else held
        if not (_is_text(kept) or pa.types.is_null(kept)):
            raise AmazonFormatError(
                f"{path}: the column {name} holds {held}, not text; write ids as text, because numbers lose leading zeros"
            )
    return names


def _is_text(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Convert times to the numbers of their edition, and bytes to text."""
    arrays = []
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_timestamp(array.type):
            thousandths = pc.cast(array, pa.timestamp("ms", array.type.tz), safe=False).cast(pa.int64())
            is_2023 = "parent_asin" in batch.schema.names and name == "timestamp"
            array = thousandths if is_2023 else pc.divide(thousandths.cast(pa.float64()), 1000.0)
        elif str(array.type) in ("binary", "large_binary", "binary_view"):
            array = array.cast(pa.string())
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
