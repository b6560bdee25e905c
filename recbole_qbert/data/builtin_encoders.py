"""Classical text and image encoders that need no download, so that the pipeline runs anywhere.

They do not replace LLaMA or CLIP; the manifest of the features names them, and results made with them show it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.pictures import shrunk_rgb
from recbole_qbert.data.text_columns import AUTO, plain_text, say_text_columns, text_columns

log = logging.getLogger(__name__)

TEXT_ENCODER = "built-in TF-IDF (words 1-2, characters 3-5) + truncated SVD; not a language model"
IMAGE_ENCODER = "built-in colour, layout and edge descriptor + PCA; not a neural network"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
THUMBNAIL = 12  # width and height, in pixels, of the layout part
BINS = 8  # of each colour and edge histogram


def read_texts(
    path: Path, items: Sequence[str], fields: Sequence[str] = AUTO, form: AtomicFormat = RECBOLE_FORMAT
) -> list[str]:
    """Read the text of each item: the fields that ``read_text_columns`` reads, joined by spaces; '' for one without any."""
    return [" ".join(texts).strip() for texts in read_text_columns(path, items, fields, form)]


def read_text_columns(
    path: Path, items: Sequence[str], fields: Sequence[str] = AUTO, form: AtomicFormat = RECBOLE_FORMAT
) -> list[tuple[str, ...]]:
    """Read the texts of each item from a RecBole ``.item`` file; log which columns were taken if they were guessed.

    Args:
        path: the file.
        items: ``N`` item tokens.
        fields: the property ``text_fields``: names of columns, or ``auto`` (`text_columns`).
        form: how the file is written.

    Returns:
        One text a column for each item, '' where the column is empty.

    Raises:
        ValueError: the file names no item id, an item twice, or not the fields; or a row cannot be read.
    """
    header = form.header(path)
    header.positions([form.item_field])
    columns = text_columns(header, fields, form)
    say_text_columns(header, columns, fields)
    kinds = [header.type_of(column) for column in columns]
    wanted, lines = set(items), dict[str, int]()
    text: dict[str, tuple[str, ...]] = dict.fromkeys(items, ("",) * len(columns))
    for line, (item, *cells) in form.rows(path, [form.item_field, *columns], pad=True):
        if lines.setdefault(item, line) != line:
            raise ValueError(f"{path}:{line}: item {item!r} has a row already, on line {lines[item]}; keep one an item")
        if item in wanted:
            text[item] = tuple(map(plain_text, cells, kinds, repeat(form)))
    if columns and items and not any(cell.strip() for cells in text.values() for cell in cells):
        log.warning("%s has no text (%s) of any of the %s items", path, ", ".join(columns), f"{len(items):,}")
    return [text[item] for item in items]


def encode_texts(texts: Sequence[str], width: int, seed: int) -> np.ndarray:
    """Encode texts by TF-IDF over word and character n-grams, reduced by truncated SVD.

    Args:
        texts: one an item; blank ones give a row of NaN (no such modality).
        width: maximum number of dimensions ``D``; fewer when there are fewer texts or terms.
        seed: seed of the randomised SVD.

    Returns:
        ``[N, D]`` float32.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    has_text = np.array([bool(text.strip()) for text in texts])
    if not has_text.any():
        return np.full((len(texts), 1), np.nan, dtype=np.float32)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+", max_features=50_000)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, max_features=50_000)
    terms = make_union(words, letters).fit_transform([text for text, has in zip(texts, has_text, strict=True) if has])
    rank = max(1, min(width, terms.shape[0] - 1, terms.shape[1] - 1))
    reduced = TruncatedSVD(rank, random_state=seed).fit_transform(terms)
    result = np.full((len(texts), rank), np.nan, dtype=np.float32)
    result[has_text] = reduced
    return result


def encode_text_columns(texts: Sequence[Sequence[str]], width: int, seed: int) -> np.ndarray:
    """Encode each text of an item by itself, all in one space (``encode_texts``).

    Args:
        texts: ``N`` items of ``J`` texts; a blank one gives a vector of NaN.
        width: maximum number of dimensions ``D``.
        seed: seed of the randomised SVD.

    Returns:
        ``[N, J, D]`` float32.
    """
    flat = encode_texts([text for of_item in texts for text in of_item], width, seed)
    return flat.reshape(len(texts), -1, flat.shape[1])


def find_images(folder: Path, items: Sequence[str]) -> list[list[Path]]:
    """Find the image files ``<folder>/<item>/*`` of each item, sorted by name."""
    # Item tokens are data, not paths: they are compared with the names of existing folders and never joined to a path.
    folders = _folders(folder)
    for domain in {item.partition("/")[0] for item in items if "/" in item} & set(folders):  # of a union of data sets
        folders |= {f"{domain}/{name}": path for name, path in _folders(folders[domain]).items()}
    return [
        sorted(p for p in folders[item].iterdir() if p.suffix.lower() in IMAGE_ENDINGS) if item in folders else []
        for item in items
    ]


def _folders(parent: Path) -> dict[str, Path]:
    return {path.name: path for path in parent.iterdir() if path.is_dir()} if parent.is_dir() else {}


def encode_images(
    images: Sequence[Sequence[Path]],
    width: int,
    seed: int,
    per_item: int = 4,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Encode images by thumbnail, colour and edge histograms, reduced by PCA.

    Args:
        images: files of each item; the first ``per_item`` are read.
        width: maximum number of dimensions ``D``.
        seed: seed of the PCA.
        per_item: maximum number of images an item, ``J``.
        progress: wraps the list of items, for a progress bar.

    Returns:
        ``([N, J, D] float32, errors)``: NaN where an item has no image or it cannot be read; one line for each unreadable
        file.
    """
    from sklearn.decomposition import PCA

    images_per_item = max((min(len(files), per_item) for files in images), default=0)
    described: dict[tuple[int, int], np.ndarray] = {}
    errors: list[str] = []
    for row, files in enumerate(progress(images) if progress else images):
        for number, path in enumerate(files[:per_item]):
            try:
                described[row, number] = describe_image(path)
            except ValueError as error:
                errors.append(str(error))
            except OSError as error:
                errors.append(f"{path}: {error.strerror}")
    if not described:
        return np.full((len(images), 1, 1), np.nan, dtype=np.float32), errors
    raw = np.stack(list(described.values()))
    raw = (raw - raw.mean(0)) / (raw.std(0) + 1e-6)
    rank = max(1, min(width, raw.shape[0] - 1, raw.shape[1]))
    reduced = PCA(rank, random_state=seed).fit_transform(raw) if len(raw) > 1 else raw[:, :1]
    result = np.full((len(images), images_per_item, reduced.shape[1]), np.nan, dtype=np.float32)
    for (row, number), vector in zip(described, reduced, strict=True):
        result[row, number] = vector
    return result, errors


def describe_image(path: Path) -> np.ndarray:
    """Describe one image by colour layout, hue / saturation / value and edge-direction histograms; ``[D]`` float32.

    Raises:
        ValueError: the file is no picture, is damaged, or is too large (``pictures.open_picture``).
        OSError: the file cannot be opened.
    """
    small = shrunk_rgb(path, 64)
    pixels = np.asarray(small.resize((THUMBNAIL, THUMBNAIL)), dtype=np.float32) / 255.0
    colours = np.asarray(small.convert("HSV"), dtype=np.float32)
    histograms = [np.histogram(colours[..., c], BINS, (0, 256))[0] / colours[..., c].size for c in range(3)]
    grey = np.asarray(small.convert("L"), dtype=np.float32) / 255.0
    down, right = np.gradient(grey)
    direction = np.histogram(np.arctan2(down, right) % np.pi, BINS, (0, np.pi), weights=np.hypot(down, right))[0]
    edges = np.append(direction / (direction.sum() + 1e-6), np.hypot(down, right).mean())
    return np.concatenate([pixels.ravel(), *histograms, edges]).astype(np.float32)
