"""Unpack a raw file to pieces of plain UTF-8 bytes: gzip, bzip2, xz, zstd, lz4, zip; UTF-16 and UTF-32."""

from __future__ import annotations

import bz2
import codecs
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import pyarrow as pa  # type: ignore[import-untyped]
from isal import isal_zlib  # three times as fast as zlib; decompression limits the speed of the conversion

from dataset_prep.amazon.file_kinds import (
    HEAD,
    AmazonFormatError,
    compression_of,
    refuse_foreign,
    refuse_nested,
    text_encoding,
)

Observe = Callable[[bytes], None]
FETCH_AGAIN = "fetch the file again and compare its size"


class DamagedFileError(Exception):
    """The data end too early or are damaged; the message says the way out, and the reader adds file and line."""


def plain_text(path: Path, handle: BinaryIO, observe: Observe, size: int) -> tuple[bytes, Iterator[bytes]]:
    """Unpack a file that holds text.

    Args:
        path: the file, for errors.
        handle: the file, open at its beginning.
        observe: is called with all bytes of the file, in order.
        size: largest number of bytes of a piece.

    Returns:
        The first bytes of the text, and all of it in pieces; UTF-8 without a byte order mark. A piece raises
        `DamagedFileError` where data are damaged.

    Raises:
        AmazonFormatError: the file is of a kind that cannot be read.
    """
    head = handle.read(HEAD)
    handle.seek(0)
    refuse_foreign(path, head)
    packed = compression_of(head)
    pieces = _pieces(path, handle, packed, observe, size)
    head, pieces = _peek(pieces, min(size, 1 << 16))
    if packed is not None:
        refuse_foreign(path, head)
        refuse_nested(path, packed, head)
    encoding = text_encoding(head)
    if encoding is not None:
        head, pieces = _peek(_recoded(pieces, encoding), min(size, 1 << 16))
    if head.startswith(codecs.BOM_UTF8):
        return head[3:], _without_mark(pieces)
    return head, pieces


def _pieces(path: Path, handle: BinaryIO, packed: str | None, observe: Observe, size: int) -> Iterator[bytes]:
    if packed in (None, "gzip"):
        return _plain_or_gzip(handle, packed == "gzip", observe, size)
    source: Any
    if packed == "zip":
        source = _zip_member(path, handle, observe, size)
    elif packed == "bzip2":
        source = bz2.BZ2File(_Observed(handle, observe))  # type: ignore[call-overload]
    elif packed == "xz":
        source = lzma.LZMAFile(_Observed(handle, observe))  # type: ignore[arg-type]  # noqa: SIM115
    else:
        source = pa.CompressedInputStream(pa.PythonFile(_Observed(handle, observe), mode="r"), packed)
    return _read_all(source, packed, size)


class _Observed:
    """The file object that decompressors read; what they read is shown to `observe`."""

    closed = False

    def __init__(self, handle: BinaryIO, observe: Observe) -> None:
        self._handle, self._observe = handle, observe

    def read(self, size: int = -1) -> bytes:
        raw = self._handle.read(size)
        self._observe(raw)
        return raw

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """Leave the file open; whoever opened it closes it."""


def _zip_member(path: Path, handle: BinaryIO, observe: Observe, size: int) -> IO[bytes]:
    """Open the only file of a zip archive."""
    while raw := handle.read(size):
        observe(raw)
    try:
        archive = zipfile.ZipFile(handle)
        members = [member for member in archive.infolist() if not _is_extra(member)]
        if len(members) != 1:
            names = ", ".join(member.filename for member in members[:5]) or "nothing"
            what = (
                "an Excel or Office file" if any(m.filename == "[Content_Types].xml" for m in members) else "a zip archive"
            )
            raise AmazonFormatError(
                f"{path}: this is {what} that holds {len(members)} files ({names}); unpack it, and give one of them"
            )
        return archive.open(members[0])
    except (zipfile.BadZipFile, OSError) as error:
        raise AmazonFormatError(f"{path}: the zip archive is damaged or incomplete ({error}); {FETCH_AGAIN}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise AmazonFormatError(f"{path}: the zip archive cannot be read ({error}); unpack it by other means") from error


def _is_extra(member: zipfile.ZipInfo) -> bool:
    """Whether an entry is a folder, or what macOS adds to archives."""
    name = member.filename
    return member.is_dir() or name.startswith("__MACOSX/") or name.rpartition("/")[2] == ".DS_Store"


def _read_all(source: Any, packed: str | None, size: int) -> Iterator[bytes]:
    try:
        while piece := source.read(size):
            yield piece
    except (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        raise DamagedFileError(f"the {packed} data are damaged or incomplete here ({error}); {FETCH_AGAIN}") from error


def _plain_or_gzip(handle: BinaryIO, packed: bool, observe: Observe, size: int) -> Iterator[bytes]:
    member = isal_zlib.decompressobj(31) if packed else None
    try:
        while raw := handle.read(size // 2):
            observe(raw)
            if member is None:
                yield raw
                continue
            while raw:
                if member.eof:  # a gzip file has one or several members, perhaps followed by zeros
                    raw = raw.lstrip(b"\0")
                    if not raw:
                        break
                    member = isal_zlib.decompressobj(31)
                piece = member.decompress(raw, size)
                raw = member.unused_data if member.eof else member.unconsumed_tail
                yield piece
        while member is not None and not member.eof:
            piece = member.decompress(b"", size)
            if not piece:
                raise EOFError("the file ends before the data")
            yield piece
    except (EOFError, isal_zlib.error) as error:  # type: ignore[misc]  # isal's types call it an instance
        raise DamagedFileError(f"the gzip data are damaged or incomplete here ({error}); {FETCH_AGAIN}") from error


def _peek(pieces: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes, at least `size` if there are as many, and all pieces, these included."""
    taken: list[bytes] = []
    damage: DamagedFileError | None = None
    try:
        while sum(map(len, taken)) < size:
            taken.append(next(pieces))
    except StopIteration:
        pass
    except DamagedFileError as error:
        damage = error

    def everything() -> Iterator[bytes]:
        yield from taken
        if damage is not None:
            raise damage
        yield from pieces

    return b"".join(taken), everything()


def _without_mark(pieces: Iterator[bytes]) -> Iterator[bytes]:
    missing = len(codecs.BOM_UTF8)
    for piece in pieces:
        yield piece[missing:]
        missing = max(0, missing - len(piece))


def _recoded(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in pieces:
            yield decoder.decode(piece).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise DamagedFileError(f"the text is not {encoding.upper()} here ({error}); {FETCH_AGAIN}") from error
