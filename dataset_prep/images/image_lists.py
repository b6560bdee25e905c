"""Read the image URLs that a data set lists in the ``image_urls`` column of its ``.item`` file."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat

URLS = "image_urls"


def read_items(path: Path, form: AtomicFormat = RECBOLE_FORMAT) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the line number, item token and URLs of each row; only one row is in memory at a time.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read (`atomic_files.read_rows`).
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run 'prepare', which writes it")
    for line, (item, urls) in form.rows(path, (form.item_field, URLS)):
        yield line, item, urls.replace(form.seq_separator, " ").split()


def survey(path: Path, max_images: int | None, form: AtomicFormat = RECBOLE_FORMAT) -> int:
    """Count the images of the whole file, and refuse it if two items would share a folder.

    Args:
        path: an ``.item`` file.
        max_images: largest number of images counted per item; None for all.
        form: how the file is written.

    Returns:
        Number of images that the file lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_items`; or two rows have the same item or the same folder, so that one would get the other's
            images.
    """
    # A file system that finds X.ITEM under the name X.item also keeps items 'a' and 'A' in one folder.
    folder_name = _folded if path.with_name(path.name.swapcase()).exists() else str
    images, keys = 0, array("q")  # 8 bytes per item; names would take ten times as much
    for _, item, urls in read_items(path, form):
        images += len(urls[:max_images])
        keys.append(hash(folder_name(item)))
    ordered = np.sort(np.asarray(keys))
    repeated_keys = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    first_line: dict[str, int] = {}
    for line, item, _ in read_items(path, form) if repeated_keys else ():
        name = folder_name(item)
        if hash(name) in repeated_keys and first_line.setdefault(name, line) != line:
            raise ValueError(
                f"{path}:{line}: item {item!r} has the same folder as the item on line {first_line[name]}; keep one row per "
                "item, and on a file system that ignores case give items names that differ in more than case"
            )
    return images


def _folded(item: str) -> str:
    return unicodedata.normalize("NFC", item.casefold())
