"""Bodies on their way: what has come so far, and of what it is a part, in one file.

Such a file begins with one line of JSON (`Origin`), the bytes of the body follow. It is called ``.part`` while bytes are
missing and ``.full`` when all have come; whatever is killed when, the file says what it holds.
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
    """What a body is the body of.

    Attributes:
        url: as the ``.item`` file has it.
        etag: of the answer.
        last_modified: of the answer.
        attempts: requests it took until this answer.
    """

    url: str
    etag: str | None
    last_modified: str | None
    attempts: int

    def validator(self) -> str | None:
        """For ``If-Range``: a strong ETag or a date; None when a rest could belong to another version of the body."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


class PartialFile:
    """The body of image ``n`` of an item.

    Args:
        folder: where the files lie.
        item: its token; goes into a hash, never into a path.
        n: which of its images.
    """

    def __init__(self, folder: Path, item: str, n: int) -> None:
        stem = hashlib.sha256(f"{n} {item}".encode()).hexdigest()[:32]
        self.path, self.full, self.stored = (folder / f"{stem}{ending}" for ending in (".part", ".full", ".stored"))

    @contextmanager
    def begin(self, origin: Origin) -> Iterator[BinaryIO]:
        """A file for a new body; what came of an earlier one is gone."""
        with open(self.path, "wb") as handle:
            handle.write(json.dumps(asdict(origin)).encode() + b"\n")
            yield handle

    def proceed(self) -> BinaryIO:
        """The file of the body, to add to."""
        return open(self.path, "ab")

    def end(self) -> None:
        """All bytes have come."""
        os.replace(self.path, self.full)

    def come(self, url: str) -> tuple[Origin, int] | None:
        """Origin and length of what has come of a URL's body, if it can be continued."""
        try:
            with open(self.path, "rb") as handle:
                origin, size = _origin(handle), os.fstat(handle.fileno()).st_size - handle.tell()
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return (origin, size) if origin.url == url and origin.validator() and size else None

    def whole(self, url: str) -> tuple[Origin, bytes] | None:
        """Origin and body of a URL, when all of it has come."""
        try:
            with open(self.full, "rb") as handle:
                origin, body = _origin(handle), handle.read()
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return (origin, body) if origin.url == url else None

    def drop(self) -> None:
        """Forget the body."""
        for path in (self.path, self.full, self.stored):
            path.unlink(missing_ok=True)


def _origin(handle: BinaryIO) -> Origin:
    """The first line; ValueError or TypeError when it is not whole, as after a power cut."""
    return Origin(**json.loads(handle.readline()))
