"""Read atomic files row by row and name the rows that RecBole's reader would misread.

Unlike `recbole_qbert.data.atomic_files`, which stops at the first fault, this reader continues. The faults are those of
RecBole 1.2.1 on pandas 2.3 (``engine="python"``, csv quoting on); ``tests/test_doctor.py`` repeats the surprising ones.
"""

from __future__ import annotations

import codecs
import csv
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dataset_prep.amazon.cleaning import MAX_CELL
from dataset_prep.checks.findings import FaultCounter, Finding
from recbole_qbert.data.atomic_files import TYPES, AtomicFormat, parse_columns
from recbole_qbert.data.item_features import READ_AS_MISSING
from recbole_qbert.utils.spelling import did_you_mean

LONGEST_LINE = 1 << 26  # characters in memory at a time
MOST_RETURNS = 100  # carriage returns that are looked for in a row
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars", " ": "spaces"}
BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)

LINE_FAULTS = {
    "few": (
        "error",
        "{lines} with too few fields, the first is {first}: RecBole fills up with missing values",
        "separate fields by one tab each, or by what field_separator says; complete or remove these lines",
    ),
    "many": (
        "error",
        "{lines} with too many fields, the first is {first}: RecBole drops the fields beyond the header",
        "remove the separators from the texts, or the additional fields from the lines",
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
        "write the file with pandas' to_csv(sep='\\t', index=False), or remove the quotes ('doctor --fix')",
    ),
    "return": (
        "error",
        "{lines} with a carriage return inside, the first is {first}: RecBole ends the row there",
        "remove the carriage returns from the texts",
    ),
    "crlf": (
        "warning",
        "{lines} ending in CR LF (Windows): RecBole reads these, other tools take the CR as part of the last cell",
        "convert the file: sed -i 's/\\r$//' FILE; 'doctor --fix' writes such a copy",
    ),
    "utf8": (
        "error",
        "{lines} not in {encoding}, the first is {first}: RecBole cannot open the file",
        "set the property encoding to what it is; 'doctor --fix' writes a copy in UTF-8",
    ),
    "utf8 after all": (
        "warning",
        "{lines} in UTF-8, although the property encoding says {encoding}: texts are read wrong",
        "leave the property out",
    ),
    "not utf8": ("ok", "", ""),
    "blank": ("ok", "{lines} blank, which the readers skip", ""),
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
    "spaces": (
        "warning",
        "{lines} with an id that white space surrounds, the first is {first}: it is another id than the one without",
        "remove the white space, here and in the other files; 'doctor --fix' writes such a copy",
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


#: One row of an atomic file, or a blank line: the number of its first line; its text with the line end, of several lines
#: where quotes hold a line break together; what RecBole reads in its cells, or what stands between the separators if there
#: is a fault; a key of `LINE_FAULTS`, or ''. A plain tuple, because there are millions.
Row = tuple[int, str, list[str], str]


def byte_order_mark(path: Path) -> str | None:
    """Return the encoding that a file's byte order mark names; ``None`` if it has none."""
    with open(path, "rb") as handle:
        start = handle.read(4)
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS if start.startswith(mark)), None)


def open_text(path: Path, encoding: str) -> TextIO:
    """Open text so that line ends stay what they are and bytes of another encoding become lone surrogates."""
    return open(path, encoding=encoding, errors="surrogateescape", newline="")


def read_header(
    path: Path, required: Mapping[str, str], form: AtomicFormat | None = None
) -> tuple[Header | None, list[Finding]]:
    """Read and check the header of an atomic file.

    Args:
        path: the file.
        required: name -> type of the required columns.
        form: how the file is written; default: as RecBole's defaults say.

    Returns:
        ``(header, findings)``; the header is ``None`` if the columns cannot be told apart.
    """
    form = form or AtomicFormat()
    where = f"{path}:1"
    line, findings = _first_line(path, form.encoding)
    if line is None:
        return None, findings
    if form.field_separator not in line and len(required) > 1:
        return None, [*findings, Finding("error", where, *_other_separator(line, form.field_separator, required))]
    positions: dict[str, int] = {}
    types: dict[str, str] = {}
    columns = parse_columns(line, form.field_separator)

    def error(problem: str, way_out: str) -> None:
        findings.append(Finding("error", where, problem, way_out))

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
            key = {form.user_field: "USER_ID_FIELD", form.item_field: "ITEM_ID_FIELD", form.time_field: "TIME_FIELD"}[name]
            error(f"no column {name!r}{did_you_mean(name, positions)}", f"name a column {name}:{kind}, or set {key}")
        elif types[name] in TYPES and types[name] != kind:
            error(f"column {name!r} is of type {types[name]}", f"name it {name}:{kind}")
    return Header(positions, types, len(columns)), findings


def _first_line(path: Path, encoding: str) -> tuple[str | None, list[Finding]]:
    """Return the first line without byte order mark and line end, ``None`` if it cannot be read; and what is wrong."""
    where = f"{path}:1"
    marked = byte_order_mark(path)
    if marked and encoding_family(marked) != encoding_family(encoding):
        problem = f"the file begins with a byte order mark of {marked}, but is read as {encoding}"
        way_out = f"set the property encoding to {marked}; 'doctor --fix' writes a copy in UTF-8"
        return None, [Finding("error", where, problem, way_out)]
    try:
        with open_text(path, encoding) as handle:
            line = handle.readline(LONGEST_LINE).rstrip("\r\n")
    except UnicodeError as error:
        problem = f"the file is not in {encoding} ({error})"
        return None, [Finding("error", where, problem, "set the property encoding to what it is")]
    if not line.startswith("\ufeff"):
        return line, []
    return line[1:], [Finding("ok", where, "the file begins with a byte order mark, which is not read as text")]


def encoding_family(encoding: str) -> str:
    """Return the name of an encoding, whatever its spelling, byte order and mark.

    >>> encoding_family("UTF8"), encoding_family("utf-16-le"), encoding_family("latin-1")
    ('utf-8', 'utf-16', 'iso8859-1')
    """
    name = codecs.lookup(encoding).name.replace("_", "-")
    return name.removesuffix("-sig").removesuffix("-le").removesuffix("-be")


def _other_separator(header: str, separator: str, required: Mapping[str, str]) -> tuple[str, str]:
    """Return what is wrong with a header of one column, and the way out."""
    signs = [sign for sign in (" ", ",", "\t", ";", "|") if sign != separator and sign in header]
    named = SEPARATORS.get(separator, repr(separator))
    example = separator.join(f"{name}:{kind}" for name, kind in required.items()).replace("\t", "\\t")
    way_out = f"separate columns by {named}, in every line; write the header as {example}"
    if not signs:
        return f"the header is {header[:80]!r}: one column", way_out
    problem = f"the header is {header[:80]!r}: one column, or columns separated by {SEPARATORS[signs[0]]}"
    return problem, f"{way_out}; or set field_separator to {signs[0]!r}"


def rows(
    path: Path,
    width: int,
    faults: FaultCounter,
    advance: Callable[[int], object],
    form: AtomicFormat | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and cells of each row without a fault.

    Args:
        path: an atomic file.
        width: number of columns in the header.
        faults: counts all other rows.
        advance: called with the number of characters read.
        form: how the file is written; default: as RecBole's defaults say.
    """
    form = form or AtomicFormat()
    told = form.encoding if encoding_family(form.encoding) != "utf-8" else None
    first, shifted = True, False
    for number, text, cells, fault in read_rows(path, width, form, faults, advance):
        if "\r" in text and fault not in ("return", "blank"):
            faults.note("crlf", number)
        if told and not text.isascii():
            faults.note("utf8 after all" if _is_utf8(text, told) else "not utf8", number)
        if not fault:
            yield number, cells
        elif fault != "many":
            faults.note(fault, number, text.rstrip("\r\n"))
        elif first and len(cells) == width + 1:
            shifted = True
            faults.note("shifted", number)
        elif not shifted or len(cells) > width + 1:
            faults.note("many", number, text.rstrip("\r\n"))
        first = first and fault == "blank"
    if faults.forget("not utf8"):
        faults.forget("utf8 after all")


def read_rows(
    path: Path, width: int, form: AtomicFormat, faults: FaultCounter, advance: Callable[[int], object]
) -> Iterator[Row]:
    """Yield every row and blank line below the header.

    Args:
        path: an atomic file.
        width: number of columns in the header.
        form: how the file is written.
        faults: counts lines that are too long or cannot be decoded, which are not yielded.
        advance: called with the number of characters read.
    """
    again = deque[tuple[int, str]]()  # lines that a stray quote made us read ahead
    lines = _lines(path, form.encoding, faults, advance)
    separator = form.field_separator
    while entry := again.popleft() if again else next(lines, None):
        number, text = entry
        fault = ""
        if '"' in text:
            text, cells, fault = _with_quotes(text, lines, again, separator, width)
        else:
            cells = text.rstrip("\r\n").split(separator)
        if (len(cells) != width or width == 1) and not fault:
            if len(cells) == 1 and not cells[0].strip():  # pandas skips these as well
                fault = "blank"
            elif len(cells) != width:
                fault = "few" if len(cells) < width else "many"
            if fault == "few" and text[-1:] == "\r":
                text, cells, fault = _with_carriage_returns(text, cells, lines, again, separator, width)
        elif len(text) > MAX_CELL and not fault and max(map(len, cells)) > MAX_CELL:
            fault = "long cell"
        if not text.isascii() and not is_text(text):
            fault = "utf8"
        yield number, text, cells, fault


def _lines(path: Path, encoding: str, faults: FaultCounter, advance: Callable[[int], object]) -> Iterator[tuple[int, str]]:
    """Yield the number and text of the lines below the header; count and skip overlong ones.

    A carriage return ends a line, too, as it does for RecBole.
    """
    number = 1
    with open_text(path, encoding) as handle:
        readline = handle.readline
        try:
            readline(LONGEST_LINE)
            while line := readline(LONGEST_LINE):
                number += 1
                advance(len(line))
                if len(line) < LONGEST_LINE or line[-1] == "\n":
                    yield number, line
                    continue
                faults.note("long line", number)
                while line and line[-1] not in "\r\n":
                    line = readline(LONGEST_LINE)
                    advance(len(line))
        except UnicodeError:  # encodings of several bytes that are cut off
            faults.note("utf8", number + 1)


def _with_carriage_returns(
    text: str,
    cells: list[str],
    lines: Iterator[tuple[int, str]],
    again: deque[tuple[int, str]],
    separator: str,
    width: int,
) -> tuple[str, list[str], str]:
    """Return text, cells and fault of a row that a carriage return cuts short, with what follows if that completes it."""
    taken, joined, together = list[tuple[int, str]](), text, cells
    while joined[-1] == "\r" and len(together) < width and len(taken) < MOST_RETURNS:
        entry = again.popleft() if again else next(lines, None)
        if entry is None:
            break
        taken.append(entry)
        joined += entry[1]
        together = joined.rstrip("\r\n").split(separator)
    if taken and len(together) == width:
        return joined, together, "return"
    again.extendleft(reversed(taken))
    return text, cells, "few"


def _with_quotes(
    line: str, lines: Iterator[tuple[int, str]], again: deque[tuple[int, str]], separator: str, width: int
) -> tuple[str, list[str], str]:
    """Return text, cells and fault of a row with quotes, which may go on over line ends, as ``csv`` reads it.

    A quote is stray if ``csv`` refuses it, or if it swallows whole rows or cells: if what stands between the separators of
    every line is a row.
    """
    taken = list[tuple[int, str]]()

    def text() -> Iterator[str]:
        yield line
        while entry := again.popleft() if again else next(lines, None):
            taken.append(entry)
            yield entry[1]

    try:
        cells = next(csv.reader(text(), delimiter=separator, strict=True))
    except csv.Error:
        cells = []
    plain = [each.rstrip("\r\n").split(separator) for each in (line, *(entry[1] for entry in taken))]
    if cells and (all(len(each) == width for each in plain) if taken else len(plain[0]) == width != len(cells)):
        cells = []
    if cells:
        return "".join((line, *(entry[1] for entry in taken))), cells, ""
    again.extendleft(reversed(taken))
    return line, plain[0], "quote"


def is_text(text: str) -> bool:
    """Tell whether all bytes could be decoded; the others are lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_utf8(text: str, encoding: str) -> bool:
    """Tell whether the bytes that make a text in some encoding are UTF-8."""
    try:
        text.encode(encoding, "surrogateescape").decode()
    except UnicodeError:
        return False
    return True


def number_in(cell: str) -> float | None:
    """Return the number that RecBole reads in a cell: NaN for an empty cell, ``None`` if RecBole refuses it."""
    try:
        return None if "_" in cell or not cell.isascii() else float(cell)  # Python accepts more than pandas
    except ValueError:
        return float("nan") if cell in READ_AS_MISSING else None
