"""Item features on disk and in memory: one matrix a modality, aligned by item token (never by row or internal id).

Files of data set ``X``: ``X.items.txt`` (one item token a line), ``X.<modality>.npy`` (``[N, D]`` or ``[N, J, D]``
float16/32, row r for line r; a row of NaN means that the item does not have the modality) and ``X.features.json`` (how they
were made).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.data.item_vocabulary import ItemVocabulary
from recbole_qbert.utils.failures import reading
from recbole_qbert.utils.io import atomic_write, sha256, write_array, write_json

log = logging.getLogger(__name__)
STRUCTURE = "structure"  # modality made of training co-occurrence (injection/structural_vectors.py), never a file
RESERVED = frozenset({"fused", "depth", STRUCTURE})  # no names for modalities of files
OUTLIER = 1000  # times the median norm
GAP = 10  # times the largest norm that is no outlier
LEAST_ROWS = 3  # of fewer, none can be called usual
SMALLEST = 1e-30  # norm; float32 has all its digits down to 1e-38
BLOCK = 1 << 22  # numbers in memory at a time

# Words that pandas, and so RecBole, silently reads as 'no value': an item of that name would vanish from the data.
READ_AS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
) | {""}


@dataclass(frozen=True)
class ItemFeatures:
    """Features of a list of items.

    Attributes:
        items: ``N`` item tokens.
        vectors: modality -> ``[N, J, D]`` float32; zeros where ``present`` is false.
        present: modality -> ``[N, J]`` bool.
        inputs: hashes and manifest of the files, for the manifests of later stages.
    """

    items: tuple[str, ...]
    vectors: dict[str, np.ndarray]
    present: dict[str, np.ndarray]
    inputs: dict[str, Any]

    def without(self, modality: str) -> ItemFeatures:
        """Return the features without a modality, which they need not have."""
        vectors = {name: matrix for name, matrix in self.vectors.items() if name != modality}
        return replace(self, vectors=vectors, present={name: self.present[name] for name in vectors})

    def with_vectors(self, modality: str, vectors: np.ndarray) -> ItemFeatures:
        """Return the features with one more modality, ``[N, D]`` float32; rows of zeros are items without it."""
        present = self.present | {modality: vectors.any(1)[:, None]}
        return replace(self, vectors=self.vectors | {modality: vectors[:, None]}, present=present)

    def coverage(self) -> dict[str, float]:
        """Compute the share of items that have each modality."""
        return {name: float(mask.any(1).mean()) for name, mask in self.present.items()}


def one_vector(vectors: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Average the vectors of each item: ``[N, J, D]`` and ``[N, J]`` bool to ``[N, D]`` float32; zeros where it has none.

    Of one vector an item, which is zeros where there is none, the result is a view, not to be written to: of a large
    catalog, copies would be most of the memory.
    """
    if vectors.shape[1] == 1 and vectors.dtype == np.float32:
        return vectors[:, 0]
    return (vectors.sum(1) / np.maximum(present.sum(1, keepdims=True), 1)).astype(np.float32)


def available(folder: Path, dataset: str) -> tuple[str, ...]:
    """List the modalities of ``dataset`` that have a file in ``folder``, text and image first."""
    names = (path.name for path in folder.glob("*.npy") if path.name.startswith(f"{dataset}."))
    modalities = {name[len(dataset) + 1 : -len(".npy")] for name in names} - RESERVED
    modalities = {name for name in modalities if "." not in name}  # X.Y.text.npy belongs to a data set named X.Y
    order = {"text": 0, "image": 1}
    return tuple(sorted(modalities, key=lambda name: (order.get(name, 2), name)))


def load(
    folder: Path, dataset: str, items: Sequence[str], modalities: Sequence[str], missing: str = "error"
) -> ItemFeatures:
    """Read the features of some items.

    Args:
        folder: folder of the feature files.
        dataset: name that the files start with.
        items: ``N`` item tokens; rows of other items are not read (the files are memory-mapped).
        modalities: names of the matrices.
        missing: ``error`` to raise for an item without a row, or ``mask`` to treat it as an item without modalities.

    Returns:
        Features in the order of ``items``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: an item token twice or unreadable, a matrix with the wrong number of rows, dimensions or type, partly
            NaN or infinite rows, rows of an absurd scale (``scale_outliers``), or items without a row while ``missing`` is
            ``error``.
    """
    if missing not in ("error", "mask"):
        raise ValueError(f"missing_features is {missing!r}; it must be error or mask")
    names = folder / f"{dataset}.items.txt"
    listed = ItemVocabulary(tuple(read_item_list(names)))
    rows = listed.rows(items)
    unlisted = np.flatnonzero(rows < 0)
    if len(unlisted) and missing == "error":
        first = ", ".join(items[i] for i in unlisted[:3])
        raise ValueError(
            f"{len(unlisted)} of {len(items)} items of {dataset} have no row in {names} (first: {first}); "
            "make features for them, or set missing_features to mask"
        )
    vectors, present, inputs = {}, {}, {"items": sha256(names)}
    for modality in modalities:
        path = folder / f"{dataset}.{modality}.npy"
        matrix = _open(path, len(listed), names)
        selected = np.array(matrix[np.maximum(rows, 0)], dtype=np.float32)
        selected = selected[:, None, :] if selected.ndim == 2 else selected
        empty = np.isnan(selected).all(2) | (rows < 0)[:, None]
        bad = np.argwhere(~np.isfinite(selected).all(2) & ~empty)
        if len(bad):
            row = int(rows[bad[0, 0]])
            raise ValueError(
                f"{path}: row {row} (item {items[bad[0, 0]]}) holds NaN or infinite values ({len(bad)} vectors in all); "
                "a vector must be finite, or NaN throughout if the item does not have the modality"
            )
        _check_scale(selected, items, path)
        selected[empty] = 0.0
        vectors[modality], present[modality], inputs[modality] = selected, ~empty, sha256(path)
    manifest = folder / f"{dataset}.features.json"
    if manifest.exists():
        inputs["manifest"] = sha256(manifest)
    return ItemFeatures(tuple(items), vectors, present, inputs)


def scale_outliers(matrix: np.ndarray) -> np.ndarray:
    """Find rows so much longer than the others that something must have damaged them, such as a flipped bit.

    Outliers are rows with a norm more than ``OUTLIER`` times the median, from the first on that is more than ``GAP`` times
    as long as the next shorter one. So rows of a long but continuous tail, such as raw counts, are none. One outlier takes
    the scale away from all others: they all fall onto the same codes.

    Args:
        matrix: ``[N, D]`` or ``[N, J, D]``, perhaps memory-mapped. Vectors with NaN or infinite numbers, and those of zeros,
            do not count.

    Returns:
        Numbers of the rows, ascending.
    """
    return _outliers(_norms(matrix))


def _outliers(norms: np.ndarray) -> np.ndarray:
    """Find the outliers among the lengths of vectors, ``[N]`` or ``[N, J]``."""
    usual = np.sort(norms[np.isfinite(norms) & (norms > 0)])
    if len(usual) < LEAST_ROWS:
        return np.empty(0, dtype=np.int64)
    far = (usual[1:] > OUTLIER * usual[(len(usual) - 1) // 2]) & (usual[1:] > GAP * usual[:-1])
    if not far.any():
        return np.empty(0, dtype=np.int64)
    longest = np.where(np.isfinite(norms), norms, 0.0).reshape(len(norms), -1).max(1)
    return np.flatnonzero(longest >= usual[1:][far][0])


def scale_warnings(matrix: np.ndarray, norms: np.ndarray | None = None) -> list[str]:
    """Describe what is suspicious, though not wrong, about the scale of features; empty for sound ones.

    Args:
        matrix: ``[N, D]`` or ``[N, J, D]``, as of ``scale_outliers``.
        norms: lengths of its vectors, if the caller has them.
    """
    norms = _norms(matrix) if norms is None else norms
    usual = norms[np.isfinite(norms) & (norms > 0)]
    if len(usual) < LEAST_ROWS:
        return []
    low = np.full(matrix.shape[-1], np.inf)
    high = -low
    for _, block in _blocks(matrix):
        finite = block[np.isfinite(block).all(1)]
        if len(finite):
            low, high = np.minimum(low, finite.min(0)), np.maximum(high, finite.max(0))
    spread = high - low
    if not spread.any():
        return ["all vectors are equal: they say nothing about the items"]
    warnings = []
    median = np.median(usual)
    if median < SMALLEST:
        warnings.append(f"the median vector has length {median:.1e}: most of its digits are lost in float32")
    if usual.max() > OUTLIER * median:
        warnings.append(f"the longest vector is {usual.max() / median:.1e} times as long as the median one, and rules them")
    middle = np.median(spread[spread > 0])
    if spread.max() > OUTLIER * middle:
        column = int(spread.argmax())
        warnings.append(
            f"column {column} ranges {spread.max() / middle:.0f} times as far as the median column, and rules them"
        )
    return warnings


def _blocks(matrix: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the vectors of some rows at a time, ``[n * J, D]`` float64, with the number of the first row."""
    step = max(1, BLOCK // max(1, int(np.prod(matrix.shape[1:]))))
    for start in range(0, len(matrix), step):
        yield start, np.asarray(matrix[start : start + step], dtype=np.float64).reshape(-1, matrix.shape[-1])


def _norms(matrix: np.ndarray) -> np.ndarray:
    """Compute the length of every vector, ``[N]`` or ``[N, J]``, a block of rows at a time."""
    norms = np.empty(matrix.shape[:-1])
    flat = norms.reshape(-1)
    each = int(np.prod(matrix.shape[1:-1]))
    for start, block in _blocks(matrix):
        largest = np.abs(block).max(1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):  # rows of zeros, NaN or infinite numbers
            scaled = np.where(largest > 0, block / largest, block)  # squares of float64 would overflow
        flat[start * each : start * each + len(block)] = largest[:, 0] * np.sqrt(np.square(scaled).sum(1))
    return norms


def _check_scale(vectors: np.ndarray, items: Sequence[str], path: Path) -> None:
    """Refuse rows of an absurd scale, and log what is suspicious.

    Raises:
        ValueError: names the file, the items and how far they are out.
    """
    norms = _norms(vectors)
    outliers = _outliers(norms)
    if len(outliers):
        times = np.nanmax(norms[outliers[0]]) / np.nanmedian(norms)
        named = ", ".join(items[row] for row in outliers[:3])
        raise ValueError(
            f"{path}: {len(outliers)} of {len(items)} items have vectors of an absurd scale (first: {named}; {times:.1e} "
            "times the median length): they would put all other items onto the same codes; make the rows again, or write NaN"
        )
    for warning in scale_warnings(vectors, norms):
        log.warning("%s: %s", path, warning)


def save(
    folder: Path, dataset: str, items: Sequence[str], matrices: Mapping[str, np.ndarray], inputs: Mapping[str, Any]
) -> list[Path]:
    """Write feature files and their manifest.

    Args:
        folder: folder to write into.
        dataset: name that the files start with.
        items: ``N`` item tokens.
        matrices: modality -> ``[N, D]`` or ``[N, J, D]``; a row of NaN for an item without it.
        inputs: content of the manifest.

    Returns:
        The paths of the files.

    Raises:
        ValueError: a matrix does not have one row for each item.
    """
    for name, matrix in matrices.items():
        if len(matrix) != len(items):
            raise ValueError(f"{name} has {len(matrix)} rows for {len(items)} items")
    names = folder / f"{dataset}.items.txt"
    with atomic_write(names) as temporary:
        temporary.write_text("".join(f"{item}\n" for item in items), encoding="utf-8")
    paths = [names]
    for name, matrix in matrices.items():
        paths.append(folder / f"{dataset}.{name}.npy")
        write_array(paths[-1], matrix)
    paths.append(folder / f"{dataset}.features.json")
    write_json(paths[-1], dict(inputs))
    return paths


def read_item_list(path: Path) -> dict[str, int]:
    """Read a list of item tokens, one a line, as token -> line number from 0.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a token occurs twice, is empty, or is a word that pandas reads as 'missing'.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; it lists the item token of each feature row, one a line")
    row_of: dict[str, int] = {}
    with reading(path), open(path, encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle):
            item = line.rstrip("\r\n")
            check_token(item, f"{path}:{number + 1}")
            if item in row_of:
                raise ValueError(f"{path}:{number + 1}: item {item!r} stands on line {row_of[item] + 1} already")
            row_of[item] = number
    return row_of


def check_token(token: str, where: str, kind: str = "item token") -> None:
    """Check that RecBole would not lose a user or item token.

    Args:
        token: the token.
        where: file and line, for an error.
        kind: what the token is, for an error.

    Raises:
        ValueError: the token is a word that pandas reads as 'missing'.
    """
    if token in READ_AS_MISSING:
        raise ValueError(
            f"{where}: {kind} {token!r} is read as a missing value by pandas, so RecBole would drop what it names; "
            "give it a prefix, here and in the other files"
        )


def open_matrix(path: Path) -> np.ndarray:
    """Open a plain ``.npy``, memory-mapped; ``[N, D]`` or ``[N, J, D]``.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is an archive, holds pickled objects, is damaged, or has another shape or type.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # for a damaged header numpy raises nearly any exception
        raise ValueError(f"{path} is not a plain .npy matrix ({error}); save it with numpy.save") from error
    if not isinstance(matrix, np.ndarray):
        raise ValueError(f"{path} is an archive of several matrices, not a plain .npy; save each with numpy.save")
    if matrix.dtype.kind != "f" or matrix.dtype.itemsize > 8:
        raise ValueError(f"{path} holds {matrix.dtype}; features are float16, float32 or float64")
    if matrix.ndim not in (2, 3) or 0 in matrix.shape[1:]:
        raise ValueError(f"{path} has shape {matrix.shape}; features are [N, D] or [N, J, D]")
    return matrix


def _open(path: Path, rows: int, names: Path) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; make it, or take its modality out of injection_modalities")
    matrix = open_matrix(path)
    if len(matrix) != rows:
        kind = "extra" if len(matrix) > rows else "missing"
        raise ValueError(
            f"{path} has {len(matrix)} rows but {names} names {rows} items: {abs(len(matrix) - rows)} rows are {kind}; "
            "make both again from the same list"
        )
    return matrix
