"""Stage a raw file: write the columns that later steps need to Parquet, and list the bad lines; done once, then reused.

A staged file is a folder::

    part.parquet     reviews:  line, user_id, item_id, rating, seconds
                     metadata: line, item_id, pictured, fields (JSON of `Metadata`)
    rejected.jsonl   the lines that were left out
    done.json        the inputs and line counts; written last, so that it marks a complete folder

The same function runs in this process and in the tasks of a cluster.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from tqdm import tqdm

from dataset_prep.amazon.cleaning import NA_WORDS, BadIdError
from dataset_prep.amazon.editions import (
    MAX_SECONDS,
    PROBED,
    RECBOLE_FIELDS,
    Fields,
    ReviewLines,
    detect,
    has_ratings,
    metadata_lines,
    review_lines,
)
from dataset_prep.amazon.file_kinds import AmazonFormatError
from dataset_prep.amazon.line_reader import BadLines, Block, LineCount, read_blocks
from dataset_prep.amazon.tables import Expected

STAGING_VERSION = 2  # raise it when the same input gives other rows, so that older folders are not reused
ROWS = 200_000  # rows of a row group
SOURCE = 1 << 40  # distance between the line numbers of several files that are read as one

REVIEWS = pa.schema(
    [("line", pa.int64()), ("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.float64()),
     ("seconds", pa.float64())]
)  # fmt: skip
METADATA = pa.schema([("line", pa.int64()), ("item_id", pa.string()), ("pictured", pa.bool_()), ("fields", pa.string())])


@dataclass(frozen=True)
class Task:
    """A file to stage.

    Attributes:
        path: the raw file.
        kind: ``reviews`` or ``metadata``.
        edition: edition of the file; None to detect it from the first lines.
        max_bad_lines: see `BadLines`.
        folder: output folder.
        source: number of the file among those read as one; it precedes the line numbers.
        fields: names of the columns of a RecBole file.
    """

    path: Path
    kind: str
    edition: str | None
    max_bad_lines: float
    folder: Path
    source: int = 0
    fields: Fields = RECBOLE_FIELDS


def stage(task: Task, progress: bool) -> LineCount:
    """Stage a file, unless the folder already holds the same.

    Raises:
        FileNotFoundError: there is no such file.
        AmazonFormatError: data are damaged, there are too many bad lines, or RecBole cannot read an id.
    """
    inputs = {"version": STAGING_VERSION, "kind": task.kind, "edition": task.edition, "source": task.source}
    inputs |= {"file": task.path.name, "max_bad_lines": task.max_bad_lines, "fields": [*task.fields]}
    if (count := _reusable(task, inputs)) is not None:
        return count
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True)
    size = task.path.stat().st_size
    with (
        tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {task.kind}", disable=not progress) as bar,
        open(task.folder / "rejected.jsonl", "w", encoding="utf-8") as rejected,
        pq.ParquetWriter(
            task.folder / "part.parquet", REVIEWS if task.kind == "reviews" else METADATA, use_dictionary=False
        ) as writer,
    ):
        count = _stage(task, bar, rejected, writer)
    partial = task.folder / "done.part"
    partial.write_text(json.dumps({"inputs": inputs, "count": asdict(count)}), encoding="utf-8")
    partial.rename(task.folder / "done.json")
    return count


def stage_or_error(task: Task) -> LineCount | ValueError | FileNotFoundError:
    """Run `stage` in a task of a cluster; return an error as the result, so that Spark does not wrap it."""
    try:
        return stage(task, progress=False)
    except (ValueError, FileNotFoundError) as error:
        return error


def _reusable(task: Task, inputs: dict[str, Any]) -> LineCount | None:
    """Return the counts of an earlier, killed run, if the file and all inputs are the same."""
    try:
        done = json.loads((task.folder / "done.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if done["inputs"] != inputs:
        return None
    with open(task.path, "rb") as handle:
        digest = hashlib.sha256()
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return LineCount(**done["count"]) if digest.hexdigest() == done["count"]["sha256"] else None


def _stage(task: Task, bar: tqdm, rejected: IO[str], writer: pq.ParquetWriter) -> LineCount:
    count = LineCount(task.path.name, "")
    bad = BadLines(task.path, count, task.max_bad_lines, rejected)
    batches: list[pa.RecordBatch] = []
    good_lines = 0
    reader: _Reviews | _Metadata | None = None
    expected = Expected(task.kind, task.edition, tuple(task.fields))
    with closing(read_blocks(task.path, count, bar, expected)) as blocks:
        for block in blocks:
            if reader is None:
                first = block.lines[:PROBED]
                count.edition = task.edition or count.edition or detect(first, task.fields)
                if task.kind == "reviews":
                    count.rated = has_ratings(count.edition, first, task.fields)
                try:
                    reader = (_Reviews if task.kind == "reviews" else _Metadata)(count, bad, first[0], task)
                except ValueError as error:
                    raise AmazonFormatError(f"{task.path}:1: {error}") from None
            try:
                new_batches = reader.batches(block)
            except BadIdError as error:
                raise AmazonFormatError(f"{task.path}:{reader.number}: {error}") from None
            good_lines += sum(batch.num_rows for batch in new_batches)
            batches += new_batches
            if sum(batch.num_rows for batch in batches) >= ROWS:
                writer.write_table(pa.Table.from_batches(batches))
                batches = []
    if batches:
        writer.write_table(pa.Table.from_batches(batches))
    if not good_lines:
        bad.refuse_all()
    return count


class _Reader:
    """Iterate over the lines of a block, without blank lines and the header.

    Attributes:
        number: number of the current line.
    """

    def __init__(self, count: LineCount, bad: BadLines, offset: int) -> None:
        self.number, self.header = 0, False
        self._count, self._bad, self._offset = count, bad, offset

    def checked_lines(self, block: Block) -> Iterator[bytes]:
        for self.number, line in enumerate(block.lines, block.first):
            if self.number in block.problems:
                self.reject(line, block.problems[self.number])
            elif not line.strip():
                self._count.blank += 1
            elif not (self.header and self.number == 1):
                yield line

    def reject(self, line: bytes, reason: object) -> None:
        self._bad.add(self.number, line, str(reason))


class _Reviews(_Reader):
    """Convert blocks of lines to rows of reviews."""

    def __init__(self, count: LineCount, bad: BadLines, first_line: bytes, task: Task) -> None:
        super().__init__(count, bad, task.source * SOURCE)
        self._lines = review_lines(count.edition, first_line, task.fields, count.rated)
        self.header = self._lines.header

    def batches(self, block: Block) -> list[pa.RecordBatch]:
        """Use the quick parser where possible; around a line that needs all checks, halve the block repeatedly."""
        columns = _quick_columns(block, self._lines)
        self._bad.any_good |= columns is not None
        if columns is None and self._lines.quick is not None and len(block.lines) > 64:
            left, right = block.halves()
            return self.batches(left) + self.batches(right)
        if columns is None:
            rows: list[tuple[int, str, str, float | None, float]] = []
            for line in self.checked_lines(block):
                try:
                    rows.append((self.number, *self._lines.parse(line)))
                    self._bad.any_good = True
                except ValueError as error:
                    self.reject(line, error)
            columns = list(zip(*rows, strict=True)) if rows else [[]] * 5
        number, *rest = columns
        return [pa.record_batch([pa.array(np.asarray(number, np.int64) + self._offset), *rest], schema=REVIEWS)]


class _Metadata(_Reader):
    """Convert blocks of lines to rows of products."""

    def __init__(self, count: LineCount, bad: BadLines, first_line: bytes, task: Task) -> None:
        super().__init__(count, bad, task.source * SOURCE)
        self._parse = metadata_lines(count.edition, first_line, task.fields)
        self.header = count.edition == "recbole" and not first_line.lstrip().startswith(b"{")

    def batches(self, block: Block) -> list[pa.RecordBatch]:
        """Make one batch of a block."""
        rows: list[tuple[int, str, bool, str]] = []
        for line in self.checked_lines(block):
            try:
                item, fields = self._parse(line)
            except ValueError as error:
                self.reject(line, error)
            else:
                row = self.number + self._offset, item, bool(fields.image_urls), msgspec.json.encode(fields).decode()
                rows.append(row)
                self._bad.any_good = True
        columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[]] * 4
        return [pa.record_batch(columns, schema=METADATA)]


def _quick_columns(block: Block, lines: ReviewLines) -> list[Any] | None:
    """Parse a block in which every line is an ordinary valid review into columns; None if any line may not be.

    Most of the time is spent here: about a microsecond per line.
    """
    quick = lines.quick
    if quick is None or block.problems or not block.text:  # unused keys are skipped, but must be UTF-8
        return None
    try:
        rows = [quick(line) for line in block.lines]
    except (msgspec.MsgspecError, RecursionError):
        return None
    users, items = [row.user for row in rows], [row.item for row in rows]
    rating = np.array([row.rating for row in rows]) + 0.0
    time = np.array([row.time for row in rows])
    low, high = (-np.inf, MAX_SECONDS) if lines.per_second == 1 else (MAX_SECONDS, MAX_SECONDS * lines.per_second)
    if not (np.isfinite(rating).all() and (np.isfinite(time) & (low < time) & (time < high)).all()):
        return None
    if not (NA_WORDS.isdisjoint(users) and NA_WORDS.isdisjoint(items)):
        return None
    user_ids, item_ids = _ids(users), _ids(items)
    if user_ids is None or item_ids is None:
        return None
    return [np.arange(block.first, block.first + len(rows)), user_ids, item_ids, rating, time / lines.per_second + 0.0]


def _ids(ids: list[str]) -> pa.Array | None:
    """Make an Arrow array of ids that are ASCII words; None if one is not. Eight times as fast as `pa.array`."""
    joined = "".join(ids)
    if not (joined.isascii() and joined.replace("_", "").isalnum()):
        return None
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    if not lengths.all():
        return None
    ends = np.zeros(len(ids) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), pa.py_buffer(joined.encode()))
