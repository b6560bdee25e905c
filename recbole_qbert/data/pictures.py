"""Open pictures of others: allowed formats only, a bounded number of pixels, errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL import Image

#: Pillow's names of the formats that are read, whatever a file's name says. For EPS Pillow would start a PostScript
#: interpreter, and each further format is one more reader of untrusted bytes. MPO: a JPEG followed by further pictures.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO", "AVIF")
MAX_PIXELS = 64_000_000  # larger pictures are not decoded: some kilobytes can decode to gigabytes
_LARGE = 8_000_000  # pixels; smaller JPEGs are decoded whole, so that features of usual pictures stay what they are


@contextmanager
def open_picture(source: Path | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open a picture; only its header is read before its size is checked, and what the block reads is decoded in it.

    Args:
        source: an image file, or its bytes.
        max_pixels: largest width x height.

    Raises:
        ValueError: not a picture of ``FORMATS``, too many pixels, or damaged; names the file.
        OSError: the file cannot be opened.
    """
    from PIL import Image

    name = source if isinstance(source, Path) else "the picture"
    too_many = f"too large to decode (at most {max_pixels:,} pixels)"
    try:
        opened = Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: {too_many}") from None
    except (MemoryError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # for hostile bytes Pillow raises nearly any exception
        raise ValueError(f"{name}: cannot identify a picture ({', '.join(FORMATS)}) in it") from error
    with opened as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{name}: {width} x {height} pixels are {too_many}")
        try:
            yield image
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{name}: damaged ({error})") from error


def shrunk_rgb(path: Path, side: int) -> Image.Image:
    """Read the first frame of a picture as RGB, ``side x side`` pixels. Transparent parts keep the color under them.

    Raises:
        ValueError: as of ``open_picture``.
        OSError: the file cannot be opened.
    """
    with open_picture(path) as image:
        if image.width * image.height > _LARGE:
            image.draft(None, (4 * side, 4 * side))  # a JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
        image.load()
        return (image if image.mode == "RGB" else image.convert("RGB")).resize((side, side))
