"""Check every line of ``X.inter`` and the order of every user's rows.

Memory does not grow with the number of rows: rows are distributed by user over temporary files, 28 bytes per row, and
checked one file at a time. One file (some 10^6 rows) and the names of the items are in memory.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from dataset_prep.checks.atomic_lines import LINE_FAULTS, Header, number_in, read_header, rows
from dataset_prep.checks.findings import FaultCounter, Finding
from recbole_qbert.data.atomic_files import AtomicFormat
from recbole_qbert.data.item_features import READ_AS_MISSING

PART = 1 << 25  # bytes of text whose rows are in memory at a time
BLOCK = 1 << 16  # rows collected before they are written
MAX_SECONDS = 1e11  # the year 5138; larger times are milliseconds
MAX_FLOAT32 = 3.4028235e38  # RecBole keeps numbers as float32
ROW = np.dtype([("user", "<i8"), ("item", "<i4"), ("time", "<f8"), ("line", "<i8")])

_FAULTS = LINE_FAULTS | {
    "no time": (
        "error",
        "{lines} with the {time} {first}: RecBole replaces it by the mean of all times",
        "give these rows a time, or remove them",
    ),
    "endless": (
        "error",
        "{lines} with {first} or a similar value in a column of numbers",
        "write finite numbers",
    ),
    "no number": (
        "warning",
        "{lines} with no number in a column of numbers: RecBole replaces it by the mean of the column",
        "fill them in, or leave the column out of load_col",
    ),
}


@dataclass
class InteractionSummary:
    """Content of a ``.inter`` file.

    Attributes:
        items: item token -> number, in the order in which they first occur (as RecBole numbers them).
        rows: number of usable rows.
        users: number of users in these rows.
    """

    items: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    users: int = 0

    def tokens(self) -> list[str]:
        """Return the item tokens in the order in which they first occur."""
        return list(self.items)


def check(
    path: Path, progress: bool = False, form: AtomicFormat | None = None
) -> tuple[InteractionSummary | None, list[Finding]]:
    """Check a ``.inter`` file.

    Args:
        path: the file.
        progress: show a bar over its bytes.
        form: how the file is written; default: as RecBole's defaults say.

    Returns:
        ``(summary, findings)``; the summary is ``None`` if users and items cannot be found in the rows.
    """
    form = form or AtomicFormat()
    header, findings = read_header(path, required(form), form)
    if header is None or not {form.user_field, form.item_field} <= header.positions.keys():
        return None, findings
    size = path.stat().st_size
    summary, faults = InteractionSummary(), FaultCounter(path, _FAULTS, encoding=form.encoding.upper(), time=form.time_field)
    with (
        Spool(1 + size // PART) as spool,
        tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=not progress, leave=False) as bar,
    ):
        _read(rows(path, header.width, faults, bar.update, form), header, form, faults, summary, spool)
        order = Order()
        for part in spool.parts():
            order.add(part)
    summary.users = order.users
    findings += faults.findings()
    if not summary.rows:
        findings.append(Finding("error", str(path), "no usable interactions", "see the other findings, or prepare again"))
        return summary, findings
    counts = f"{summary.rows:,} interactions of {summary.users:,} users and {len(summary.items):,} items"
    return summary, [*findings, Finding("ok", str(path), counts), *order.findings(path, form.time_field in header.floats())]


def required(form: AtomicFormat) -> dict[str, str]:
    """Return name -> type of the columns that a ``.inter`` file must have."""
    return {form.user_field: "token", form.item_field: "token", form.time_field: "float"}


def _read(
    lines: Iterator[tuple[int, list[str]]],
    header: Header,
    form: AtomicFormat,
    faults: FaultCounter,
    summary: InteractionSummary,
    spool: Spool,
) -> None:
    """Check the cells of all rows; pass users, items, times and line numbers to the spool."""
    user_at, item_at = header.positions[form.user_field], header.positions[form.item_field]
    numbers = header.floats()
    time_at = numbers.pop(form.time_field, None)
    items, block = summary.items, list[tuple[int, int, float, int]]()
    for number, cells in lines:
        user, item = cells[user_at], cells[item_at]
        if user in READ_AS_MISSING:
            faults.note("no user", number, user)
            continue
        if user[0] <= " " or user[-1] <= " ":
            faults.note("spaces", number, user)
        code = items.get(item)
        if code is None:
            if item in READ_AS_MISSING:
                faults.note("no item", number, item)
                continue
            if item == "[PAD]":
                faults.note("padding", number, item)
            if item != item.strip():
                faults.note("spaces", number, item)
            code = items[item] = len(items)
        for position in numbers.values():
            _check_number(cells[position], number, faults, "no number")
        time = _check_number(cells[time_at], number, faults, "no time") if time_at is not None else 0.0
        block.append((hash(user), code, time, number))
        if len(block) == BLOCK:
            spool.add(block)
            block = []
        summary.rows += 1
    spool.add(block)


def _check_number(cell: str, line: int, faults: FaultCounter, missing: str) -> float:
    """Return the number in a cell; count a fault and return NaN if it has no finite number."""
    value = number_in(cell)
    if value is None:
        faults.note("not a number", line, cell)
    elif abs(value) < MAX_FLOAT32:
        return value
    else:
        faults.note(missing if value != value else "endless", line, cell)
    return math.nan


class Spool:
    """Rows in temporary files, all rows of a user in one file.

    Users are identified by a 64-bit hash. The probability that two of 10^8 users share a hash is about 1 in 4,000.
    """

    def __init__(self, count: int) -> None:
        self.count = min(count, 256)  # open files

    def __enter__(self) -> Spool:
        with ExitStack() as stack:
            self.files: list[BinaryIO] = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(self.count)]
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add(self, block: list[tuple[int, int, float, int]]) -> None:
        """Write rows of (user hash, item number, time, line)."""
        table = np.array(block, dtype=ROW)
        owner = table["user"] % self.count
        for part in np.unique(owner):
            self.files[part].write(table[owner == part].tobytes())

    def parts(self) -> Iterator[np.ndarray]:
        """Yield ``[rows]`` of :data:`ROW`, in the order of the file."""
        for handle in self.files:
            handle.seek(0)
            yield np.frombuffer(handle.read(), dtype=ROW)


def repeats(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of an item that the user has already.

    Args:
        table: rows of `ROW`, all of some users.

    Returns:
        Lines of the rows whose user and item an earlier line has; and of those among them whose time it has, too.
    """
    pairs = table[np.lexsort((table["line"], table["item"], table["user"]))]
    same = (pairs["user"][1:] == pairs["user"][:-1]) & (pairs["item"][1:] == pairs["item"][:-1])
    again = pairs["line"][1:][same]
    pairs = pairs[np.r_[False, same] | np.r_[same, False]]
    pairs = pairs[np.lexsort((pairs["line"], pairs["time"], pairs["item"], pairs["user"]))]
    same = np.logical_and.reduce([pairs[name][1:] == pairs[name][:-1] for name in ("user", "item", "time")])
    return again, pairs["line"][1:][same]


def as_recbole_sorts(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort rows by user and float32 time, as RecBole does. Its sort is stable: rows of one float32 time stay in file order.

    Args:
        table: rows of `ROW`, all of some users.

    Returns:
        The rows that have a time; and whether each but the first has the user and float32 time of the one before.
    """
    timed = table[~np.isnan(table["time"])]
    with np.errstate(over="ignore"):
        narrowed = timed["time"].astype(np.float32)
    ranked = np.lexsort((timed["line"], narrowed, timed["user"]))
    timed, narrowed = timed[ranked], narrowed[ranked]
    return timed, (timed["user"][1:] == timed["user"][:-1]) & (narrowed[1:] == narrowed[:-1])


@dataclass
class Tally:
    """A number of rows, and the first line of the file that holds one of them."""

    count: int = 0
    line: int = 0

    def add(self, lines: np.ndarray) -> None:
        """Count the rows with these lines."""
        if len(lines):
            self.line = min(self.line or int(lines.min()), int(lines.min()))
            self.count += len(lines)


@dataclass
class Order:
    """Statistics of users and of the order in which RecBole will see their items."""

    users: int = 0
    untested: Tally = field(default_factory=Tally)  # users with fewer than 3 rows
    repeated: Tally = field(default_factory=Tally)  # rows of an item that the user already has
    duplicates: Tally = field(default_factory=Tally)  # those of them of the same time
    reversed: Tally = field(default_factory=Tally)  # rows that RecBole puts before an earlier one
    unsorted: Tally = field(default_factory=Tally)  # rows that follow a later one in the file
    merged: int = 0  # neighbours of different times that are equal in float32
    equal: int = 0  # neighbours of the same time
    latest: float = 0.0

    def add(self, table: np.ndarray) -> None:
        """Add all rows of some users."""
        table = table[np.argsort(table["user"], kind="stable")]
        if not len(table):
            return
        start = np.flatnonzero(np.r_[True, table["user"][1:] != table["user"][:-1]])
        count = np.diff(np.r_[start, len(table)])
        self.users += len(start)
        self.untested.add(table["line"][start[count < 3]])
        again, duplicates = repeats(table)
        self.repeated.add(again)
        self.duplicates.add(duplicates)
        same_user = table["user"][1:] == table["user"][:-1]
        self.unsorted.add(table["line"][1:][same_user & (table["time"][1:] < table["time"][:-1])])
        timed, tied = as_recbole_sorts(table)
        later, earlier = timed["time"][1:], timed["time"][:-1]
        self.reversed.add(timed["line"][1:][tied & (later < earlier)])
        self.merged += int((tied & (later != earlier)).sum())
        self.equal += int((tied & (later == earlier)).sum())
        self.latest = max(self.latest, float(timed["time"].max(initial=0.0)))

    def findings(self, path: Path, timed: bool) -> list[Finding]:
        """Return the findings.

        Args:
            path: the file.
            timed: the file has a column of timestamps.
        """
        findings = []
        if self.untested.count:
            findings.append(
                Finding(
                    "warning",
                    f"{path}:{self.untested.line}",
                    f"{self.untested.count:,} of {self.users:,} users have fewer than 3 interactions: leave-one-out never "
                    "tests them, and does not use those with 1 at all",
                    "nothing, or prepare the data with at least 3 interactions per user",
                )
            )
        if self.duplicates.count:
            findings.append(
                Finding(
                    "warning",
                    f"{path}:{self.duplicates.line}",
                    f"{self.duplicates.count:,} rows of a user, item and time that an earlier row has, too",
                    "keep the first row of each; 'doctor --fix' writes such a copy",
                )
            )
        if self.repeated.count > self.duplicates.count:
            findings.append(
                Finding(
                    "warning",
                    f"{path}:{self.repeated.line}",
                    f"{self.repeated.count:,} rows of an item that their user already has",
                    "keep the first row of each pair if the data mean 'has it or not'; otherwise set repeat_penalty to none",
                )
            )
        return [*findings, *(self._times(path) if timed else [])]

    def _times(self, path: Path) -> Iterator[Finding]:
        gap = float(np.spacing(np.float32(self.latest)))
        coarse = f"float32, to which RecBole rounds times, has steps of {gap:g} at {self.latest:.10g}"
        if self.latest > MAX_SECONDS:
            yield Finding(
                "warning",
                str(path),
                f"timestamps go up to {self.latest:.15g}, which are not seconds but milliseconds or smaller units",
                "divide them by 1,000 (or 1,000,000)",
            )
        if self.reversed.count:
            yield Finding(
                "warning",
                f"{path}:{self.reversed.line}",
                f"{self.reversed.count:,} rows come to RecBole after a later one: {coarse}, so it takes close times as "
                "equal and keeps the order of the file, which is not the order of time here",
                "sort the file by time, stably; 'doctor --fix' writes such a copy",
            )
        elif self.merged or self.equal:
            yield Finding(
                "ok",
                str(path),
                f"the order of the file decides between {self.equal:,} neighbours of equal and {self.merged:,} of close "
                f"times ({coarse}); it is the order of time",
            )
        elif self.unsorted.count:
            yield Finding(
                "ok",
                f"{path}:{self.unsorted.line}",
                "rows of some users are not in the order of time; RecBole sorts them, and no two of their times are equal",
            )
