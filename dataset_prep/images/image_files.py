"""Check that a body is a picture, convert it if necessary, and store it.

The received bytes are stored unchanged if they are an upright, opaque picture of one frame, in a common format and within
the size limit. Any other picture is redrawn: its first frame, rotated by its EXIF orientation, with a white background, as
RGB, shrunk to the limit, as JPEG of quality 95.
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
from recbole_qbert.data.pictures import FORMATS

# Pillow's name of a format -> ending, of formats whose bytes can be stored unchanged.
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
PORTABLE_MODES = frozenset({"RGB", "L", "P", "1"})  # modes that every reader converts to the same RGB
MIN_SIDE = 8  # pixels; some shops send a picture of one pixel in place of one that they no longer have
QUALITY = 95
ORIENTATION = 0x0112  # EXIF tag
LONGEST_NAME = 200  # bytes; file systems allow 255
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE | re.DOTALL)
_TRAP = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:\"/\\|?*]|^[.\s]|[.\s]$")


@dataclass(frozen=True)
class Picture:
    """A picture to store.

    Attributes:
        data: bytes of an image file.
        ending: ending of its name, with the dot.
        width: width in pixels.
        height: height in pixels.
        original: whether the bytes are those received.
    """

    data: bytes
    ending: str
    width: int
    height: int
    original: bool


def can_name_folder(item: str) -> bool:
    """Return whether an untrusted item token can safely name a folder on all common operating systems.

    >>> [can_name_folder(item) for item in ("B002SQJL9U", "../x", "a/b", ".git", "", "nul.x", "é漢")]
    [True, False, False, False, False, False, True]
    """
    if not item or _TRAP.search(item) or _DEVICE.fullmatch(item):
        return False
    return len(item.encode()) <= LONGEST_NAME


def examine(body: bytes, *, max_pixels: int, max_side: int | None = None) -> Picture:
    """Decode a body and return the picture to store.

    Args:
        body: bytes that the server sent.
        max_pixels: largest width x height that is decoded.
        max_side: longest side of the stored picture, in pixels; None for any.

    Raises:
        FetchError: ``not_an_image``, ``too_many_pixels``, ``too_small``, ``broken_image``.
    """
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:  # reads no more than the header
            width, height = image.size
    except Image.DecompressionBombError:
        raise FetchError("too_many_pixels") from None
    except Exception:  # for hostile bytes Pillow raises nearly any exception
        raise FetchError("not_an_image") from None
    if width * height > max_pixels:
        raise FetchError("too_many_pixels")
    if min(width, height) < MIN_SIDE:
        raise FetchError("too_small")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            image.verify()  # checksums
        with Image.open(io.BytesIO(body), formats=FORMATS) as image:
            if not _storable_unchanged(image, max_side):
                return _redrawn(image, max_side)
            image.load()  # to the last pixel
            return Picture(body, ENDINGS[image.format or ""], width, height, original=True)
    except Exception:
        raise FetchError("broken_image") from None


def store(picture: Picture, images: Path, item: str, n: int, temporary: Path) -> dict[str, str | int | bool]:
    """Write image ``n`` of an item atomically; an existing image ``n`` is replaced.

    Args:
        picture: picture to write.
        images: folder of the items' folders.
        item: item token that `can_name_folder` accepts.
        n: position in the item's list; names are padded, so that they sort in this order up to 1,000 images.
        temporary: a temporary path on the same file system.

    Returns:
        Fields of the manifest's row.
    """
    path = images / item / f"{n:03d}{picture.ending}"
    path.parent.mkdir(exist_ok=True)
    temporary.write_bytes(picture.data)
    os.replace(temporary, path)
    remove(images, item, n, keep=picture.ending)
    return {
        "file": f"{item}/{path.name}",
        "bytes": len(picture.data),
        "sha256": hashlib.sha256(picture.data).hexdigest(),
        "width": picture.width,
        "height": picture.height,
        "original": picture.original,
    }


def remove(images: Path, item: str, n: int, keep: str = "") -> None:
    """Remove the files of one image.

    Args:
        images: folder of the items' folders.
        item: item token.
        n: position of the image in the item's list.
        keep: ending of a file that is not removed.
    """
    for ending in set(ENDINGS.values()) - {keep}:
        (images / item / f"{n:03d}{ending}").unlink(missing_ok=True)


def _storable_unchanged(image: Image.Image, max_side: int | None) -> bool:
    return (
        image.format in ENDINGS
        and image.mode in PORTABLE_MODES
        and "transparency" not in image.info
        and not getattr(image, "is_animated", False)
        and _orientation(image) == 1
        and (max_side is None or max(image.size) <= max_side)
    )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture with damaged EXIF data is still valid
        return 1
    return value if value in range(2, 9) else 1


def _redrawn(image: Image.Image, max_side: int | None) -> Picture:
    rotated = _orientation(image) != 1
    if max_side:
        image.draft(None, (2 * max_side, 2 * max_side))  # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size
    image.load()
    drawn = ImageOps.exif_transpose(image) if rotated else image
    if drawn.mode.startswith("I;16"):  # Pillow would clip values of up to 65,535 at 255
        drawn = drawn.point(lambda value: value / 256).convert("L")
    if "A" in drawn.mode or "a" in drawn.mode or "transparency" in drawn.info:
        foreground = drawn.convert("RGBA")
        drawn = Image.new("RGBA", foreground.size, "white")
        drawn.alpha_composite(foreground)
    drawn = drawn.convert("RGB")
    if max_side:
        drawn.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    drawn.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return Picture(out.getvalue(), ".jpg", *drawn.size, original=False)
