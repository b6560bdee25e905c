"""``X.item`` against the interactions: RecBole wants exactly one row for each item that somebody has."""

from __future__ import annotations

from pathlib import Path

from dataset_prep.checks.atomic_lines import KINDS, MISSING, number_in, read_header, rows
from dataset_prep.checks.findings import Faults, Finding
from dataset_prep.checks.interactions import Seen

_KINDS = KINDS | {
    "twice": (
        "error",
        "{lines} of an item that has a row already, the first is {first}: RecBole keeps the first row, our readers refuse",
        "keep one row an item",
    ),
}


def check(path: Path, seen: Seen) -> list[Finding]:
    """Look at a ``.item`` file.

    Args:
        path: the file.
        seen: the interactions.
    """
    header, found = read_header(path, {"item_id": "token"})
    if header is None or "item_id" not in header.places:
        return found
    faults = Faults(path, _KINDS)
    item_at, numbers = header.places["item_id"], list(header.floats().values())
    listed: dict[bytes, int] = {}
    for number, cells in rows(path, header.width, faults, lambda _: None):
        item = cells[item_at]
        if item in MISSING:
            faults.note("no item", number, item)
            continue
        if item in listed:
            faults.note("twice", number, item)
        listed.setdefault(item, number)
        for at in numbers:
            if number_in(cells[at]) is None:
                faults.note("not a number", number, cells[at])
    found += faults.findings()
    without = [item for item in seen.items if item not in listed]
    if without:
        found.append(
            Finding(
                "error",
                str(path),
                f"{len(without):,} of {len(seen.items):,} items with interactions have no row (first: {_name(without[0])}): "
                "RecBole drops their interactions as soon as a model loads a column of this file",
                "add a row with the item_id and empty cells for each, or remove the file",
            )
        )
    idle = [item for item in listed if item not in seen.items]
    if idle:
        found.append(
            Finding(
                "warning",
                f"{path}:{listed[idle[0]]}",
                f"{len(idle):,} rows are of items without interactions (first: {_name(idle[0])}): models that load a column "
                "of this file rank them, too, and nobody has chosen them",
                'remove these rows, or set item_inter_num_interval to "[1,inf)"',
            )
        )
    if not without and not idle:
        found.append(Finding("ok", str(path), f"one row for each of {len(listed):,} items"))
    return found


def _name(item: bytes) -> str:
    return item.decode("utf-8", "replace")
