"""Record the outcome of every image in ``images.jsonl``: a log during a download, afterwards in the order of the items.

Each line is one JSON object. Of several lines of one image the last one counts, and an incomplete last line is ignored. A
row is written once its image is on disk, so that no other state is needed to resume.
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
    "status": "miss",  # or 'ok'
    "reason": None,  # reason of a miss
    "transient": False,  # a miss that the next run retries
    "file": None,  # relative to the images folder; the fields up to `original` describe the file
    "bytes": None,
    "sha256": None,
    "width": None,
    "height": None,
    "original": None,  # true for the bytes that the server sent, false if redrawn (image_files.py)
    "max_side": None,  # the setting it was stored with
    "etag": None,
    "last_modified": None,
    "attempts": 0,
}


class Manifest:
    """Find the rows of a file by image; `opened` opens one.

    Memory is 16 bytes per line, whatever its length (offsets by hash), and briefly about 50 while the file is opened.
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
        """Return the row that an image had when the file was opened."""
        key = hash((item, n))
        position = int(np.searchsorted(self._keys, key, side="right")) - 1
        while position >= 0 and self._keys[position] == key:  # the last line first; another image may share the hash
            self._rows.seek(int(self._offsets[position]))
            row: Row = json.loads(self._rows.readline())
            if (row["item"], row["n"]) == (item, n):
                return row
            position -= 1
        return None

    def append(self, row: Row) -> None:
        """Append a row, from any thread; a later kill does not lose it."""
        self._log.write(_line(row))
        self._log.flush()

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Replace all rows of the file atomically; the file must be opened again afterwards."""
        with atomic_write(self.path) as temporary, open(temporary, "wb") as handle:
            handle.writelines(map(_line, rows))

    def _read(self) -> Iterator[tuple[int, Row]]:
        offset = 0
        for number, line in enumerate(self._rows, 1):
            try:
                row = json.loads(line)
                valid = isinstance(row, dict) and NO_ROW.keys() <= row.keys()
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(
                    f"{self.path}:{number}: {line[:80].decode('utf-8', 'replace')!r} is not the row of an image; "
                    "remove the line, and its image is fetched again"
                )
            yield offset, row
            offset += len(line)


@contextmanager
def opened(path: Path) -> Iterator[Manifest]:
    """Open the rows of a file; create the file if it does not exist.

    Raises:
        ValueError: a line is not a row.
    """
    with open(path, "ab") as log, open(path, "rb") as rows:
        _cut_torn_line(path)
        yield Manifest(path, log, rows)


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _cut_torn_line(path: Path) -> None:
    """Remove an incomplete line at the end, which a kill may have left."""
    with open(path, "r+b") as handle:
        end = handle.seek(0, os.SEEK_END)
        position, tail = end, b""
        while position and b"\n" not in tail:
            position = max(0, position - (1 << 16))
            handle.seek(position)
            tail = handle.read(end - position)
        handle.truncate(position + tail.rfind(b"\n") + 1)
