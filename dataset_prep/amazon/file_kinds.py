"""Recognise what a raw file is by its first bytes, and say so where it cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = 4096  # bytes that decide


class AmazonFormatError(ValueError):
    """The input cannot be used; the message names the file, the line, the value and a way out."""


COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
TABLES = {b"PAR1": "Parquet", b"ARROW1\x00\x00": "Arrow IPC", b"\xff\xff\xff\xff": "Arrow stream", b"ORC": "ORC"}

_UNPACK = "unpack it, and give the file inside"
_WRITE = "write the table as Parquet, CSV or JSON lines"
_FETCH = "fetch the file itself"
_FOREIGN = {  # files that people give by mistake: (what they are, the way out)
    b"PK\x05\x06": ("an empty zip archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"\x1f\x9d": ("a file packed by 'compress'", _UNPACK),
    b"FEA1": ("a Feather file of version 1", _WRITE),
    b"Obj\x01": ("an Avro file", _WRITE),
    b"SQLite format 3\x00": ("an SQLite database", _WRITE),
    b"\x89HDF\r\n": ("an HDF5 file", _WRITE),
    b"\x93NUMPY": ("a numpy array", _WRITE),
    b"\xd0\xcf\x11\xe0": ("an old Office file (Excel)", _WRITE),
    b"%PDF": ("a PDF", _FETCH),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "fetch the file itself with 'git lfs pull'"),
}
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95|c|\}|\]|\()")
_PAGE = re.compile(rb"\s*<(?:!doctype html|html|head|\?xml)", re.IGNORECASE)
_PANDAS_JSON = re.compile(rb'\s*\{\s*"(?:[^"\\]+":\s*\{\s*"0"\s*:|columns":\s*\[|schema":\s*\{)')


def compression_of(head: bytes) -> str | None:
    """Name the compression of a file that begins with `head`; None if it is not packed."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def table_of(head: bytes) -> str | None:
    """Name the kind of a binary table that begins with `head`; None if it is none."""
    return next((name for magic, name in TABLES.items() if head.startswith(magic)), None)


def refuse_foreign(path: Path, head: bytes) -> None:
    """Refuse a file of a kind that cannot be read.

    Args:
        path: the file, for the error.
        head: its first bytes.

    Raises:
        AmazonFormatError: names the kind and the way out.
    """
    kind = next((kind for magic, kind in _FOREIGN.items() if head.startswith(magic)), None)
    if kind is None and head[257:262] == b"ustar":
        kind = "a tar archive", _UNPACK
    elif kind is None and _PICKLE.match(head):
        kind = "a Python pickle", _WRITE
    elif kind is None and _PAGE.match(head):
        kind = "a web page (HTML) or XML, perhaps the answer of a server in place of the file", _FETCH
    elif kind is None and b"\n" not in head.strip() and _PANDAS_JSON.match(head):
        kind = "JSON with a table by columns, as pandas writes it", "write it with to_json(orient='records', lines=True)"
    if kind is not None:
        raise AmazonFormatError(f"{path}: this is {kind[0]}; {kind[1]}")


def refuse_nested(path: Path, outer: str, head: bytes) -> None:
    """Refuse what a packed file holds if it must be unpacked first.

    Args:
        path: the packed file, for the error.
        outer: its compression.
        head: first bytes of what is in it.

    Raises:
        AmazonFormatError: it holds a table that is read from anywhere in the file, or is packed twice.
    """
    if inner := table_of(head) or compression_of(head):
        raise AmazonFormatError(
            f"{path}: this is a {inner} file inside a {outer} file; unpack it, and give the {inner} file"
        )


def text_encoding(head: bytes) -> str | None:
    """Name the encoding of text that is UTF-16 or UTF-32, with or without a byte order mark; None for all else.

    >>> text = '{"user_id": "U"}'
    >>> text_encoding(text.encode("utf-16")), text_encoding(text.encode("utf-16-be")), text_encoding(text.encode())
    ('utf-16', 'utf-16-be', None)
    """
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "utf-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    start = head[:16]
    for width in (4, 2):
        for place, ending in ((0, "le"), (width - 1, "be")):
            letters = start[place::width]
            if len(start) == 16 and start.count(0) == 16 - len(letters) and 0 not in letters:
                return f"utf-{8 * width}-{ending}"
    return None
