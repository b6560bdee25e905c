"""Check feature files: the list of items, the values of each matrix, and the share of the items that it covers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_prep.checks.findings import Finding, refused
from recbole_qbert.data import item_features as features
from recbole_qbert.data.item_features import open_matrix

BLOCK = 1 << 23  # numbers in memory at a time


def check(folder: Path, dataset: str, items: Sequence[str]) -> list[Finding]:
    """Check the feature files in a folder.

    Args:
        folder: folder of the data set, or the output folder of the built-in encoders.
        dataset: name of the data set.
        items: tokens of the items with interactions.
    """
    names = folder / f"{dataset}.items.txt"
    modalities = features.available(folder, dataset)
    if not modalities and not names.exists():
        return []
    if not modalities:
        way_out = f"put {dataset}.<modality>.npy beside it, or remove it"
        return [Finding("error", str(names), "lists items, but there are no feature files", way_out)]
    try:
        row_of = features.read_item_list(names)
    except (ValueError, FileNotFoundError) as error:
        return [refused(error, names)]
    findings = []
    rows = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
    missing = [items[index] for index in np.flatnonzero(rows < 0)]
    if missing:
        findings.append(
            Finding(
                "error",
                str(names),
                f"{len(missing):,} of {len(items):,} items with interactions have no row (first: {missing[0]})",
                "make features for them, or set missing_features to mask",
            )
        )
    manifest = _read_manifest(folder / f"{dataset}.features.json", findings)
    for modality in modalities:
        path = folder / f"{dataset}.{modality}.npy"
        try:
            matrix = open_matrix(path)
        except ValueError as error:
            findings.append(refused(error, path))
            continue
        if len(matrix) != len(row_of):
            problem = f"has {len(matrix):,} rows, but {names.name} lists {len(row_of):,} items"
            findings.append(Finding("error", str(path), problem, "make both again from the same list"))
            continue
        findings += _matrix(path, matrix, list(row_of), rows[rows >= 0], len(items))
        entry = manifest.get(modality)
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if shape is not None and list(matrix.shape) != shape:
            findings.append(
                Finding(
                    "warning",
                    str(path),
                    f"has shape {list(matrix.shape)}, but {dataset}.features.json says {shape}: something else made it",
                    "make the features again, so that the manifest describes them",
                )
            )
    return findings


def _read_manifest(path: Path, findings: list[Finding]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        findings.append(Finding("warning", str(path), f"is not JSON ({error})", "make the features again, or remove it"))
        return {}
    return content if isinstance(content, dict) else {}


def _matrix(path: Path, matrix: np.ndarray, names: list[str], used: np.ndarray, items: int) -> list[Finding]:
    """Check that the values of a matrix are finite and not all zero, and count the items that have a vector."""
    present = np.zeros(len(matrix), dtype=bool)
    invalid_rows: list[int] = []
    zero_rows: list[int] = []
    step = max(1, BLOCK // int(np.prod(matrix.shape[1:])))
    for start in range(0, len(matrix), step):
        block = np.asarray(matrix[start : start + step])
        empty = np.isnan(block).all(-1)
        invalid = ~np.isfinite(block).all(-1) & ~empty
        zero = (block == 0).all(-1)
        each = (len(block), -1)
        invalid_rows += (start + np.flatnonzero(invalid.reshape(each).any(1))).tolist()
        zero_rows += (start + np.flatnonzero(zero.reshape(each).all(1))).tolist()
        present[start : start + step] = ~empty.reshape(each).all(1)
    findings = []
    if invalid_rows:
        findings.append(
            Finding(
                "error",
                str(path),
                f"{len(invalid_rows):,} rows are partly NaN or infinite (first: row {invalid_rows[0]}, item "
                f"{names[invalid_rows[0]]})",
                "make these rows again; a row must be finite, or NaN throughout if the item has no vector",
            )
        )
    outliers = features.scale_outliers(matrix)
    if len(outliers):
        findings.append(
            Finding(
                "error",
                str(path),
                f"{len(outliers):,} rows are of an absurd scale, far longer than all others (first: row {outliers[0]}, "
                f"item {names[outliers[0]]}): all other items become alike beside them",
                "make these rows again; a damaged disk or copy turns single numbers into such",
            )
        )
    if zero_rows:
        findings.append(
            Finding(
                "warning",
                str(path),
                f"{len(zero_rows):,} rows of zeros count as features (first: row {zero_rows[0]}, item "
                f"{names[zero_rows[0]]})",
                "write NaN where an item has no vector",
            )
        )
    share = float(present[used].sum()) / items if items else 0.0
    shape = "x".join(map(str, matrix.shape))
    if share == 0:
        findings.append(
            Finding(
                "warning",
                str(path),
                "no item with interactions has a vector: it will be left out",
                "make the features again",
            )
        )
    else:
        findings.append(
            Finding("ok", str(path), f"{shape} {matrix.dtype}, {share:.1%} of the items with interactions have a vector")
        )
    return findings
