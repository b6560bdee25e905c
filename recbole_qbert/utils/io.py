"""Read and write whole files, and compute hashes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.utils.atomic import atomic_write, file_lock

__all__ = [
    "atomic_write",
    "digest",
    "file_lock",
    "json_lines",
    "read_json",
    "sha256",
    "write_array",
    "write_json",
]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """Read the JSON object in a file that this software wrote.

    Args:
        path: the file.
        way_out: what the user can do about a damaged file, for the error.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is not JSON or does not hold an object; the error names the file and ends with ``way_out``.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); {way_out}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; {way_out}")
    return value


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one ``.npy`` atomically."""
    with atomic_write(path) as temporary:
        with open(temporary, "wb") as handle:
            np.save(handle, array)
            end = handle.tell()
        if temporary.stat().st_size != end:  # numpy does not notice a full disk in what C buffers at the end
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sha256(path: Path) -> str:
    """Compute the hex SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while part := handle.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSON-lines log; empty without the file. A line that is half written is skipped."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def digest(value: Any) -> str:
    """Compute the hex digest of a value that JSON can represent; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
