"""Check ``X.item`` against the interactions: RecBole needs exactly one row for each item with interactions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dataset_prep.checks.atomic_lines import LINE_FAULTS, Header, number_in, read_header, rows
from dataset_prep.checks.findings import FaultCounter, Finding
from dataset_prep.checks.interactions import InteractionSummary
from recbole_qbert.data import item_features as features
from recbole_qbert.data import text_columns
from recbole_qbert.data.atomic_files import AtomicFormat, Column
from recbole_qbert.data.atomic_files import Header as AtomicHeader
from recbole_qbert.data.item_features import READ_AS_MISSING

_FAULTS = LINE_FAULTS | {
    "twice": (
        "error",
        "{lines} of an item that already has a row, the first is {first}: RecBole keeps the first row, our readers refuse",
        "keep one row per item; 'doctor --fix' writes such a copy",
    ),
}


def check(
    path: Path,
    summary: InteractionSummary,
    form: AtomicFormat | None = None,
    text_fields: Sequence[str] | None = None,
) -> list[Finding]:
    """Check a ``.item`` file.

    Args:
        path: the file.
        summary: content of the ``.inter`` file.
        form: how the file is written; default: as RecBole's defaults say.
        text_fields: columns that the built-in encoder reads; default: those that it knows by name.
    """
    form = form or AtomicFormat()
    header, findings = read_header(path, {form.item_field: "token"}, form)
    if header is None or form.item_field not in header.positions:
        return findings
    faults = FaultCounter(path, _FAULTS, encoding=form.encoding.upper())
    item_at, numbers = header.positions[form.item_field], list(header.floats().values())
    line_of: dict[str, int] = {}
    for number, cells in rows(path, header.width, faults, lambda _: None, form):
        item = cells[item_at]
        if item in READ_AS_MISSING:
            faults.note("no item", number, item)
            continue
        if item != item.strip():
            faults.note("spaces", number, item)
        if item in line_of:
            faults.note("twice", number, item)
        line_of.setdefault(item, number)
        for position in numbers:
            if number_in(cells[position]) is None:
                faults.note("not a number", number, cells[position])
    findings += [*faults.findings(), *_texts(path, header, form, text_fields or ())]
    without = [item for item in summary.items if item not in line_of]
    if without:
        findings.append(
            Finding(
                "error",
                str(path),
                f"{len(without):,} of {len(summary.items):,} items with interactions have no row (first: "
                f"{without[0]}): RecBole drops their interactions as soon as a model loads a column of this file",
                "add a row with the id and empty cells for each, or remove the file",
            )
        )
    unused = [item for item in line_of if item not in summary.items]
    if unused:
        findings.append(
            Finding(
                "warning",
                f"{path}:{line_of[unused[0]]}",
                f"{len(unused):,} rows are of items without interactions (first: {unused[0]}): models that load a "
                "column of this file rank these items as well",
                'remove these rows, or set item_inter_num_interval to "[1,inf)"',
            )
        )
    if not without and not unused:
        findings.append(Finding("ok", str(path), f"one row for each of {len(line_of):,} items"))
    return findings


def _texts(path: Path, header: Header, form: AtomicFormat, fields: Sequence[str]) -> Iterator[Finding]:
    """Warn if the built-in encoder, which data without features go to, would find no text in the columns that there are."""
    if features.available(path.parent, path.stem):
        return
    columns = AtomicHeader(path, tuple(Column(name, kind) for name, kind in header.types.items()))
    wanted = tuple(fields) or text_columns.AUTO
    problem, way_out = "", "name columns of text with text_fields, or bring features of your own"
    try:
        if not text_columns.text_columns(columns, wanted, form):
            there = [name for name in columns.names if name != form.item_field]
            problem = f"no column is known for text, and items get no text features; there are {', '.join(there) or 'none'}"
    except ValueError as error:
        problem = str(error)
    if problem:
        yield Finding("warning", f"{path}:1", problem, way_out)
