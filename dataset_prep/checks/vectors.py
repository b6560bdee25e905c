"""Feature files: the list of items, each matrix block by block, and what part of the items it covers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.checks.findings import Finding, refused
from recbole_qbert.data import item_features as features
from recbole_qbert.data.item_features import open_matrix

BLOCK = 1 << 23  # numbers held at a time


def check(folder: Path, dataset: str, items: Sequence[str]) -> list[Finding]:
    """Look at the feature files in a folder.

    Args:
        folder: of the data set, or where the built-in encoders write.
        dataset: its name.
        items: tokens of the items with interactions.
    """
    names = folder / f"{dataset}.items.txt"
    modalities = features.available(folder, dataset)
    if not modalities and not names.exists():
        return []
    if not modalities:
        to_do = f"put {dataset}.<modality>.npy beside it, or remove it"
        return [Finding("error", str(names), "lists items, but there are no feature files", to_do)]
    try:
        row_of = features.read_item_list(names)
    except (ValueError, FileNotFoundError) as error:
        return [refused(error, names)]
    found = []
    rows = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
    absent = [items[place] for place in np.flatnonzero(rows < 0)]
    if absent:
        found.append(
            Finding(
                "error",
                str(names),
                f"{len(absent):,} of {len(items):,} items with interactions have no row (first: {absent[0]})",
                "make features for them, or set missing_features to mask",
            )
        )
    made = _read_manifest(folder / f"{dataset}.features.json", found)
    for modality in modalities:
        path = folder / f"{dataset}.{modality}.npy"
        try:
            matrix = open_matrix(path)
        except ValueError as error:
            found.append(refused(error, path))
            continue
        if len(matrix) != len(row_of):
            what = f"has {len(matrix):,} rows, but {names.name} lists {len(row_of):,} items"
            found.append(Finding("error", str(path), what, "make both again from the same list"))
            continue
        found += _matrix(path, matrix, list(row_of), rows[rows >= 0], len(items))
        entry = made.get(modality)
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if shape is not None and list(matrix.shape) != shape:
            found.append(
                Finding(
                    "warning",
                    str(path),
                    f"has shape {list(matrix.shape)}, but {dataset}.features.json says {shape}: it was made another way",
                    "make the features again, so that the manifest says how",
                )
            )
    return found


def _read_manifest(path: Path, found: list[Finding]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        found.append(Finding("warning", str(path), f"is not JSON ({error})", "make the features again, or remove it"))
        return {}
    return content if isinstance(content, dict) else {}


def _matrix(path: Path, matrix: np.ndarray, names: list[str], used: np.ndarray, items: int) -> list[Finding]:
    """Values of one matrix: finite, not all zero, there for the items."""
    there = np.zeros(len(matrix), dtype=bool)
    bad: list[int] = []
    zeros: list[int] = []
    step = max(1, BLOCK // int(np.prod(matrix.shape[1:])))
    for start in range(0, len(matrix), step):
        block = np.asarray(matrix[start : start + step])
        empty = np.isnan(block).all(-1)
        broken = ~np.isfinite(block).all(-1) & ~empty
        zero = (block == 0).all(-1)
        each = (len(block), -1)
        bad += (start + np.flatnonzero(broken.reshape(each).any(1))).tolist()
        zeros += (start + np.flatnonzero(zero.reshape(each).all(1))).tolist()
        there[start : start + step] = ~empty.reshape(each).all(1)
    found = []
    if bad:
        found.append(
            Finding(
                "error",
                str(path),
                f"{len(bad):,} rows are partly NaN or infinite (first: row {bad[0]}, item {names[bad[0]]})",
                "make these rows again; a row is finite, or NaN throughout to say that the item has none",
            )
        )
    if zeros:
        found.append(
            Finding(
                "warning",
                str(path),
                f"{len(zeros):,} rows of zeros count as features (first: row {zeros[0]}, item {names[zeros[0]]})",
                "write NaN where an item has none",
            )
        )
    share = float(there[used].sum()) / items if items else 0.0
    shape = "x".join(map(str, matrix.shape))
    if share == 0:
        found.append(
            Finding("warning", str(path), "no item with interactions has it: it will be left out", "make the features again")
        )
    else:
        found.append(Finding("ok", str(path), f"{shape} {matrix.dtype}, {share:.1%} of the items with interactions have it"))
    return found
