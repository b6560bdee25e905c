"""Atomic writes of files, hashes and locks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block ends without an error, else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); {way_out}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; {way_out}")
    return value


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one ``.npy`` atomically."""
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, array)


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
        with suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def digest(value: Any) -> str:
    """Compute the hex digest of a value that JSON can represent; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def file_lock(folder: Path, *, wait: bool = True, work: str = "process in") -> Iterator[None]:
    """Lock a folder against other processes; the lock is released when the process ends in any way.

    Windows and file systems without locks let every process through.

    Args:
        folder: the folder to lock; created if it does not exist.
        wait: wait until the lock is free; if false, refuse at once.
        work: what the refusal calls the work of the other process, followed by the folder.

    Raises:
        ValueError: another process holds the lock and ``wait`` is false.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise ValueError(f"another {work} {folder} is running; wait until it ends, or stop it") from None
        yield
    finally:
        os.close(handle)
