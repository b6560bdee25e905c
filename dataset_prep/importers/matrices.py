"""Copy feature matrices of any size block by block: select rows by item, fill missing rows with NaN, refuse invalid ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataset_prep.importers.build import Build, FeatureReport
from recbole_qbert.utils.io import sha256

BLOCK = 1 << 23  # numbers in memory at a time


@dataclass(frozen=True)
class CopyReport:
    """Statistics of a copied matrix.

    Attributes:
        shape: shape of the written matrix.
        dtype: type of the written matrix.
        present: ``[N]`` bool, rows with at least one vector.
        zeros: number of rows of zeros that became rows of NaN.
        repeats: number of rows equal to the row before them.
    """

    shape: tuple[int, ...]
    dtype: str
    present: np.ndarray
    zeros: int
    repeats: int


def open_raw(path: Path, rows: int | None, width: int) -> np.ndarray:
    """Open float32 numbers without a header, memory-mapped; ``[rows, width]``.

    Args:
        path: the file.
        rows: number of rows that it must have; ``None`` for any number.
        width: numbers per row.

    Raises:
        ValueError: the width is below 1, or the size of the file does not fit; the message names a width that would.
    """
    if width < 1:
        raise ValueError(f"width is {width} for {path}; it must be at least 1 (published: 768 for UniSRec, 512 for MISSRec)")
    size = path.stat().st_size
    if size == 0 or size % (4 * width) or (rows is not None and size != 4 * width * rows):
        wanted = f"{rows} rows" if rows is not None else "rows"
        fits = size // (4 * rows) if rows and size % (4 * rows) == 0 else 0
        hint = f"a width of {fits} would fit" if fits else "no width fits; it is of another list of items, or incomplete"
        raise ValueError(f"{path} has {size} bytes, which is not {wanted} of {width} float32 numbers; {hint}")
    return np.memmap(path, dtype="<f4", mode="r").reshape(-1, width)


def copy_rows(
    source: np.ndarray,
    rows: np.ndarray,
    target: Path,
    items: Sequence[str],
    *,
    origin: Path,
    zeros_are_missing: bool = False,
    progress: bool = False,
) -> CopyReport:
    """Write row ``rows[r]`` of ``source`` as row r of ``target`` (``.npy``).

    Float64 becomes float32; a vector of NaN stays a vector of NaN.

    Args:
        source: ``[S, D]`` or ``[S, J, D]``.
        rows: ``[N]`` int64, -1 for an item without a row: a row of NaN.
        target: file to write.
        items: ``N`` tokens, for errors.
        origin: file of ``source``, for errors and the bar.
        zeros_are_missing: write vectors of zeros as NaN.
        progress: show a bar over rows.

    Raises:
        ValueError: a vector is partly NaN, or infinite.
    """
    dtype = np.dtype(f"f{min(source.dtype.itemsize, 4)}")
    shape = (len(rows), *source.shape[1:])
    present = np.zeros(len(rows), dtype=bool)
    zeros = repeats = 0
    before: np.ndarray | None = None
    step = max(1, BLOCK // int(np.prod(source.shape[1:])))
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with (
        open(target, "wb") as handle,
        tqdm(total=len(rows), desc=origin.name, unit="row", disable=not progress, leave=False) as bar,
    ):
        np.lib.format.write_array_header_1_0(handle, header)  # type: ignore[no-untyped-call]
        for start in range(0, len(rows), step):
            selected = rows[start : start + step]
            with np.errstate(over="ignore"):  # an overflow is refused below, with the item's name
                block = np.array(source[np.maximum(selected, 0)], dtype=dtype)
            block[selected < 0] = np.nan
            if zeros_are_missing:
                zero = (block == 0).all(-1)
                zeros += int(zero.reshape(len(block), -1).all(1).sum())
                block[zero] = np.nan
            empty = np.isnan(block).all(-1)
            bad = np.argwhere(~np.isfinite(block).all(-1) & ~empty)
            if len(bad):
                row = start + int(bad[0][0])
                raise ValueError(
                    f"{origin}: row {rows[row]} (item {items[row]}) holds NaN or infinite values, or values beyond {dtype}; "
                    "write finite numbers, or NaN throughout if the item has no vector"
                )
            present[start : start + step] = ~empty.reshape(len(block), -1).all(1)
            previous = np.full_like(block[:1], np.nan) if before is None else before  # NaN equals nothing
            repeats += int((block == np.concatenate([previous, block[:-1]])).reshape(len(block), -1).all(1).sum())
            before = block[-1:]
            handle.write(block.tobytes())
            bar.update(len(block))
    return CopyReport(shape, str(dtype), present, zeros, repeats)


def write_matrix(
    build: Build,
    modality: str,
    source: np.ndarray,
    origin: Path,
    rows: np.ndarray,
    items: Sequence[str],
    used: np.ndarray,
    *,
    zeros_are_missing: bool = False,
    progress: bool = False,
) -> FeatureReport:
    """Write ``X.<modality>.npy`` of a build (`copy_rows`).

    Args:
        build: builder of the data set folder.
        modality: name of the modality.
        source: ``[S, D]`` or ``[S, J, D]``.
        origin: file of ``source``.
        rows: ``[N]`` int64, -1 for an item without a row.
        items: ``N`` tokens.
        used: ``[N]`` bool, items with interactions, for the coverage.
        zeros_are_missing: write vectors of zeros as NaN.
        progress: show a bar over rows.
    """
    target = build.path(f"{modality}.npy")
    copied = copy_rows(source, rows, target, items, origin=origin, zeros_are_missing=zeros_are_missing, progress=progress)
    return FeatureReport(
        source=origin.name,
        shape=copied.shape,
        dtype=copied.dtype,
        coverage=float(copied.present[used].mean()) if used.any() else 0.0,
        missing=int((~copied.present).sum()),
        zeros=copied.zeros,
        repeats=copied.repeats,
        extra=len(source) - len(np.unique(rows[rows >= 0])),
    )


def provenance(features: Mapping[str, FeatureReport], files: Mapping[str, Path], kind: str) -> dict[str, Any]:
    """Build the content of ``X.features.json``: the origin of each matrix.

    Args:
        features: modality -> report of the written matrix.
        files: modality -> file of the source.
        kind: kind of the source.
    """
    return {
        modality: {
            "imported_from": kind,
            "source": report.source,
            "sha256": sha256(files[modality]),
            "shape": list(report.shape),
            "dtype": report.dtype,
            "coverage": report.coverage,
        }
        for modality, report in features.items()
    }


def suspicions(features: Mapping[str, FeatureReport]) -> list[str]:
    """Describe what looks wrong in imported matrices."""
    warnings = []
    for modality, report in features.items():
        if report.zeros:
            warnings.append(f"{report.source}: {report.zeros} rows of zeros, read as items without {modality}")
        if report.repeats and modality == "image":
            warnings.append(
                f"{report.source}: {report.repeats} rows equal the row before them, which is how MQL4GRec encodes an "
                "unreadable image"
            )
    return warnings
