"""``images.jsonl``: what became of every image; a log while a download runs, in the order of the items when it is done.

One JSON object a line. Of several lines of one image the last one counts, and a line that was cut off by a kill counts for
nothing: so a row is written once its image is on disk, and nothing else has to be kept.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from recbole_qbert.utils.io import atomic_write

Row = dict[str, Any]
NO_ROW: Row = {
    "item": "",
    "n": 0,  # position of the URL in the item's list
    "url": "",
    "status": "miss",  # or ok
    "reason": None,  # of a miss
    "transient": False,  # a miss that the next run tries again
    "file": None,  # below the images folder; the following up to `original` describe it
    "bytes": None,
    "sha256": None,
    "width": None,
    "height": None,
    "original": None,  # the bytes that the server sent, or redrawn (image_files.py)
    "max_side": None,  # the setting it was kept with
    "etag": None,
    "last_modified": None,
    "attempts": 0,
}


class Manifest:
    """The rows of a file, found by image; `opened` makes one.

    Memory is 16 bytes a line, whatever they hold (offsets by hash), and some 50 for a moment when it is opened.
    """

    def __init__(self, path: Path, log: BinaryIO, rows: BinaryIO) -> None:
        self.path, self._log, self._rows = path, log, rows
        keys, offsets = array("q"), array("q")
        for offset, row in self._read():
            keys.append(hash((row["item"], row["n"])))
            offsets.append(offset)
        order = np.argsort(np.asarray(keys), kind="stable")
        self._keys, self._offsets = np.asarray(keys)[order], np.asarray(offsets)[order]

    def find(self, item: str, n: int) -> Row | None:
        """The row of an image as it was when the file was opened."""
        key = hash((item, n))
        at = int(np.searchsorted(self._keys, key, side="right")) - 1
        while at >= 0 and self._keys[at] == key:  # the last line first; a line of another image only by its hash
            self._rows.seek(int(self._offsets[at]))
            row: Row = json.loads(self._rows.readline())
            if (row["item"], row["n"]) == (item, n):
                return row
            at -= 1
        return None

    def append(self, row: Row) -> None:
        """Add a row, from any thread; a kill from here on does not lose it."""
        self._log.write(_line(row))
        self._log.flush()

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Put these rows in place of the file, all or none of them; it has to be opened again afterwards."""
        with atomic_write(self.path) as temporary, open(temporary, "wb") as handle:
            handle.writelines(map(_line, rows))

    def _read(self) -> Iterator[tuple[int, Row]]:
        offset = 0
        for number, line in enumerate(self._rows, 1):
            try:
                row = json.loads(line)
                known = isinstance(row, dict) and NO_ROW.keys() <= row.keys()
            except ValueError:
                known = False
            if not known:
                raise ValueError(
                    f"{self.path}:{number}: no row of an image, but {line[:80].decode('utf-8', 'replace')!r}; remove "
                    "the line, and its image is looked for again"
                )
            yield offset, row
            offset += len(line)


@contextmanager
def opened(path: Path) -> Iterator[Manifest]:
    """The rows of a file, which is made where there is none.

    Raises:
        ValueError: a line is no row.
    """
    with open(path, "ab") as log, open(path, "rb") as rows:
        _cut_torn_line(path)
        yield Manifest(path, log, rows)


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _cut_torn_line(path: Path) -> None:
    """Remove what a kill left of a line at the end."""
    with open(path, "r+b") as handle:
        end = handle.seek(0, os.SEEK_END)
        position, tail = end, b""
        while position and b"\n" not in tail:
            position = max(0, position - (1 << 16))
            handle.seek(position)
            tail = handle.read(end - position)
        handle.truncate(position + tail.rfind(b"\n") + 1)
