"""Mend one atomic file, row by row: what is mechanical is mended, and every other row stays as it is.

Memory does not grow with the number of rows, except by the rows that change their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from string import whitespace

import numpy as np

from dataset_prep.checks.atomic_lines import (
    LONGEST_LINE,
    byte_order_mark,
    encoding_family,
    is_text,
    number_in,
    open_text,
    read_rows,
)
from dataset_prep.checks.encodings import detect, without_mark
from dataset_prep.checks.findings import FaultCounter
from dataset_prep.checks.interactions import BLOCK, MAX_FLOAT32, PART, Spool, as_recbole_sorts, repeats, required
from recbole_qbert.data.atomic_files import AtomicFormat, Column, parse_columns
from recbole_qbert.data.item_features import READ_AS_MISSING

MENDS = {
    "mark": ("mended", "a byte order mark is gone", ""),
    "encoding": ("mended", "is in UTF-8 now, no longer in {encoding}", ""),
    "guess": (
        "warning",
        "is in UTF-8 now; that it was in {encoding} is a guess",
        "look at the texts of the copy; if they are wrong, set the property encoding and fix the original again",
    ),
    "header": ("mended", "the header has lost white space, quotes or empty fields", ""),
    "crlf": ("mended", "{lines} ended in CR LF or CR", ""),
    "blank": ("mended", "gone: {lines} without content", ""),
    "surplus": ("mended", "{lines} had empty fields beyond the header", ""),
    "quote": ("mended", "{lines} had a stray quote at the start of a cell, the first was {first}", ""),
    "return": ("mended", "{lines} had a carriage return in a text; a space is there now", ""),
    "spaces": ("mended", "{lines} had an id with white space around it, the first was {first}", ""),
    "duplicate": ("mended", "gone: {lines} with the user, item and time of an earlier row", ""),
    "merged": ("mended", "joined: {lines} of an id that had a row already; the first value of each column stays", ""),
    "order": ("mended", "moved: {lines}, among the places of one user, into the order of time", ""),
    "dropped": ("mended", "gone: {lines} that RecBole cannot use, the first was {first}", ""),
}
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


@dataclass(frozen=True)
class Row:
    """One row after what can be mended in it alone.

    Attributes:
        line: number of its first line in the original.
        text: the row without its line end.
        cells: its cells.
        sound: RecBole reads it as it is meant.
    """

    line: int
    text: str
    cells: list[str]
    sound: bool


@dataclass(frozen=True)
class AtomicFile:
    """An atomic file that is to be mended.

    Attributes:
        path: the file.
        form: how it is written; its encoding is the detected one.
        guessed: the encoding is a guess.
        trims: name of an id column -> id -> the same id without the white space around it.
    """

    path: Path
    form: AtomicFormat
    guessed: bool = False
    trims: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, form: AtomicFormat) -> AtomicFile:
        """Detect the encoding of a file.

        Args:
            path: the file.
            form: how the user says that it is written.
        """
        encoding, guessed = detect(path, form.encoding)
        return cls(path, replace(form, encoding=encoding), guessed)

    def with_trims(self, trims: Mapping[str, Mapping[str, str]]) -> AtomicFile:
        """Return the file with ids to trim."""
        return replace(self, trims=trims)

    @cached_property
    def _first_line(self) -> str:
        with open_text(self.path, self.form.encoding) as handle:
            return without_mark(handle.readline(LONGEST_LINE).rstrip("\r\n"), self.form.encoding)

    @cached_property
    def header(self) -> str:
        """The header, without white space and quotes around names and without empty names at the end."""
        cells = [cell.strip(whitespace + '"') for cell in self._first_line.split(self.form.field_separator)]
        while len(cells) > 1 and not cells[-1]:
            cells.pop()
        return self.form.field_separator.join(cells)

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Columns that the header names."""
        return parse_columns(self.header, self.form.field_separator)

    def position(self, name: str) -> int | None:
        """Return the position of a column; ``None`` if there is none of this name."""
        return next((place for place, column in enumerate(self.columns) if column.name == name), None)

    def require_header(self) -> None:
        """Check that the header is text.

        Raises:
            ValueError: it is not.
        """
        if not is_text(self.header):
            raise ValueError(
                f"{self.path}:1: the header {self.header[:80]!r} is not in {self.form.encoding}; write it again"
            )

    def require(self, names: Mapping[str, str]) -> None:
        """Check that columns of these names and types exist.

        Raises:
            ValueError: one does not.
        """
        for name, kind in names.items():
            if Column(name, kind) not in self.columns:
                raise ValueError(f"{self.path}:1: no column {name}:{kind}, so that nothing can be mended; 'doctor' explains")

    def count_file(self, mends: FaultCounter) -> None:
        """Count what is mended in the file as a whole."""
        count_encoding(self.path, self.form.encoding, self.guessed, mends)
        if self.header != self._first_line:
            mends.note("header", 1)

    def rows(self, mends: FaultCounter | None = None) -> Iterator[Row]:
        """Yield the rows, each mended as far as it can be alone.

        Args:
            mends: counts what is mended.

        Raises:
            ValueError: a line is too long to be one, or the file is not text.
        """
        note: Callable[..., None] = mends.note if mends else lambda *_: None
        unreadable = FaultCounter(self.path, {})
        blank = self.form.field_separator + " \t\r\n"
        for line, text, cells, fault in read_rows(self.path, len(self.columns), self.form, unreadable, lambda _: None):
            if not text.strip(blank):
                note("blank", line)
                continue
            if "\r" in text and (text[-1] == "\r" or text[-2:] == "\r\n"):
                note("crlf", line)
            body = text.rstrip("\r\n")
            mended, what = self._mend(cells, fault)
            sound = mended is not None and self._is_sound(mended)
            if mended is None or not sound:
                yield Row(line, body, cells, False)
                continue
            trimmed = self._trim(mended)
            if what:
                note(what, line, body)
            if trimmed != mended:
                note("spaces", line, body)
            changed = what or trimmed != mended
            yield Row(line, self.join(trimmed, body) if changed else body.replace("\r\n", "\n"), trimmed, True)
        for first, _ in unreadable.counts.values():
            raise ValueError(f"{self.path}:{first}: not text, or its line ends are lost; write the file again")

    def join(self, cells: list[str], body: str = "") -> str:
        """Write cells as a row, with quotes where ``csv`` needs them.

        Args:
            cells: the cells.
            body: the row as it was; cells that are still the same are written as they are there.
        """
        separator = self.form.field_separator
        before = body.split(separator)
        before += [""] * (len(cells) - len(before))
        pieces = []
        for cell, piece in zip(cells, before, strict=False):
            special = cell.startswith('"') or separator in cell or "\n" in cell or "\r" in cell
            written = '"' + cell.replace('"', '""') + '"' if special else cell
            pieces.append(piece if _unquoted(piece) == cell else written)
        return separator.join(pieces)

    def _mend(self, cells: list[str], fault: str) -> tuple[list[str] | None, str]:
        """Return the cells of a sound row and what was mended; ``None`` if it is not known how to mend it."""
        width = len(self.columns)
        if not fault:
            return cells, ""
        if fault in ("many", "quote"):
            cells = cells[:width] if not any(cell.strip() for cell in cells[width:]) else cells
            fault = "surplus" if fault == "many" else fault
        if len(cells) != width or fault not in ("surplus", "quote", "return"):
            return None, ""
        if fault == "quote":
            cells = [cell.lstrip('"') if (inner := _unquoted(cell)) is None else inner for cell in cells]
        if fault == "return":
            if any("\r" in cells[place] for place in self._id_places):
                return None, ""
            cells = [cell.replace("\r", " ") for cell in cells]
        return cells, fault

    @cached_property
    def _id_places(self) -> list[int]:
        places = [self.position(name) for name in (self.form.user_field, self.form.item_field)]
        return [place for place in places if place is not None]

    @cached_property
    def _number_places(self) -> list[tuple[int, bool]]:
        """Position of each column of numbers, and whether it has to have one in every row."""
        timed = self.path.suffix == ".inter"
        return [
            (place, timed and column.name == self.form.time_field)
            for place, column in enumerate(self.columns)
            if column.type == "float"
        ]

    def _is_sound(self, cells: list[str]) -> bool:
        """Tell whether the ids are none that RecBole loses, and numbers are numbers."""
        if any(cells[place] in READ_AS_MISSING for place in self._id_places):
            return False
        for place, needed in self._number_places:
            value = number_in(cells[place])
            if value is None or abs(value) >= MAX_FLOAT32 or (needed and value != value):
                return False
        return True

    def _trim(self, cells: list[str]) -> list[str]:
        for name, trims in self.trims.items():
            place = self.position(name) if trims else None
            if place is not None and cells[place] in trims:
                cells = [*cells[:place], trims[cells[place]], *cells[place + 1 :]]
        return cells


def count_encoding(path: Path, encoding: str, guessed: bool, mends: FaultCounter) -> None:
    """Count a byte order mark, and an encoding other than UTF-8."""
    if byte_order_mark(path):
        mends.note("mark", 1)
    if encoding_family(encoding) != "utf-8":
        mends.note("guess" if guessed else "encoding", 1)


def _unquoted(cell: str) -> str | None:
    """Return the content of a cell that is quoted as a whole; ``None`` for any other."""
    quoted = _QUOTED.fullmatch(cell)
    return quoted[1].replace('""', '"') if quoted else None


def write(file: AtomicFile, target: Path, *, drop: bool) -> FaultCounter:
    """Write the mended copy of an atomic file.

    Args:
        file: the file.
        target: where to write.
        drop: leave out the rows that cannot be mended; otherwise they are copied as they are.

    Returns:
        Counts of what was mended, with the first lines of the original.

    Raises:
        ValueError: a column is missing, or the file is not text.
    """
    form = file.form
    mends = FaultCounter(file.path, MENDS, encoding=form.encoding)
    file.require_header()
    file.count_file(mends)
    key = {".item": form.item_field, ".user": form.user_field}.get(file.path.suffix)
    if file.path.suffix == ".inter":
        file.require(required(form))
        rows = _interactions(file, mends)
    elif key:
        file.require({key: "token"})
        rows = _one_row_an_id(file, mends, key)
    else:
        rows = file.rows(mends)
    with open(target, "w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
        handle.write(file.header)
        for row in rows:
            if drop and not row.sound:
                mends.note("dropped", row.line, row.text)
            else:
                handle.write("\n" + row.text)
        if _ends_line(file):
            handle.write("\n")
    return mends


def _ends_line(file: AtomicFile) -> bool:
    """Tell whether the last line with content has a line end."""
    last = ""
    with open_text(file.path, file.form.encoding) as handle:
        for line in handle:
            last = line if line.strip() else last
    return last[-1:] in ("\n", "\r")


# ---------------------------------------------------------------------------------------------- rows among others
def _interactions(file: AtomicFile, mends: FaultCounter) -> Iterator[Row]:
    """Leave out rows with user, item and time of an earlier one, and bring rows into the order of time where it counts."""
    duplicates, moves = _survey(file)
    wanted = set(moves.values())
    moved = {row.line: row for row in file.rows() if row.line in wanted} if wanted else {}
    for row in file.rows(mends):
        if row.line in duplicates:
            mends.note("duplicate", row.line)
        elif row.line in moves:
            mends.note("order", row.line)
            yield moved[moves[row.line]]
        else:
            yield row


def _survey(file: AtomicFile) -> tuple[set[int], dict[int, int]]:
    """Return the lines of duplicates; and line -> line of the row that belongs there by time."""
    user_at, item_at, time_at = (file.position(name) or 0 for name in required(file.form))
    items: dict[str, int] = {}
    duplicates: set[int] = set()
    moves: dict[int, int] = {}
    block = list[tuple[int, int, float, int]]()
    with Spool(1 + file.path.stat().st_size // PART) as spool:
        for row in file.rows():
            if not row.sound:
                continue
            item = items.setdefault(row.cells[item_at], len(items))
            block.append((hash(row.cells[user_at]), item, float(row.cells[time_at]), row.line))
            if len(block) == BLOCK:
                spool.add(block)
                block = []
        spool.add(block)
        for part in filter(len, spool.parts()):
            table = part[np.argsort(part["user"], kind="stable")]
            repeated = repeats(table)[1]
            duplicates.update(repeated.tolist())
            moves |= _moves(table[~np.isin(table["line"], repeated)])
    return duplicates, moves


def _moves(table: np.ndarray) -> dict[int, int]:
    """Return line -> line of the row that belongs there, for users whose rows RecBole would not put in the order of time.

    The rows of a user share the places that they have in the file.
    """
    ranked, tied = as_recbole_sorts(table)
    wrong = tied & (ranked["time"][1:] < ranked["time"][:-1])
    table = table[np.isin(table["user"], np.unique(ranked["user"][1:][wrong]))]
    places = table[np.lexsort((table["line"], table["user"]))]["line"]
    rows = table[np.lexsort((table["line"], table["time"], table["user"]))]["line"]
    differ = places != rows
    return dict(zip(places[differ].tolist(), rows[differ].tolist(), strict=True))


def _one_row_an_id(file: AtomicFile, mends: FaultCounter, key: str) -> Iterator[Row]:
    """Join rows of the same id: the first value of each column that is not empty stays."""
    place = file.position(key) or 0
    seen, repeated = set[str](), set[str]()
    for row in file.rows():
        if row.sound:
            (repeated if row.cells[place] in seen else seen).add(row.cells[place])
    joined: dict[str, list[str]] = {}
    for row in file.rows() if repeated else ():
        if row.sound and (name := row.cells[place]) in repeated:
            before = joined.get(name, row.cells)
            joined[name] = [old if old.strip() else new for old, new in zip(before, row.cells, strict=True)]
    for row in file.rows(mends):
        if not row.sound or (name := row.cells[place]) not in repeated:
            yield row
        elif cells := joined.pop(name, None):
            yield row if cells == row.cells else replace(row, text=file.join(cells), cells=cells)
        else:
            mends.note("merged", row.line)
