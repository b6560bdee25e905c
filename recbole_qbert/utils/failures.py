"""Failures of inputs and of the system, as opposed to bugs: which they are, and what to say about them.

A command ends in ``error: …`` for a failure and in a traceback for a bug. Code that reads a file names the file
(:func:`reading`), code that writes one uses ``utils.io.atomic_write``, which names it.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Errors of libraries about a file or the system: module and name. A class counts only if its module is loaded already.
_OF_LIBRARIES = (
    ("duckdb", "IOException"),
    ("duckdb", "OutOfMemoryException"),
    ("lzma", "LZMAError"),
    ("pyarrow", "ArrowException"),
    ("safetensors", "SafetensorError"),
    ("sqlite3", "DatabaseError"),
    ("zipfile", "BadZipFile"),
    ("zlib", "error"),
)
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_FULL_TEXTS = ("os error 27)", "os error 28)", "os error 122)", "requested and", "inline_container", "PytorchStreamWriter")
_NO_MEMORY = ("can't allocate memory", "out of memory", "bad_alloc")


def describe(error: BaseException) -> str | None:
    """Return what to tell the user about a failure in one line; ``None`` for a bug, whose traceback is of use.

    >>> describe(FileNotFoundError(2, "No such file or directory", "a.inter"))
    'a.inter: No such file or directory'
    >>> describe(KeyError("x")) is None
    True
    """
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(t in str(error) for t in _NO_MEMORY)):
        said = str(error).partition("\n")[0]
        return f"not enough memory{f' ({said})' if said else ''}; lower the batch sizes, or use a machine that has more"
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if error.filename is not None else "a file or the output"
        full = "; free space, or write to another place" if error.errno in _FULL else ""
        return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}{full}"
    if isinstance(error, ValueError | OSError | ImportError | EOFError) or _is_of_library(error):
        return str(error) or type(error).__name__
    return None


def _is_of_library(error: BaseException) -> bool:
    loaded = [getattr(sys.modules.get(module), name, None) for module, name in _OF_LIBRARIES]
    return isinstance(error, tuple(kind for kind in loaded if isinstance(kind, type)))


@contextmanager
def reading(path: Path, way_out: str = "make or fetch the file again") -> Iterator[None]:
    """Turn what libraries raise about a damaged file into a ValueError that names the file.

    Args:
        path: the file that the block reads.
        way_out: what the user can do about it.

    Raises:
        ValueError: the block failed on the content of the file.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{path} is not UTF-8 (byte {byte:#04x} at offset {error.start}); save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep; {way_out}") from error
    except Exception as error:
        if isinstance(error, EOFError) or _is_of_library(error):
            raise ValueError(f"{path} is damaged ({error}); {way_out}") from error
        raise


def as_write_failure(error: Exception, temporary: Path, path: Path) -> OSError | None:
    """Return an error that names the file that could not be written; ``None`` if writing it is not what failed.

    Libraries forget the name, numpy also the reason, and torch and safetensors raise errors of other kinds.

    Args:
        error: what was raised while ``temporary`` was written.
        temporary: the file that was written.
        path: the file that it should become.
    """
    if isinstance(error, OSError) and error.filename not in (None, str(temporary)):
        return None
    if isinstance(error, OSError) and error.errno:
        return OSError(error.errno, os.strerror(error.errno), str(path))
    of_writer = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"
    if of_writer and any(text in str(error) for text in _FULL_TEXTS):
        return OSError(
            errno.ENOSPC, f"cannot be written, the disk is full or files are limited in size ({error})", str(path)
        )
    return None


def require_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Refuse, before any work, a place where a result could not be written.

    Args:
        path: the file or folder to write.
        option: what names it, for the error: ``--json``.
        folder: whether it is a folder.

    Raises:
        ValueError: it is a folder in place of a file or the reverse, or its nearest folder cannot be written to.
    """
    if not folder and path.is_dir():
        raise ValueError(f"{option} {path} is a folder; name a file")
    parent = path if folder else path.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"{option} {path}: {parent} is a file, not a folder; name another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: there is no permission to write in {parent}; name another place")
