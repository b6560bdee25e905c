"""Check ``X.item`` against the interactions: RecBole needs exactly one row for each item with interactions."""

from __future__ import annotations

from pathlib import Path

from dataset_prep.checks.atomic_lines import LINE_FAULTS, MISSING, number_in, read_header, rows
from dataset_prep.checks.findings import FaultCounter, Finding
from dataset_prep.checks.interactions import InteractionSummary

_FAULTS = LINE_FAULTS | {
    "twice": (
        "error",
        "{lines} of an item that already has a row, the first is {first}: RecBole keeps the first row, our readers refuse",
        "keep one row per item",
    ),
}


def check(path: Path, summary: InteractionSummary) -> list[Finding]:
    """Check a ``.item`` file.

    Args:
        path: the file.
        summary: content of the ``.inter`` file.
    """
    header, findings = read_header(path, {"item_id": "token"})
    if header is None or "item_id" not in header.positions:
        return findings
    faults = FaultCounter(path, _FAULTS)
    item_at, numbers = header.positions["item_id"], list(header.floats().values())
    line_of: dict[bytes, int] = {}
    for number, cells in rows(path, header.width, faults, lambda _: None):
        item = cells[item_at]
        if item in MISSING:
            faults.note("no item", number, item)
            continue
        if item in line_of:
            faults.note("twice", number, item)
        line_of.setdefault(item, number)
        for position in numbers:
            if number_in(cells[position]) is None:
                faults.note("not a number", number, cells[position])
    findings += faults.findings()
    without = [item for item in summary.items if item not in line_of]
    if without:
        findings.append(
            Finding(
                "error",
                str(path),
                f"{len(without):,} of {len(summary.items):,} items with interactions have no row (first: "
                f"{_name(without[0])}): RecBole drops their interactions as soon as a model loads a column of this file",
                "add a row with the item_id and empty cells for each, or remove the file",
            )
        )
    unused = [item for item in line_of if item not in summary.items]
    if unused:
        findings.append(
            Finding(
                "warning",
                f"{path}:{line_of[unused[0]]}",
                f"{len(unused):,} rows are of items without interactions (first: {_name(unused[0])}): models that load a "
                "column of this file rank these items as well",
                'remove these rows, or set item_inter_num_interval to "[1,inf)"',
            )
        )
    if not without and not unused:
        findings.append(Finding("ok", str(path), f"one row for each of {len(line_of):,} items"))
    return findings


def _name(item: bytes) -> str:
    return item.decode("utf-8", "replace")
