"""``X.inter``: every line, every user's order, in memory that does not grow with the number of rows.

Rows are spread over temporary files by user, 28 bytes a row, and looked at one part after another. What stays in memory is
one part (some 10^6 rows) and the names of the items.
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

from dataset_prep.checks.atomic_lines import KINDS, MISSING, Header, number_in, read_header, rows
from dataset_prep.checks.findings import Faults, Finding

REQUIRED = {"user_id": "token", "item_id": "token", "timestamp": "float"}
PART = 1 << 25  # bytes of text whose rows are held at a time
BLOCK = 1 << 16  # rows that wait to be written
MAX_SECONDS = 1e11  # the year 5138; larger times are milliseconds
ROW = np.dtype([("user", "<i8"), ("item", "<i4"), ("time", "<f8"), ("line", "<i8")])

_KINDS = KINDS | {
    "no time": (
        "error",
        "{lines} with the timestamp {first}: RecBole puts the mean of all times in its place",
        "give these rows a time, or remove them",
    ),
    "endless": (
        "error",
        "{lines} with {first} or the like in a column of numbers",
        "write finite numbers",
    ),
    "no number": (
        "warning",
        "{lines} with no number in a column of numbers: RecBole puts the mean of the column in its place",
        "fill them in, or leave the column out of load_col",
    ),
}


@dataclass
class Seen:
    """What a ``.inter`` file holds.

    Attributes:
        items: item token -> number, in the order in which they first occur (as RecBole numbers them).
        rows: usable rows.
        users: users of these.
    """

    items: dict[bytes, int] = field(default_factory=dict)
    rows: int = 0
    users: int = 0

    def tokens(self) -> list[str]:
        """Item tokens in the order in which they first occur."""
        return [item.decode("utf-8", "replace") for item in self.items]


def check(path: Path, progress: bool = False) -> tuple[Seen | None, list[Finding]]:
    """Look at a ``.inter`` file.

    Args:
        path: the file.
        progress: show a bar over its bytes.

    Returns:
        ``(what it holds, findings)``; ``None`` when its rows cannot be told apart.
    """
    header, found = read_header(path, REQUIRED)
    if header is None or not {"user_id", "item_id"} <= header.places.keys():
        return None, found
    size = path.stat().st_size
    seen, faults = Seen(), Faults(path, _KINDS)
    with (
        Spool(1 + size // PART) as spool,
        tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=not progress, leave=False) as bar,
    ):
        _read(rows(path, header.width, faults, bar.update), header, faults, seen, spool)
        order = Order()
        for part in spool.parts():
            order.add(part)
    seen.users = order.users
    found += faults.findings()
    if not seen.rows:
        found.append(Finding("error", str(path), "no usable interactions", "see above, or prepare the data again"))
        return seen, found
    what = f"{seen.rows:,} interactions of {seen.users:,} users and {len(seen.items):,} items"
    return seen, [*found, Finding("ok", str(path), what), *order.findings(path, "timestamp" in header.floats())]


def _read(
    lines: Iterator[tuple[int, list[bytes]]],
    header: Header,
    faults: Faults,
    seen: Seen,
    spool: Spool,
) -> None:
    """Check the cells of all rows, and hand users, items, times and line numbers to the spool."""
    user_at, item_at = header.places["user_id"], header.places["item_id"]
    numbers = header.floats()
    time_at = numbers.pop("timestamp", None)
    items, block = seen.items, list[tuple[int, int, float, int]]()
    for number, cells in lines:
        user, item = cells[user_at], cells[item_at]
        if user in MISSING:
            faults.note("no user", number, user)
            continue
        code = items.get(item)
        if code is None:
            if item in MISSING:
                faults.note("no item", number, item)
                continue
            if item == b"[PAD]":
                faults.note("padding", number, item)
            code = items[item] = len(items)
        for at in numbers.values():
            _check_number(cells[at], number, faults, "no number")
        time = _check_number(cells[time_at], number, faults, "no time") if time_at is not None else 0.0
        block.append((hash(user), code, time, number))
        if len(block) == BLOCK:
            spool.add(block)
            block = []
        seen.rows += 1
    spool.add(block)


def _check_number(cell: bytes, line: int, faults: Faults, missing: str) -> float:
    """The number of a cell; NaN where there is none that could be used."""
    value = number_in(cell)
    if value is None:
        faults.note("not a number", line, cell)
    elif math.isfinite(value):
        return value
    else:
        faults.note(missing if value != value else "endless", line, cell)
    return math.nan


class Spool:
    """Rows, spread over temporary files so that all rows of a user are in one.

    Users are told apart by a 64-bit hash: two of 10^8 would be taken for one with a chance of about 1 in 4,000.
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
        """Write rows of user hash, item number, time and line."""
        table = np.array(block, dtype=ROW)
        owner = table["user"] % self.count
        for part in np.unique(owner):
            self.files[part].write(table[owner == part].tobytes())

    def parts(self) -> Iterator[np.ndarray]:
        """``[rows]`` of :data:`ROW`, in the order of the file."""
        for handle in self.files:
            handle.seek(0)
            yield np.frombuffer(handle.read(), dtype=ROW)


@dataclass
class Tally:
    """How many there are, and the smallest line of the file that is about one."""

    count: int = 0
    line: int = 0

    def add(self, lines: np.ndarray) -> None:
        """Count the rows with these lines."""
        if len(lines):
            self.line = min(self.line or int(lines.min()), int(lines.min()))
            self.count += len(lines)


@dataclass
class Order:
    """Users, and the order in which RecBole will see their items."""

    users: int = 0
    untested: Tally = field(default_factory=Tally)  # users with fewer than 3 rows
    again: Tally = field(default_factory=Tally)  # rows of an item that the user has already
    turned: Tally = field(default_factory=Tally)  # rows that RecBole puts before an earlier one
    unsorted: Tally = field(default_factory=Tally)  # rows that stand after a later one
    narrow: int = 0  # neighbours that float32 makes one
    equal: int = 0  # neighbours of the same time
    latest: float = 0.0

    def add(self, table: np.ndarray) -> None:
        """Take in all rows of some users."""
        table = table[np.argsort(table["user"], kind="stable")]
        if not len(table):
            return
        start = np.flatnonzero(np.r_[True, table["user"][1:] != table["user"][:-1]])
        count = np.diff(np.r_[start, len(table)])
        self.users += len(start)
        self.untested.add(table["line"][start[count < 3]])
        pairs = table[np.lexsort((table["line"], table["item"], table["user"]))]
        repeated = (pairs["user"][1:] == pairs["user"][:-1]) & (pairs["item"][1:] == pairs["item"][:-1])
        self.again.add(pairs["line"][1:][repeated])
        timed = table[~np.isnan(table["time"])]
        with np.errstate(over="ignore"):
            narrowed = timed["time"].astype(np.float32)
        same_user = timed["user"][1:] == timed["user"][:-1]
        self.unsorted.add(timed["line"][1:][same_user & (timed["time"][1:] < timed["time"][:-1])])
        # RecBole sorts by user and float32 time, and its sort is stable: rows of one float32 time stay as they stand.
        ranked = np.lexsort((timed["line"], narrowed, timed["user"]))
        timed, narrowed = timed[ranked], narrowed[ranked]
        tied = (timed["user"][1:] == timed["user"][:-1]) & (narrowed[1:] == narrowed[:-1])
        later, earlier = timed["time"][1:], timed["time"][:-1]
        self.turned.add(timed["line"][1:][tied & (later < earlier)])
        self.narrow += int((tied & (later != earlier)).sum())
        self.equal += int((tied & (later == earlier)).sum())
        self.latest = max(self.latest, float(timed["time"].max(initial=0.0)))

    def findings(self, path: Path, timed: bool) -> list[Finding]:
        """What to say of it."""
        found = []
        if self.untested.count:
            found.append(
                Finding(
                    "warning",
                    f"{path}:{self.untested.line}",
                    f"{self.untested.count:,} of {self.users:,} users have fewer than 3 interactions: leave-one-out never "
                    "tests them, and with 1 they are not used at all",
                    "nothing, or prepare the data with a minimum of 3 or more interactions a user",
                )
            )
        if self.again.count:
            found.append(
                Finding(
                    "warning",
                    f"{path}:{self.again.line}",
                    f"{self.again.count:,} rows of an item that their user has already",
                    "keep the first of each if the data mean 'has it or not'; otherwise set repeat_penalty to none",
                )
            )
        return [*found, *(self._times(path) if timed else [])]

    def _times(self, path: Path) -> Iterator[Finding]:
        gap = float(np.spacing(np.float32(self.latest)))
        coarse = f"float32, to which RecBole narrows times, is {gap:g} wide at {self.latest:.10g}"
        if self.latest > MAX_SECONDS:
            yield Finding(
                "warning",
                str(path),
                f"timestamps go up to {self.latest:.15g}, which are no seconds but milliseconds or less",
                "divide them by 1,000 (or 1,000,000)",
            )
        if self.turned.count:
            yield Finding(
                "warning",
                f"{path}:{self.turned.line}",
                f"{self.turned.count:,} rows come to RecBole after a later one: {coarse}, so near times are equal to it and "
                "keep the order of the file, which is not the order of time here",
                "sort the file by timestamp, stably",
            )
        elif self.narrow or self.equal:
            yield Finding(
                "ok",
                str(path),
                f"the order of the file decides between {self.equal:,} neighbours of equal and {self.narrow:,} of near "
                f"times ({coarse}); it is the order of time",
            )
        elif self.unsorted.count:
            yield Finding(
                "ok",
                f"{path}:{self.unsorted.line}",
                "rows of some users do not stand in the order of time; RecBole sorts them, and no two are equal to it",
            )
