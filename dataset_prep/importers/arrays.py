"""Plain ``.npy`` matrices with a list of item ids, brought to the items of a data set folder that exists."""

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
from recbole_qbert.data.atomic_files import read_rows
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
) -> ImportReport:
    """Write ``X.<modality>.npy`` of an existing data set folder from matrices made elsewhere, aligned by item token.

    The rows follow ``X.items.txt`` where other features stay, else the items of ``X.inter`` in the order in which they first
    occur. A matrix that came by this way before is replaced; one of another origin is not touched.

    Args:
        folder: holds ``<dataset>.inter``.
        dataset: its name.
        files: modality -> (matrix, ids). Ids are one token a line, or a ``.csv`` or ``.tsv`` with a column item_id, item,
            asin, parent_asin or id; line r belongs to row r.
        missing: what to do about items without a row: ``error``, or ``mask`` to give them a row of NaN.
        progress: show bars.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: rows and ids differ in number, an id twice, no common item, items without a row while ``missing`` is
            ``error``, or a matrix that features cannot have.
    """
    if missing not in ("error", "mask"):
        raise ValueError(f"missing is {missing!r}; it must be error or mask")
    folder = Path(folder)
    _check_modalities(folder, dataset, files)
    _check_finished(folder, set(files))
    users, interacted, interactions = _read_inter(folder / f"{dataset}.inter")
    items = _row_items(folder, dataset, interacted, set(files))
    opened, rows = {}, {}
    for modality, (matrix, ids) in files.items():
        opened[modality] = open_matrix(Path(matrix))
        row_of = read_ids(Path(ids))
        if len(row_of) != len(opened[modality]):
            raise ValueError(f"{matrix} has {len(opened[modality])} rows, but {ids} names {len(row_of)} items")
        rows[modality] = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
        _check_absent(dataset, ids, items, rows[modality], missing)
    used = np.array([item in interacted for item in items])
    origins = {modality: Path(matrix) for modality, (matrix, _) in files.items()}
    with Build(folder, dataset, merge=True) as build:
        reports = {
            modality: matrices.bring_in(
                build, modality, opened[modality], origins[modality], rows[modality], items, used, progress=progress
            )
            for modality in files
        }
        write_lines(build.path("items.txt"), items)
        known = _read_features_json(folder, dataset)
        write_json(build.path("features.json"), known | matrices.provenance(reports, origins, "arrays"))
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
                warnings=tuple(_extra(reports)),
            )
        )


def read_ids(path: Path) -> dict[str, int]:
    """Item token -> row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a table without an id column, or an unreadable or repeated id.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it names the item of each row")
    row_of: dict[str, int] = {}
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
            raise ValueError(f"{path}:{number}: item {item!r} stands on an earlier line already")
        row_of[item] = len(row_of)
    return row_of


def _id_column(path: Path, header: list[str]) -> int:
    names = [name.split(":")[0].strip().lower() for name in header]
    for wanted in ID_COLUMNS:
        if wanted in names:
            return names.index(wanted)
    raise ValueError(f"{path}:1: no column {', '.join(ID_COLUMNS)}; found {', '.join(header)[:80]!r}; name one so")


def _check_modalities(folder: Path, dataset: str, files: Mapping[str, tuple[Path, Path]]) -> None:
    if not files:
        raise ValueError("no matrices are given; name a modality, its matrix and its ids")
    inter = folder / f"{dataset}.inter"
    if not inter.is_file():
        raise FileNotFoundError(f"{inter} is missing; features are brought to a data set that exists")
    known = _read_features_json(folder, dataset)
    for modality in files:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", modality) or modality in ("fused", "depth"):
            raise ValueError(f"modality {modality!r}: use small letters, digits and '_', and not fused or depth")
        target = folder / f"{dataset}.{modality}.npy"
        entry = known.get(modality)
        if target.exists() and not (isinstance(entry, dict) and entry.get("imported_from") == "arrays"):
            raise ValueError(f"{target} is there and came another way; move it away, or give the modality another name")


def _check_finished(folder: Path, new: set[str]) -> None:
    """Whatever comes on top of an unfinished import would pass for finished."""
    manifest = read_manifest(folder)
    for entry in [] if manifest["complete"] else manifest["imports"][-1:]:
        if entry.get("kind") != "arrays" or not set(entry.get("features", ())) <= new:
            raise ValueError(
                f"{folder / MANIFEST}: an import was interrupted while it wrote; run the same import again first"
            )


def _read_features_json(folder: Path, dataset: str) -> dict[str, Any]:
    path = folder / f"{dataset}.features.json"
    return read_json(path, "repair or remove it") if path.exists() else {}


def _read_inter(path: Path) -> tuple[int, dict[str, None], int]:
    """Read the number of users, the item tokens in the order in which they first occur, and the number of interactions."""
    users: set[str] = set()
    items: dict[str, None] = {}
    interactions = 0
    for line, (user, item) in read_rows(path, ["user_id", "item_id"]):
        users.add(user)
        if item not in items:
            check_token(item, f"{path}:{line}")
            items[item] = None
        interactions += 1
    if not items:
        raise ValueError(f"{path} holds no interactions; prepare the data again, or see what 'doctor' finds")
    return len(users), items, interactions


def _row_items(folder: Path, dataset: str, interacted: Mapping[str, None], new: set[str]) -> list[str]:
    """The items of the rows to write."""
    others = set(features.available(folder, dataset)) - new
    listed = folder / f"{dataset}.items.txt"
    if not others:
        return list(interacted)
    items = features.read_item_list(listed)
    absent = [item for item in interacted if item not in items]
    if absent:
        raise ValueError(
            f"{listed}, which other features follow ({', '.join(sorted(others))}), lacks {len(absent)} items of {dataset} "
            f"(first: {', '.join(absent[:3])}); make these features again, or import all of them together"
        )
    return list(items)


def _check_absent(dataset: str, ids: Path, items: list[str], rows: np.ndarray, missing: str) -> None:
    absent = [items[place] for place in np.flatnonzero(rows < 0)]
    if len(absent) == len(items):
        raise ValueError(f"{ids} names no item of {dataset}, like {items[0]!r}; the ids are of another data set")
    if absent and missing == "error":
        raise ValueError(
            f"{ids} has no row for {len(absent)} of {len(items)} items of {dataset} (first: {', '.join(absent[:3])}); make "
            "features for them, or set missing to mask"
        )


def _extra(reports: Mapping[str, FeatureReport]) -> list[str]:
    return [
        f"{report.source}: {report.extra} rows are of items that the data set does not have"
        for report in reports.values()
        if report.extra
    ]
