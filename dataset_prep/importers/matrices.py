"""Feature matrices of any size, copied block by block: rows picked by item, missing ones as NaN, broken ones refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataset_prep.importers.build import Build, FeatureReport
from recbole_qbert.utils.io import sha256

BLOCK = 1 << 23  # numbers held at a time


@dataclass(frozen=True)
class Copied:
    """What was seen on the way.

    Attributes:
        shape: of the written matrix.
        dtype: of the written matrix.
        present: ``[N]`` bool, rows with at least one vector.
        zeros: rows of zeros that became rows of NaN.
        repeats: rows equal to the row before them.
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
        rows: how many it must have; ``None`` takes what there is.
        width: numbers a row.

    Raises:
        ValueError: the width is below 1, or the size of the file is another one; names the width that would fit.
    """
    if width < 1:
        raise ValueError(f"a width of {width} makes no sense for {path}; published ones are 768 (UniSRec) and 512 (MISSRec)")
    size = path.stat().st_size
    if size == 0 or size % (4 * width) or (rows is not None and size != 4 * width * rows):
        wanted = f"{rows} rows" if rows is not None else "rows"
        fits = size // (4 * rows) if rows and size % (4 * rows) == 0 else 0
        hint = (
            f"a width of {fits} would fit" if fits else "no width fits: it belongs to another list of items, or is cut short"
        )
        raise ValueError(f"{path} has {size} bytes, which are not {wanted} of {width} float32 numbers; {hint}")
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
) -> Copied:
    """Write ``target`` (``.npy``), row r from row ``rows[r]`` of ``source``.

    Float64 becomes float32; a vector of NaN stays one.

    Args:
        source: ``[S, D]`` or ``[S, J, D]``.
        rows: ``[N]`` int64, -1 for an item without a row: a row of NaN.
        target: file to write.
        items: ``N`` tokens, for errors.
        origin: where ``source`` came from, for errors and the bar.
        zeros_are_missing: write vectors of zeros as NaN.
        progress: show a bar over rows.

    Raises:
        ValueError: a vector that is partly NaN, or infinite.
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
            picked = rows[start : start + step]
            with np.errstate(over="ignore"):  # an overflow is refused below, with the item's name
                block = np.array(source[np.maximum(picked, 0)], dtype=dtype)
            block[picked < 0] = np.nan
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
                    "a vector is finite, or NaN throughout to say that the item has none"
                )
            present[start : start + step] = ~empty.reshape(len(block), -1).all(1)
            ahead = np.full_like(block[:1], np.nan) if before is None else before  # NaN equals nothing
            repeats += int((block == np.concatenate([ahead, block[:-1]])).reshape(len(block), -1).all(1).sum())
            before = block[-1:]
            handle.write(block.tobytes())
            bar.update(len(block))
    return Copied(shape, str(dtype), present, zeros, repeats)


def bring_in(
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
    """Write ``X.<modality>.npy`` of a build; arguments as of :func:`copy_rows`.

    Args:
        used: ``[N]`` bool, items with interactions, for the coverage.
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
    """Content of ``X.features.json``: where each matrix came from."""
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


def doubts(features: Mapping[str, FeatureReport]) -> list[str]:
    """What looks wrong with imported matrices, in words."""
    found = []
    for modality, report in features.items():
        if report.zeros:
            found.append(f"{report.source}: {report.zeros} rows of zeros, taken for items that have no {modality}")
        if report.repeats and modality == "image":
            found.append(
                f"{report.source}: {report.repeats} rows equal the row before them, which is how MQL4GRec encodes an image "
                "that it could not read"
            )
    return found
