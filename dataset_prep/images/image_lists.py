"""Which pictures a data set lists: the ``image_urls`` of its ``.item`` file, row by row."""

from __future__ import annotations

import csv
import unicodedata
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

COLUMNS = ("item_id", "image_urls")


def read_items(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line number, item token and URLs of each row, none held longer than it is looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a row is too short or too long, or the file is no UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; 'prepare' makes it")
    with open(path, encoding="utf-8", newline="") as handle:
        rows = csv.reader(handle, delimiter="\t")  # quoting as RecBole's reader has it
        try:
            header = [name.split(":")[0] for name in next(rows, [])]
            absent = [name for name in COLUMNS if name not in header]
            if absent:
                raise ValueError(
                    f"{path}:1: no column {' or '.join(absent)}, but {', '.join(header) or 'nothing'}; "
                    "'prepare' writes both from raw metadata"
                )
            token, urls = (header.index(name) for name in COLUMNS)
            for row in rows:
                if row and len(row) != len(header):
                    raise ValueError(f"{path}:{rows.line_num}: {len(row)} cells, and the header has {len(header)}")
                if row:
                    yield rows.line_num, row[token], row[urls].split()
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{rows.line_num + 1}: {error}") from error


def survey(path: Path, max_images: int | None) -> int:
    """Read the whole file once before anything is asked of a server.

    Args:
        path: an ``.item`` file.
        max_images: of an item that count; None for all.

    Returns:
        How many images it lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `read_items`, or two rows have the same item or the same folder: one would get the other's images.
    """
    # Where X.ITEM is X.item, the folders of items 'a' and 'A' are one, too.
    folder = _folded if path.with_name(path.name.swapcase()).exists() else str
    images, keys = 0, array("q")  # 8 bytes an item; names would take ten times as much
    for _, item, urls in read_items(path):
        images += len(urls[:max_images])
        keys.append(hash(folder(item)))
    ordered = np.sort(np.asarray(keys))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    first: dict[str, int] = {}
    for line, item, _ in read_items(path) if suspects else ():
        if hash(folder(item)) in suspects and first.setdefault(folder(item), line) != line:
            raise ValueError(
                f"{path}:{line}: item {item!r} has the folder of the item on line {first[folder(item)]}; keep one row an "
                "item, and names that differ by more than upper and lower case where the file system does not tell them"
            )
    return images


def _folded(item: str) -> str:
    return unicodedata.normalize("NFC", item.casefold())
