"""Atomic writes, what killed writes leave behind, and locks between processes."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from recbole_qbert.utils.failures import as_write_failure

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None  # Windows has none
_PART = re.compile(r"\.(?P<name>.+?)\.(?P<process>\d+)(-\d+)?\.part")
_RUN = ".lock"
#: Age at which the file of a process that does not run here counts as abandoned where locks do not work, because the process
#: may run on another computer.
_ABANDONED_SECONDS = 24 * 3600
_abandoned: dict[Path, dict[str, list[Path]]] = {}  # folder -> name -> files that earlier processes may have left


# ------------------------------------------------------------------------------------------------------------ writing
@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block ends without an error, else remove it.

    The temporary file is ``.<name>.<process>.part``, locked while it is written. A killed process leaves it behind without
    the lock, and the next process that writes ``path`` removes it.

    Raises:
        OSError: the file cannot be written; names ``path``.
    """
    folder = path.parent.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _abandoned:  # once a process: folders of shards and pictures are large
        _abandoned[folder] = _parts(folder)
    for part in _abandoned[folder].pop(path.name, ()):
        _remove_if_abandoned(part)
    temporary, handle = _create_part(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        if (failure := as_write_failure(error, temporary, path)) is not None:
            raise failure from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder and in the folders in it."""
    for inner, _, _ in os.walk(folder):
        for parts in _parts(Path(inner)).values():
            for part in parts:
                _remove_if_abandoned(part)


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Return the temporary files in a folder, by the name of the file that was written."""
    found: dict[str, list[Path]] = {}
    for entry in os.scandir(folder):
        if match := _PART.fullmatch(entry.name):
            found.setdefault(match["name"], []).append(Path(entry.path))
    return found


def _create_part(path: Path) -> tuple[Path, int | None]:
    """Create the temporary file; return it with the handle that holds its lock."""
    for number in count():
        suffix = f"-{number}" if number else ""
        part = path.with_name(f".{path.name}.{os.getpid()}{suffix}.part")
        if fcntl is None:  # Windows renames no open file
            return part, None
        handle = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        if _lock(handle) is not False and _is_still(part, handle):
            os.ftruncate(handle, 0)  # a process of the same number, as the first one of a container, may have left it
            return part, handle
        os.close(handle)  # of another thread, or of a process with this number on another computer
    raise AssertionError("count() has no end")


def _remove_if_abandoned(part: Path) -> None:
    """Remove a temporary file unless it is being written."""
    match = _PART.fullmatch(part.name)
    if match is None or part.is_symlink() or not part.is_file():
        return
    with suppress(OSError):  # it has vanished, or belongs to another user
        if fcntl is None:
            locked = None
        else:
            handle = os.open(part, os.O_RDWR)
            try:
                locked = _lock(handle)
                if locked and _is_still(part, handle):
                    part.unlink()
            finally:
                os.close(handle)
        old = time.time() - part.stat().st_mtime > _ABANDONED_SECONDS
        if locked is None and old and not _is_running(int(match["process"])):
            part.unlink()


# -------------------------------------------------------------------------------------------------------------- locks
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
    if fcntl is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if _lock(handle, wait) is False:
            raise ValueError(f"another {work} {folder} is running; wait until it ends, or stop it")
        yield
    finally:
        os.close(handle)


@contextmanager
def run_lock(folder: Path, work: str) -> Iterator[None]:
    """Refuse a second command that writes to a folder, and remove what killed ones left in it.

    The lock is the lock of the operating system on ``.lock`` in the folder, so it ends with the process. Where there are no
    such locks, the process that is named in the file counts, as far as this computer can tell whether it runs.

    Args:
        folder: folder that the command writes to; created if it does not exist.
        work: what the refusal calls the other command.

    Raises:
        ValueError: another process holds the lock; names the folder and the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _RUN
    handle = _take(path, f"another {work} is writing to {folder}")
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
        remove_abandoned(folder)
        yield
    finally:
        if fcntl is None:  # Windows removes no open file
            os.close(handle)
            path.unlink(missing_ok=True)
        else:  # removed while it is locked: a process that has just opened it sees that it is gone
            path.unlink(missing_ok=True)
            os.close(handle)


def _take(path: Path, refusal: str) -> int:
    """Open and lock the file of a run; return the handle."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = _lock(handle)
        number, _, host = os.read(handle, 300).decode(errors="replace").strip().partition(" ")
        held = locked is False or (locked is None and number.isdigit() and _may_run(int(number), host))
        if not held and (fcntl is None or _is_still(path, handle)):
            os.lseek(handle, 0, os.SEEK_SET)
            return handle
        os.close(handle)
        if held:
            who = f"process {number} on {host}" if number.isdigit() else "a process that has just started"
            gone = "" if locked is False else f"; if it does not run any more, remove {path}"
            raise ValueError(f"{refusal} ({who}): wait until it ends, stop it, or choose another folder{gone}")


def _may_run(process: int, host: str) -> bool:
    """Return whether a process runs, or may run on another computer."""
    return host != socket.gethostname() or (process != os.getpid() and _is_running(process))


def _is_running(process: int) -> bool:
    """Return whether a process of this number runs on this computer."""
    if os.name == "nt":  # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _lock(handle: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder; return whether that succeeded, ``None`` where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _is_still(path: Path, handle: int) -> bool:
    """Return whether a path still names the open file, which another process may have removed before it was locked."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
