"""Is a body a picture, what of it is kept, and where it goes.

The bytes are kept as they came when they are an upright, opaque picture of one frame, in a format that everything reads and
no larger than wanted. Anything else is redrawn: its first frame, turned as its EXIF orientation says, transparent parts
white, RGB, shrunk to the wanted size, as JPEG of quality 95.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from dataset_prep.images.rate_limits import FetchError

# Pillow's name of a format -> ending. No other is opened: Pillow would run a PostScript interpreter for EPS.
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
READABLE = (*ENDINGS, "MPO", "AVIF")  # MPO: a JPEG with further pictures behind it, as cameras write
UPRIGHT = frozenset({"RGB", "L", "P", "1"})  # modes that every reader turns into the same RGB
MIN_SIDE = 8  # pixels; shops answer with a picture of one pixel for one that they no longer have
QUALITY = 95
ORIENTATION = 0x0112  # EXIF tag
LONGEST_NAME = 200  # bytes; file systems allow 255
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)
_TRAP = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:\"/\\|?*]|^[.\s]|[.\s]$")


@dataclass(frozen=True)
class Picture:
    """What is kept of a body.

    Attributes:
        data: bytes of an image file.
        ending: of its name, with the dot.
        width: pixels.
        height: pixels.
        original: whether they are the bytes that came.
    """

    data: bytes
    ending: str
    width: int
    height: int
    original: bool


def can_name_folder(item: str) -> bool:
    """Whether an item token can be the name of one folder, on any usual system, whoever made it up.

    >>> [can_name_folder(item) for item in ("B002SQJL9U", "../x", "a/b", ".git", "", "nul.x", "é漢")]
    [True, False, False, False, False, False, True]
    """
    if not item or _TRAP.search(item) or _DEVICE.fullmatch(item):
        return False
    return len(item.encode()) <= LONGEST_NAME


def examine(body: bytes, *, max_pixels: int, max_side: int | None = None) -> Picture:
    """The picture that a body is.

    Args:
        body: what the server sent.
        max_pixels: width x height up to which it is decoded.
        max_side: longest side of what is kept, in pixels; None for any.

    Raises:
        Missed: ``not_an_image``, ``too_many_pixels``, ``too_small``, ``broken_image``.
    """
    try:
        with Image.open(io.BytesIO(body), formats=READABLE) as image:  # reads no more than the header
            width, height = image.size
    except Image.DecompressionBombError:
        raise FetchError("too_many_pixels") from None
    except Exception:  # on hostile bytes Pillow raises nearly anything
        raise FetchError("not_an_image") from None
    if width * height > max_pixels:
        raise FetchError("too_many_pixels")
    if min(width, height) < MIN_SIDE:
        raise FetchError("too_small")
    try:
        with Image.open(io.BytesIO(body), formats=READABLE) as image:
            image.verify()  # checksums
        with Image.open(io.BytesIO(body), formats=READABLE) as image:
            if not _as_wanted(image, max_side):
                return _redrawn(image, max_side)
            image.load()  # to the last pixel
            return Picture(body, ENDINGS[image.format or ""], width, height, original=True)
    except Exception:
        raise FetchError("broken_image") from None


def store(picture: Picture, images: Path, item: str, n: int, temporary: Path) -> dict[str, str | int | bool]:
    """Write image ``n`` of an item, whole or not at all, in place of any that is there.

    Args:
        picture: what to write.
        images: folder of the items' folders.
        item: passed `can_name_folder`.
        n: position in the item's list; names are padded, so that they sort in this order up to 1,000 images.
        temporary: a name on the same file system.

    Returns:
        What the manifest says of it.
    """
    path = images / item / f"{n:03d}{picture.ending}"
    path.parent.mkdir(exist_ok=True)
    temporary.write_bytes(picture.data)
    os.replace(temporary, path)
    remove(images, item, n, but=picture.ending)
    return {
        "file": f"{item}/{path.name}",
        "bytes": len(picture.data),
        "sha256": hashlib.sha256(picture.data).hexdigest(),
        "width": picture.width,
        "height": picture.height,
        "original": picture.original,
    }


def remove(images: Path, item: str, n: int, but: str = "") -> None:
    """Remove image ``n`` of an item, except the one with the ending ``but``."""
    for ending in set(ENDINGS.values()) - {but}:
        (images / item / f"{n:03d}{ending}").unlink(missing_ok=True)


def _as_wanted(image: Image.Image, max_side: int | None) -> bool:
    return (
        image.format in ENDINGS
        and image.mode in UPRIGHT
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
        and _orientation(image) == 1
        and (max_side is None or max(image.size) <= max_side)
    )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # garbled EXIF does not make a bad picture
        return 1
    return value if value in range(2, 9) else 1


def _redrawn(image: Image.Image, max_side: int | None) -> Picture:
    turned = _orientation(image) != 1
    if max_side:
        image.draft(None, (2 * max_side, 2 * max_side))  # JPEG can be decoded at a half, a quarter or an eighth
    image.load()
    drawn = ImageOps.exif_transpose(image) if turned else image
    if drawn.mode.startswith("I;16"):  # Pillow would cut at 255 what goes up to 65,535
        drawn = drawn.point(lambda value: value / 256).convert("L")
    if "A" in drawn.mode or "a" in drawn.mode or "transparency" in drawn.info:
        above = drawn.convert("RGBA")
        drawn = Image.new("RGBA", above.size, "white")
        drawn.alpha_composite(above)
    drawn = drawn.convert("RGB")
    if max_side:
        drawn.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return Picture(out.getvalue(), ".jpg", *drawn.size, original=False)
