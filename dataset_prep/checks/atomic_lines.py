"""Read atomic files line by line and count the lines that RecBole's reader would misread.

Unlike `recbole_qbert.data.atomic_files`, which stops at the first fault, this reader continues and looks at bytes. The
faults are those of RecBole 1.2.1 on pandas 2.3 (``engine="python"``, csv quoting on); ``tests/test_doctor.py`` repeats the
surprising ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dataset_prep.amazon.cleaning import MAX_CELL
from dataset_prep.checks.findings import FaultCounter, Finding
from recbole_qbert.data.atomic_files import TYPES, parse_columns
from recbole_qbert.data.item_features import READ_AS_MISSING
from recbole_qbert.utils.spelling import did_you_mean

MISSING = frozenset(word.encode() for word in READ_AS_MISSING)
LONGEST_LINE = 1 << 26  # bytes in memory at a time
BOM = b"\xef\xbb\xbf"
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')

LINE_FAULTS = {
    "few": (
        "error",
        "{lines} with too few fields, the first is {first}: RecBole fills up with missing values",
        "separate fields by one tab each; complete or remove these lines",
    ),
    "many": (
        "error",
        "{lines} with too many fields, the first is {first}: RecBole drops the fields beyond the header",
        "remove the tabs from the texts, or the additional fields from the lines",
    ),
    "shifted": (
        "error",
        "the first row has one field more than the header: RecBole takes the first column for row names and shifts all "
        "columns by one",
        "remove the additional field (often a tab at the end of the lines), or name it in the header",
    ),
    "quote": (
        "error",
        "{lines} with a cell that begins with a quote and does not end with it, the first is {first}: RecBole reads on, "
        "over tabs and lines, to the next quote",
        "write the file with pandas' to_csv(sep='\\t', index=False), or remove the quotes",
    ),
    "return": (
        "error",
        "{lines} with a carriage return inside, the first is {first}: RecBole ends the row there",
        "remove the carriage returns from the texts",
    ),
    "crlf": (
        "warning",
        "{lines} ending in CR LF (Windows): RecBole reads these, other tools take the CR as part of the last cell",
        "convert the file: sed -i 's/\\r$//' FILE",
    ),
    "utf8": (
        "error",
        "{lines} not in UTF-8, the first is {first}: RecBole cannot open the file",
        "convert the file to UTF-8",
    ),
    "long cell": (
        "error",
        f"{{lines}} with a cell of more than {MAX_CELL:,} characters: RecBole's reader refuses the file",
        "shorten the texts",
    ),
    "long line": (
        "error",
        f"{{lines}} of more than {LONGEST_LINE:,} bytes, not checked",
        "the file has lost its line ends, or is not text; write it again",
    ),
    "no user": (
        "error",
        "{lines} with the user {first} or another word that pandas reads as missing: RecBole drops the rows silently",
        "give these ids a prefix, here and in the other files, or remove the lines",
    ),
    "no item": (
        "error",
        "{lines} with the item {first} or another word that pandas reads as missing: RecBole drops the rows silently",
        "give these ids a prefix, here and in the other files, or remove the lines",
    ),
    "padding": (
        "warning",
        "{lines} with the id {first}, the name of RecBole's padding",
        "give this id another name, here and in the other files",
    ),
    "not a number": (
        "error",
        "{lines} with {first} or similar text instead of a number: RecBole refuses to load the column",
        "write numbers with a decimal point and without separators, or make the column a token",
    ),
}


@dataclass(frozen=True)
class Header:
    """Columns of an atomic file.

    Attributes:
        positions: name -> position.
        types: name -> type, which may be unknown to RecBole.
        width: number of columns.
    """

    positions: dict[str, int]
    types: dict[str, str]
    width: int

    def floats(self) -> dict[str, int]:
        """Return name -> position of the columns of numbers."""
        return {name: position for name, position in self.positions.items() if self.types[name] == "float"}


def read_header(path: Path, required: Mapping[str, str]) -> tuple[Header | None, list[Finding]]:
    """Read and check the header of an atomic file.

    Args:
        path: the file.
        required: name -> type of the required columns.

    Returns:
        ``(header, findings)``; the header is ``None`` if the columns cannot be told apart.
    """
    where, findings = f"{path}:1", list[Finding]()
    with open(path, "rb") as handle:
        raw = handle.readline(LONGEST_LINE)

    def error(problem: str, way_out: str) -> None:
        findings.append(Finding("error", where, problem, way_out))

    if raw.startswith(BOM):
        error(
            "the file begins with a byte order mark, which RecBole takes as part of the first name",
            "save it as UTF-8 without BOM: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE",
        )
    header = raw.removeprefix(BOM).decode("utf-8", "replace").rstrip("\r\n")
    example = "\\t".join(f"{name}:{kind}" for name, kind in required.items())
    if "\t" not in header and len(required) > 1:
        separated = next(
            (f" separated by {name}" for sign, name in ((" ", "spaces"), (",", "commas")) if sign in header), ""
        )
        error(
            f"the header is {header[:80]!r}: one column{', or columns' + separated if separated else ''}",
            f"separate columns by tabs, in every line; write the header as {example}",
        )
        return None, findings
    positions: dict[str, int] = {}
    types: dict[str, str] = {}
    columns = parse_columns(header)
    for position, (name, kind) in enumerate((column.name, column.type) for column in columns):
        if not kind:
            error(f"column {name!r} has no type", f"write it as name:type, where type is {', '.join(TYPES)}")
        elif kind not in TYPES:
            error(f"column {name!r} has the unknown type {kind!r}{did_you_mean(kind, TYPES)}", f"use {', '.join(TYPES)}")
        if name in positions:
            error(f"column {name!r} occurs twice", "remove or rename one of the two")
        positions.setdefault(name, position)
        types.setdefault(name, kind)
    for name, kind in required.items():
        if name not in positions:
            error(f"no column {name!r}{did_you_mean(name, positions)}", f"name a column {name}:{kind}")
        elif types[name] in TYPES and types[name] != kind:
            error(f"column {name!r} is of type {types[name]}", f"name it {name}:{kind}")
    return Header(positions, types, len(columns)), findings


def rows(
    path: Path, width: int, faults: FaultCounter, advance: Callable[[int], object]
) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the line number and cells of each row without a fault.

    Args:
        path: an atomic file.
        width: number of columns in the header.
        faults: counts all other rows.
        advance: called with the number of bytes read.
    """
    first, shifted = True, False
    for number, line in _lines(path, faults, advance):
        body = line.rstrip(b"\r\n")
        if not body.strip(b" "):  # pandas skips these as well
            continue
        if line[-2:] == b"\r\n":
            faults.note("crlf", number)
        cells = body.split(b"\t")
        fault = _fault(body, cells)
        if fault:
            faults.note(fault, number, body)
        elif len(cells) == width:
            yield number, cells
        elif len(cells) < width:
            faults.note("few", number, body)
        elif first and len(cells) == width + 1:
            shifted = True
            faults.note("shifted", number)
        elif not shifted or len(cells) > width + 1:
            faults.note("many", number, body)
        first = False


def _lines(path: Path, faults: FaultCounter, advance: Callable[[int], object]) -> Iterator[tuple[int, bytes]]:
    """Yield the lines below the header; count and skip overlong ones, so that memory stays bounded."""
    with open(path, "rb") as handle:
        handle.readline(LONGEST_LINE)
        number = 1
        while line := handle.readline(LONGEST_LINE):
            number += 1
            advance(len(line))
            if line[-1:] == b"\n" or len(line) < LONGEST_LINE:
                yield number, line
                continue
            faults.note("long line", number)
            while line and line[-1:] != b"\n":
                line = handle.readline(LONGEST_LINE)
                advance(len(line))


def _fault(body: bytes, cells: list[bytes]) -> str | None:
    """Name the fault that makes RecBole misread a line, if any; remove csv quotes from its cells in place."""
    if b'"' in body and not _unquote(cells):
        return "quote"
    if b"\r" in body:
        return "return"
    if not body.isascii() and not _is_text(body):
        return "utf8"
    if len(body) > MAX_CELL and any(len(cell.decode()) > MAX_CELL for cell in cells):
        return "long cell"
    return None


def _unquote(cells: list[bytes]) -> bool:
    """Remove csv quotes in place; false if a cell begins with a quote and does not end with it."""
    for position, cell in enumerate(cells):
        if cell.startswith(b'"'):
            inner = _QUOTED.fullmatch(cell)
            if not inner:
                return False
            cells[position] = inner[1].replace(b'""', b'"')
    return True


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def number_in(cell: bytes) -> float | None:
    """Return the number that RecBole reads in a cell: NaN for an empty cell, ``None`` if RecBole refuses it."""
    try:
        return float(cell)
    except ValueError:
        return float("nan") if cell in MISSING else None
