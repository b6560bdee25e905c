"""Refuse ``.inter`` files that RecBole would misread in silence.

RecBole drops interactions whose user or item reads as 'missing' (``NA``), puts the mean of all times where a time is
missing, and sorts by a time of infinity as by any other. Each of these changes histories without a word.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path

import numpy as np

from recbole_qbert.data.atomic_files import AtomicFormat, Header, real_encoding
from recbole_qbert.data.item_features import READ_AS_MISSING, check_token

BLOCK = 65_536  # rows that are screened at a time


def check_interactions(path: Path, form: AtomicFormat) -> Header:
    """Check that RecBole reads every interaction of a file as what it is.

    The file is screened in blocks, which takes half a second for a million rows. Only a file with a fault is read row by
    row, to name the line.

    Args:
        path: the ``.inter`` file.
        form: how it is written.

    Returns:
        Its columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file, the line and the value: a column is missing or of another type, a row has more or fewer
            cells than the header, a user or item reads as missing, or a time is not a finite number.
    """
    header = form.header(path)
    positions = header.positions(form.fields)
    for field, kind in zip(form.fields, ("token", "token", "float"), strict=True):
        if header.type_of(field) != kind:
            raise ValueError(
                f"{path}:1: column {field} has type {header.type_of(field) or 'none'!r}; it must be {field}:{kind}"
            )
    if not _screen(path, form, len(header.columns), positions):
        for line, cells in form.rows(path, form.fields):
            _check_row(f"{path}:{line}", cells, form)
    return header


def _screen(path: Path, form: AtomicFormat, width: int, positions: Sequence[int]) -> bool:
    """Tell whether no row has a fault; False also where that is not sure."""
    user, item, time = map(itemgetter, positions)
    with open(path, encoding=real_encoding(path, form.encoding), newline="") as handle:
        rows = csv.reader(handle, delimiter=form.field_separator, strict=True)
        try:
            next(rows, None)
            while block := list(islice(rows, BLOCK)):
                if set(map(len, block)) != {width}:
                    block = [row for row in block if len(row) > 1 or "".join(row).strip()]
                sound = (
                    set(map(len, block)) <= {width}
                    and READ_AS_MISSING.isdisjoint(map(user, block))
                    and READ_AS_MISSING.isdisjoint(map(item, block))
                    and _are_times(list(map(time, block)))
                )
                if not sound:
                    return False
        except (ValueError, csv.Error):
            return False
    return True


def _check_row(where: str, cells: Sequence[str], form: AtomicFormat) -> None:
    user, item, time = cells
    check_token(user, where, form.user_field)
    check_token(item, where, form.item_field)
    try:
        sound = _are_times([time])
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(
            f"{where}: {form.time_field} is {time!r}, so the place of the interaction in its history is unknown; give it a "
            "finite number, or remove the row"
        )


def _are_times(cells: Sequence[str]) -> bool:
    """Tell whether all cells are numbers that stay finite as float32, in which RecBole keeps times.

    Raises:
        ValueError: a cell is not a number.
    """
    text = "".join(cells)
    if "_" in text or not text.isascii():  # which Python reads as part of a number, and pandas does not
        return False
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.fromiter(map(float, cells), np.float64, len(cells)).astype(np.float32)).all())
