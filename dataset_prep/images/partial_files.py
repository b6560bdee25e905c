"""Store partially downloaded files: response metadata plus the bytes received so far.

A file begins with one line of JSON (`Origin`); the bytes of the body follow. It is named ``.part`` while bytes are missing
and ``.full`` when it is complete, so that it describes itself after a kill at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Origin:
    """The response that a body belongs to.

    Attributes:
        url: URL as in the ``.item`` file.
        etag: ``ETag`` of the response.
        last_modified: ``Last-Modified`` of the response.
        attempts: number of requests up to this response.
    """

    url: str
    etag: str | None
    last_modified: str | None
    attempts: int

    def validator(self) -> str | None:
        """Return the value for ``If-Range``: a strong ETag or a date; None if neither can identify the body."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


class PartialFile:
    """The body of image ``n`` of an item.

    Args:
        folder: folder of the files.
        item: token of the item; used in a hash, never in a path.
        n: position of the image in the item's list.
    """

    def __init__(self, folder: Path, item: str, n: int) -> None:
        stem = hashlib.sha256(f"{n} {item}".encode()).hexdigest()[:32]
        self.path, self.full, self.stored = (folder / f"{stem}{ending}" for ending in (".part", ".full", ".stored"))

    @contextmanager
    def begin(self, origin: Origin) -> Iterator[BinaryIO]:
        """Open the file for a new body; an earlier one is overwritten."""
        with open(self.path, "wb") as handle:
            handle.write(json.dumps(asdict(origin)).encode() + b"\n")
            yield handle

    def resume(self) -> BinaryIO:
        """Open the file to append to its body."""
        return open(self.path, "ab")

    def complete(self) -> None:
        """Mark the body as complete."""
        os.replace(self.path, self.full)

    def progress(self, url: str) -> tuple[Origin, int] | None:
        """Return origin and length of the received part of a URL's body, if the transfer can be resumed."""
        try:
            with open(self.path, "rb") as handle:
                origin, size = _origin(handle), os.fstat(handle.fileno()).st_size - handle.tell()
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return (origin, size) if origin.url == url and origin.validator() and size else None

    def read_complete(self, url: str) -> tuple[Origin, bytes] | None:
        """Return origin and body of a URL, if the body is complete."""
        try:
            with open(self.full, "rb") as handle:
                origin, body = _origin(handle), handle.read()
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return (origin, body) if origin.url == url else None

    def remove(self) -> None:
        """Remove all files of the body."""
        for path in (self.path, self.full, self.stored):
            path.unlink(missing_ok=True)


def _origin(handle: BinaryIO) -> Origin:
    """Read the first line; ValueError or TypeError if it is incomplete, as after a power failure."""
    return Origin(**json.loads(handle.readline()))
