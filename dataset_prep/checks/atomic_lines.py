"""Atomic files, read line by line as RecBole's reader will take them; whatever it would misread is noted.

What it does was seen with RecBole 1.2.1 on pandas 2.3 (``engine="python"``, csv quoting on); ``tests/test_doctor.py``
repeats the surprising parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dataset_prep.amazon.cleaning import MAX_CELL
from dataset_prep.checks.findings import Faults, Finding
from recbole_qbert.data.item_features import READ_AS_MISSING
from recbole_qbert.utils.spelling import did_you_mean

TYPES = ("token", "token_seq", "float", "float_seq")
MISSING = frozenset(word.encode() for word in READ_AS_MISSING)
LONGEST_LINE = 1 << 26  # bytes held at a time
BOM = b"\xef\xbb\xbf"
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')

KINDS = {
    "few": (
        "error",
        "{lines} with too few fields, the first is {first}: RecBole fills up with missing values",
        "fields are separated by one tab each; complete or remove these lines",
    ),
    "many": (
        "error",
        "{lines} with too many fields, the first is {first}: RecBole drops what is beyond the header",
        "take the tabs out of the texts, or the additional fields out of the lines",
    ),
    "shifted": (
        "error",
        "the first row has one field more than the header: RecBole takes its first column for row names and shifts all "
        "columns by one",
        "remove the additional field (often a tab at the end of the lines), or name it in the header",
    ),
    "quote": (
        "error",
        "{lines} with a cell that begins with a quote and does not end with it, the first is {first}: RecBole reads on, "
        "over tabs and lines, to the next quote",
        "write the file with pandas' to_csv(sep='\\t', index=False), or take the quotes out",
    ),
    "return": (
        "error",
        "{lines} with a carriage return within, the first is {first}: RecBole ends the row there",
        "take the carriage returns out of the texts",
    ),
    "crlf": (
        "warning",
        "{lines} ending in CR LF (Windows): RecBole reads these, other tools take the CR for a part of the last cell",
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
        f"{{lines}} of more than {LONGEST_LINE:,} bytes, not looked at",
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
        "{lines} with {first} or the like where a number belongs: RecBole refuses to load the column",
        "write numbers with a point and without separators, or make the column a token",
    ),
}


@dataclass(frozen=True)
class Header:
    """Columns of an atomic file.

    Attributes:
        places: name -> position.
        types: name -> type, one of RecBole's or not.
        width: how many columns there are.
    """

    places: dict[str, int]
    types: dict[str, str]
    width: int

    def floats(self) -> dict[str, int]:
        """Name -> position of the columns of numbers."""
        return {name: place for name, place in self.places.items() if self.types[name] == "float"}


def read_header(path: Path, required: Mapping[str, str]) -> tuple[Header | None, list[Finding]]:
    """Columns of an atomic file.

    Args:
        path: the file.
        required: name -> type of the columns that must be there.

    Returns:
        ``(header, findings)``; ``None`` when there is no telling which column is which.
    """
    where, found = f"{path}:1", list[Finding]()
    with open(path, "rb") as handle:
        raw = handle.readline(LONGEST_LINE)

    def error(what: str, to_do: str) -> None:
        found.append(Finding("error", where, what, to_do))

    if raw.startswith(BOM):
        error(
            "the file begins with a byte order mark, which RecBole takes for a part of the first name",
            "save it as UTF-8 without BOM: sed -i '1s/^\\xEF\\xBB\\xBF//' FILE",
        )
        raw = raw[len(BOM) :]
    header = raw.decode("utf-8", "replace").rstrip("\r\n")
    example = "\\t".join(f"{name}:{kind}" for name, kind in required.items())
    if "\t" not in header and len(required) > 1:
        between = next((f" separated by {name}" for sign, name in ((" ", "spaces"), (",", "commas")) if sign in header), "")
        error(
            f"the header is {header[:80]!r}: one column{', or columns' + between if between else ''}",
            f"separate columns by tabs, in every line; the header is {example}",
        )
        return None, found
    places: dict[str, int] = {}
    types: dict[str, str] = {}
    cells = header.split("\t")
    for place, cell in enumerate(cells):
        name, colon, kind = cell.partition(":")
        if not colon:
            error(f"column {cell!r} has no type", f"write it as name:type; types are {', '.join(TYPES)}")
        elif kind not in TYPES:
            error(
                f"column {name!r} has the unknown type {kind!r}{did_you_mean(kind, TYPES)}", f"types are {', '.join(TYPES)}"
            )
        if name in places:
            error(f"column {name!r} stands twice", "remove or rename one of them")
        places.setdefault(name, place)
        types.setdefault(name, kind)
    for name, kind in required.items():
        if name not in places:
            error(f"no column {name!r}{did_you_mean(name, places)}", f"name a column {name}:{kind}")
        elif types[name] in TYPES and types[name] != kind:
            error(f"column {name!r} is of type {types[name]}", f"name it {name}:{kind}")
    return Header(places, types, len(cells)), found


def rows(path: Path, width: int, faults: Faults, bar: Callable[[int], object]) -> Iterator[tuple[int, list[bytes]]]:
    """Line number and cells of each row that has the right number of them.

    Args:
        path: an atomic file.
        width: columns of the header.
        faults: is told of all other rows.
        bar: is told how many bytes were read.
    """
    first, shifted = True, False
    for number, line in _lines(path, faults, bar):
        body = line.rstrip(b"\r\n")
        if not body.strip(b" "):  # pandas skips these, too
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


def _lines(path: Path, faults: Faults, bar: Callable[[int], object]) -> Iterator[tuple[int, bytes]]:
    """Lines below the header; endless ones are noted and passed over, so that memory stays bounded."""
    with open(path, "rb") as handle:
        handle.readline(LONGEST_LINE)
        number = 1
        while line := handle.readline(LONGEST_LINE):
            number += 1
            bar(len(line))
            if line[-1:] == b"\n" or len(line) < LONGEST_LINE:
                yield number, line
                continue
            faults.note("long line", number)
            while line and line[-1:] != b"\n":
                line = handle.readline(LONGEST_LINE)
                bar(len(line))


def _fault(body: bytes, cells: list[bytes]) -> str | None:
    """What keeps the reader from taking a line as it stands; csv quotes are taken off its cells."""
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
    """Take csv quotes off, in place; false when a cell begins with a quote and does not end with it."""
    for place, cell in enumerate(cells):
        if cell.startswith(b'"'):
            inner = _QUOTED.fullmatch(cell)
            if not inner:
                return False
            cells[place] = inner[1].replace(b'""', b'"')
    return True


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def number_in(cell: bytes) -> float | None:
    """The number that RecBole reads in a cell: NaN for an empty one, ``None`` where it refuses."""
    try:
        return float(cell)
    except ValueError:
        return float("nan") if cell in MISSING else None
