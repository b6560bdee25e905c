"""Read the lines of a raw file in blocks, report damage, and count and list bad lines.

Every file becomes lines: those of plain, packed or recoded text (`unpacking`), the objects of a JSON array
(`json_records`), the rows of a table as JSON (`tables`).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

from tqdm import tqdm

from dataset_prep.amazon.file_kinds import HEAD, AmazonFormatError, table_of
from dataset_prep.amazon.json_records import is_split_json, split_json
from dataset_prep.amazon.tables import ANY_REVIEWS, Expected, Row, csv_layout, csv_rows, table_rows
from dataset_prep.amazon.unpacking import DamagedFileError, Observe, plain_text

MAX_LINE = 1 << 24  # bytes; a longer line is bad and is never completely in memory
TOO_LONG = "longer than 16 MiB"
BLOCK = 1 << 22  # bytes of lines processed at a time
LISTED = 20  # bad lines listed in the manifest; prepare.rejected.jsonl has all
FREE_BAD_LINES = 10  # accepted whatever their share, so that one line does not refuse a small file
T = TypeVar("T")


@dataclass
class LineCount:
    """Line counts of one input file.

    Attributes:
        file: name of the file.
        edition: edition as which it was read.
        sha256: hash of its bytes on disk.
        lines: number of lines.
        blank: number of lines with white space only.
        bad: number of lines that were left out.
        bad_lines: the first of these, each with ``line``, ``reason`` and its beginning, ``begins``.
        rated: whether the file has ratings; true for metadata.
    """

    file: str
    edition: str
    sha256: str = ""
    lines: int = 0
    blank: int = 0
    bad: int = 0
    bad_lines: list[dict[str, str | int]] = field(default_factory=list)
    rated: bool = True


@dataclass(frozen=True)
class Block:
    """Complete lines; of a line that is too long only the beginning.

    Attributes:
        first: number of the first line, from 1.
        lines: the lines without their line feeds.
        text: whether all lines are UTF-8.
        problems: number of each line that cannot be used -> the reason.
    """

    first: int
    lines: list[bytes]
    text: bool = True
    problems: Mapping[int, str] = field(default_factory=dict)

    def halves(self) -> tuple[Block, Block]:
        """Split the block into two."""
        middle = len(self.lines) // 2
        parts = (self.first, self.lines[:middle]), (self.first + middle, self.lines[middle:])
        left, right = (
            Block(first, lines, self.text or _is_text(b"\n".join(lines)), self.problems) for first, lines in parts
        )
        return left, right


def read_blocks(
    path: Path, count: LineCount, bar: tqdm | None = None, expected: Expected = ANY_REVIEWS
) -> Generator[Block, None, None]:
    """Yield all lines of a file in blocks; for a large file a thread reads and unpacks the next block meanwhile.

    Args:
        path: the file; its content says what it is, because downloads often have the wrong suffix.
        count: receives ``lines``, ``edition`` if the layout of the file tells it, and at the end ``sha256``.
        bar: shows the bytes read from disk.
        expected: what the user says about the file.

    Raises:
        FileNotFoundError: there is no such file.
        AmazonFormatError: the data are damaged or incomplete, or the file is of a kind that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    digest = hashlib.sha256()

    def observe(raw: bytes) -> None:
        digest.update(raw)
        if bar is not None:
            bar.update(len(raw))

    with open(path, "rb") as handle, _short_thread_switches():
        source = _blocks(path, handle, observe, count, expected)
        try:
            for block in _read_ahead(source) if path.stat().st_size > BLOCK else source:
                count.lines = block.first - 1 + len(block.lines)
                yield block
        except DamagedFileError as error:
            raise AmazonFormatError(f"{path}:{count.lines + 1}: {error}") from error
    count.sha256 = digest.hexdigest()


def _blocks(
    path: Path, handle: BinaryIO, observe: Observe, count: LineCount, expected: Expected
) -> Generator[Block, None, None]:
    """Choose how the file is cut into lines."""
    if kind := table_of(handle.read(HEAD)):
        handle.seek(0)
        while raw := handle.read(BLOCK):
            observe(raw)
        yield from _gathered(1, table_rows(path, kind, expected))
        return
    handle.seek(0)
    head, pieces = plain_text(path, handle, observe, BLOCK)
    if is_split_json(head):
        yield from _gathered(1, ((line, "") for line in split_json(pieces, MAX_LINE)))
    elif layout := csv_layout(path, head, expected):
        count.edition = layout.edition
        rows = csv_rows(path, pieces, layout, expected, MAX_LINE)
        yield from _gathered(1 + layout.header, rows)
    else:
        yield from _cut_at_lines(pieces)


def _gathered(first: int, rows: Iterator[Row]) -> Generator[Block, None, None]:
    """Gather rows to blocks."""
    lines: list[bytes] = []
    problems: dict[int, str] = {}
    size = 0
    for line, problem in rows:
        if problem:
            problems[first + len(lines)] = problem
        lines.append(line)
        size += len(line)
        if size > BLOCK:
            yield Block(first, lines, True, problems)
            first, lines, problems, size = first + len(lines), [], {}, 0
    if lines:
        yield Block(first, lines, True, problems)


@contextmanager
def _short_thread_switches() -> Iterator[None]:
    """Let threads switch sooner than after Python's 5 ms.

    Unpacking 4 MB takes 6 ms in a few calls, after each of which the thread waits for its turn; waiting took most of the
    time.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _read_ahead(source: Generator[T, None, None]) -> Iterator[T]:
    """Run `source` one step ahead in a thread (unpacking releases the interpreter lock)."""
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        try:
            upcoming = pool.submit(next, source, None)
            while (item := upcoming.result()) is not None:
                upcoming = pool.submit(next, source, None)
                yield item
        finally:
            pool.shutdown()
            source.close()


def _cut_at_lines(pieces: Iterator[bytes]) -> Generator[Block, None, None]:
    """Yield blocks of complete lines; a line longer than `MAX_LINE` is dropped while it is read."""
    number, open_line, dropped = 1, bytearray(), False
    for piece in pieces:
        start, cut = 0, piece.rfind(b"\n") + 1
        if cut:
            if dropped:
                yield Block(number, [bytes(open_line)], True, {number: TOO_LONG})
                number += 1
                open_line, start = bytearray(), piece.find(b"\n") + 1
            if start < cut:
                block = _block(number, b"".join((open_line, memoryview(piece)[start : cut - 1])))
                yield block
                number += len(block.lines)
            open_line, dropped = bytearray(), False
        if not dropped:
            open_line += memoryview(piece)[cut:]
            if len(open_line) > MAX_LINE:
                open_line, dropped = open_line[:100], True
    if dropped:
        yield Block(number, [bytes(open_line)], True, {number: TOO_LONG})
    elif open_line:
        yield _block(number, bytes(open_line))


def _block(first: int, data: bytes) -> Block:
    """Split `data`, which does not end with a line feed, into lines."""
    lines = data.split(b"\n")
    problems: dict[int, str] = {}
    if len(data) > MAX_LINE:
        problems = {number: TOO_LONG for number, line in enumerate(lines, first) if len(line) > MAX_LINE}
        lines = [line[:100] if len(line) > MAX_LINE else line for line in lines]
    return Block(first, lines, _is_text(data), problems)


def _is_text(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class BadLines:
    """Count and list the lines of one file that are left out, and refuse the file if there are too many.

    Args:
        path: the input file.
        count: receives ``bad`` and ``bad_lines``.
        limit: 0 accepts none; below 1 it is a share of the lines read so far, with `FREE_BAD_LINES` always accepted; from 1
            on it is a number.
        out: receives every bad line as one line of JSON.
    """

    def __init__(self, path: Path, count: LineCount, limit: float, out: IO[str]) -> None:
        self._path, self._count, self._limit, self._out = path, count, limit, out
        self.any_good = False  # set by whoever reads the lines

    def add(self, number: int, line: bytes, reason: str) -> None:
        """Leave a line out.

        Args:
            number: number of the line.
            line: content of the line.
            reason: why it cannot be used.

        Raises:
            AmazonFormatError: there are too many bad lines.
        """
        count, limit = self._count, self._limit
        entry: dict[str, str | int] = {
            "file": count.file,
            "line": number,
            "reason": reason,
            "begins": line[:100].decode("utf-8", "replace"),
        }
        count.bad += 1
        self._out.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if len(count.bad_lines) < LISTED:
            count.bad_lines.append({key: value for key, value in entry.items() if key != "file"})
        if count.bad > (max(FREE_BAD_LINES, limit * number) if 0 < limit < 1 else limit):
            if not self.any_good and count.bad > 1:
                self.refuse_all()
            raise AmazonFormatError(
                f"{self._path}:{number}: {reason}; the line begins {entry['begins']!r}. This is bad line {count.bad}, and "
                f"max_bad_lines is {limit}; repair or remove such lines, or raise max_bad_lines to leave them out"
            )

    def refuse_all(self) -> None:
        """Raise AmazonFormatError if there are bad lines: called if there are no good ones, so it is the wrong file."""
        count = self._count
        if count.bad:
            first = count.bad_lines[0]
            raise AmazonFormatError(
                f"{self._path}:{first['line']}: {first['reason']}; the line begins {first['begins']!r}. No line of the file "
                f"is of the {count.edition} edition; give another file, give its edition, or rename its keys or columns"
            )
