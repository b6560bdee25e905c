"""Align plain ``.npy`` matrices that come with a list of item ids to the items of an existing data set folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.importers import matrices
from dataset_prep.importers.build import MANIFEST, Build, FeatureReport, ImportReport, read_lines, read_manifest, write_lines
from recbole_qbert.data import item_features as features
from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.item_features import check_token, open_matrix
from recbole_qbert.utils.io import read_json, sha256, write_json

ID_COLUMNS = ("item_id", "item", "asin", "parent_asin", "id")


def arrays(
    folder: Path,
    dataset: str,
    files: Mapping[str, tuple[Path, Path]],
    *,
    missing: str = "error",
    progress: bool = True,
    form: AtomicFormat = RECBOLE_FORMAT,
) -> ImportReport:
    """Write ``X.<modality>.npy`` of an existing data set folder from other matrices, aligned by item token.

    If the folder keeps other features, the rows follow ``X.items.txt``; otherwise they follow the items of ``X.inter`` in
    the order in which they first occur. A matrix that this function wrote before is replaced; a matrix of another origin is
    never overwritten.

    Args:
        folder: folder that holds ``<dataset>.inter``.
        dataset: name of the data set.
        files: modality -> (matrix, ids). The ids are one token per line, or a ``.csv`` or ``.tsv`` with a column item_id,
            item, asin, parent_asin or id; line r belongs to row r.
        missing: handling of items without a row: ``error``, or ``mask`` to give them a row of NaN.
        progress: show bars.
        form: how the ``.inter`` file is written.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: rows and ids differ in number; an id occurs twice; no item is in both; an item has no row while
            ``missing`` is ``error``; or a matrix cannot be used as features.
    """
    if missing not in ("error", "mask"):
        raise ValueError(f"missing is {missing!r}; it must be error or mask")
    folder = Path(folder)
    _check_modalities(folder, dataset, files)
    _check_finished(folder, set(files))
    users, interacted, interactions = _read_inter(folder / f"{dataset}.inter", form)
    items = _row_items(folder, dataset, interacted, set(files))
    opened, rows = {}, {}
    for modality, (matrix, ids) in files.items():
        opened[modality] = open_matrix(Path(matrix))
        row_of = read_ids(Path(ids))
        if len(row_of) != len(opened[modality]):
            raise ValueError(
                f"{matrix} has {len(opened[modality])} rows, but {ids} names {len(row_of)} items; give one id per row"
            )
        rows[modality] = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
        _check_missing(dataset, ids, items, rows[modality], missing)
    used = np.array([item in interacted for item in items])
    origins = {modality: Path(matrix) for modality, (matrix, _) in files.items()}
    with Build(folder, dataset, merge=True) as build:
        reports = {
            modality: matrices.write_matrix(
                build, modality, opened[modality], origins[modality], rows[modality], items, used, progress=progress
            )
            for modality in files
        }
        write_lines(build.path("items.txt"), items)
        manifest = _read_features_json(folder, dataset)
        write_json(build.path("features.json"), manifest | matrices.provenance(reports, origins, "arrays"))
        return build.finish(
            ImportReport(
                kind="arrays",
                dataset=dataset,
                users=users,
                items=len(interacted),
                interactions=interactions,
                timestamps="not touched",
                sources={str(path): sha256(Path(path)) for pair in files.values() for path in pair},
                items_unused=int((~used).sum()),
                features=reports,
                warnings=tuple(_extra_rows(reports)),
            )
        )


def read_ids(path: Path) -> dict[str, int]:
    """Read item token -> row.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a table has no id column, or an id is unreadable or repeated.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it names the item of each row")
    row_of: dict[str, int] = {}
    line_of: dict[str, int] = {}
    column = None
    for number, line in read_lines(path):
        item = line
        if path.suffix.lower() in (".csv", ".tsv"):
            try:
                cells = next(csv.reader([line], delimiter="," if path.suffix.lower() == ".csv" else "\t"), [])
            except csv.Error as error:
                raise ValueError(f"{path}:{number}: {error}; write the ids alone, one a line") from error
            if column is None:
                column = _id_column(path, cells)
                continue
            item = cells[column] if column < len(cells) else ""
        check_token(item, f"{path}:{number}")
        if item in row_of:
            raise ValueError(f"{path}:{number}: item {item!r} already occurs on line {line_of[item]}; remove one of the two")
        row_of[item], line_of[item] = len(row_of), number
    return row_of


def _id_column(path: Path, header: list[str]) -> int:
    names = [name.split(":")[0].strip().lower() for name in header]
    for wanted in ID_COLUMNS:
        if wanted in names:
            return names.index(wanted)
    raise ValueError(f"{path}:1: no column {', '.join(ID_COLUMNS)} in {', '.join(header)[:80]!r}; rename the id column")


def _check_modalities(folder: Path, dataset: str, files: Mapping[str, tuple[Path, Path]]) -> None:
    if not files:
        raise ValueError("files is empty; name a modality, its matrix and its ids")
    inter = folder / f"{dataset}.inter"
    if not inter.is_file():
        raise FileNotFoundError(f"{inter} is missing; prepare the data set before its features")
    manifest = _read_features_json(folder, dataset)
    for modality in files:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", modality) or modality in features.RESERVED:
            raise ValueError(f"modality is {modality!r}; use small letters, digits and '_', and neither fused nor depth")
        target = folder / f"{dataset}.{modality}.npy"
        entry = manifest.get(modality)
        if target.exists() and not (isinstance(entry, dict) and entry.get("imported_from") == "arrays"):
            raise ValueError(f"{target} exists and is of another origin; move it away, or give the modality another name")


def _check_finished(folder: Path, new: set[str]) -> None:
    """Refuse to add to an unfinished import, which would then look finished."""
    manifest = read_manifest(folder)
    for entry in [] if manifest["complete"] else manifest["imports"][-1:]:
        if entry.get("kind") != "arrays" or not set(entry.get("features", ())) <= new:
            raise ValueError(
                f"{folder / MANIFEST}: an import was interrupted while it wrote; run the same import again first"
            )


def _read_features_json(folder: Path, dataset: str) -> dict[str, Any]:
    path = folder / f"{dataset}.features.json"
    return read_json(path, "repair or remove it") if path.exists() else {}


def _read_inter(path: Path, form: AtomicFormat) -> tuple[int, dict[str, None], int]:
    """Read the number of users, the item tokens in the order in which they first occur, and the number of interactions."""
    users: set[str] = set()
    items: dict[str, None] = {}
    interactions = 0
    for line, (user, item) in form.rows(path, form.fields[:2]):
        users.add(user)
        if item not in items:
            check_token(item, f"{path}:{line}")
            items[item] = None
        interactions += 1
    if not items:
        raise ValueError(f"{path} holds no interactions; prepare the data again, or see what 'doctor' finds")
    return len(users), items, interactions


def _row_items(folder: Path, dataset: str, interacted: Mapping[str, None], new: set[str]) -> list[str]:
    """Determine the items of the rows to write."""
    others = set(features.available(folder, dataset)) - new
    listed = folder / f"{dataset}.items.txt"
    if not others:
        return list(interacted)
    items = features.read_item_list(listed)
    unlisted = [item for item in interacted if item not in items]
    if unlisted:
        raise ValueError(
            f"{listed}, which orders other features ({', '.join(sorted(others))}), lacks {len(unlisted)} items of "
            f"{dataset} (first: {', '.join(unlisted[:3])}); make these features again, or import all of them together"
        )
    return list(items)


def _check_missing(dataset: str, ids: Path, items: list[str], rows: np.ndarray, missing: str) -> None:
    unnamed = [items[index] for index in np.flatnonzero(rows < 0)]
    if len(unnamed) == len(items):
        raise ValueError(f"{ids} names no item of {dataset}, such as {items[0]!r}; give ids of this data set")
    if unnamed and missing == "error":
        raise ValueError(
            f"{ids} has no row for {len(unnamed)} of {len(items)} items of {dataset} (first: {', '.join(unnamed[:3])}); "
            "make features for them, or set missing to mask"
        )


def _extra_rows(reports: Mapping[str, FeatureReport]) -> list[str]:
    return [
        f"{report.source}: {report.extra} rows are of items outside the data set"
        for report in reports.values()
        if report.extra
    ]
