"""dataset_prep.images.image_files: what is a picture, what of it is kept, and which item ids may name a folder."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_prep.images import image_files
from dataset_prep.images.image_files import can_name_folder, examine
from dataset_prep.images.rate_limits import FetchError

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as download has it


def picture(seed: int = 0, side: int = 32, kind: str = "JPEG", **more: Any) -> bytes:
    """Noise, so that its bytes are many and its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, kind, **more)
    return out.getvalue()


def rotated() -> Image.Image:
    """What a camera held sideways writes: red lies left when shown upright, top in the file."""
    image = Image.new("RGB", (16, 32), "blue")
    image.paste("red", (0, 16, 16, 32))
    return image


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[image_files.ORIENTATION] = 6  # turn by 90 degrees clockwise to show
    kept = examine(encoded(rotated(), "JPEG", exif=exif, quality=95), max_pixels=10_000)
    shown = Image.open(BytesIO(kept.data))
    assert (kept.width, kept.height, kept.original) == (32, 16, False) and shown.size == (32, 16)
    left, right = (np.array(shown.getpixel((x, 8))) for x in (4, 27))
    assert abs(left - (255, 0, 0)).max() < 12 and abs(right - (0, 0, 255)).max() < 12
    assert shown.getexif().get(image_files.ORIENTATION, 1) == 1  # or it would be turned twice


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_plain_pictures_keep_their_bytes_and_get_their_own_ending(kind: str) -> None:
    data = picture(kind=kind)
    kept = examine(data, max_pixels=10_000)
    assert (kept.data, kept.original, kept.ending) == (data, True, image_files.ENDINGS[kind])


def colours(data: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int).reshape(-1, 3).mean(0)


def test_other_pictures_are_redrawn() -> None:
    red = Image.new("RGB", (40, 20), "red")
    frames = {"save_all": True, "append_images": [Image.new("RGB", (40, 20), "blue")]}
    grey16 = Image.fromarray(np.full((20, 40), 32_768, np.uint16))
    for data, colour in [
        (encoded(red, "GIF", **frames), (255, 0, 0)),  # the first frame
        (encoded(red, "PNG", **frames), (255, 0, 0)),
        (encoded(red, "WEBP", lossless=True, **frames), (255, 0, 0)),
        (encoded(Image.new("RGBA", (40, 20), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),  # on white
        (encoded(red.convert("P"), "PNG", transparency=red.convert("P").getpixel((0, 0))), (255, 255, 255)),
        (encoded(red.convert("CMYK"), "JPEG", quality=100), (255, 0, 0)),
        (encoded(grey16, "PNG"), (128, 128, 128)),  # not cut at 255
    ]:
        kept = examine(data, max_pixels=10_000)
        assert (kept.ending, kept.original, kept.width, kept.height) == (".jpg", False, 40, 20)
        assert abs(colours(kept.data) - colour).max() < 4, colour


def test_large_pictures_are_shrunk_on_request() -> None:
    data = encoded(Image.linear_gradient("L").convert("RGB").resize((400, 200)), "JPEG")
    kept = examine(data, max_pixels=100_000, max_side=50)
    assert (kept.width, kept.height, kept.original) == (50, 25, False)
    assert abs(colours(kept.data) - colours(data)).max() < 3
    assert examine(data, max_pixels=100_000, max_side=400).data == data


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(side: int) -> bytes:
    """A small PNG of side x side black pixels."""
    lines = zlib.compressobj(9)
    packed = b"".join(lines.compress(bytes(1 + side // 8)) for _ in range(side)) + lines.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 12_000, 20_000])  # below Pillow's warning, between that and its error, above
def test_bombs_are_refused_before_they_are_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb(side)
    assert len(data) < 200_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(FetchError, match="too_many_pixels"):
        examine(data, max_pixels=50_000_000)


def damaged_png() -> bytes:
    data = bytearray(picture(kind="PNG"))
    data[len(data) // 2] ^= 1
    return bytes(data)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_image"),
        (b"<html>no such picture</html>", "not_an_image"),
        (EPS, "not_an_image"),  # Pillow would start an interpreter
        (encoded(Image.new("RGB", (32, 32)), "TIFF"), "not_an_image"),
        (encoded(Image.new("P", (1, 1)), "GIF"), "too_small"),  # what shops send for a picture they no longer have
        *((picture(kind=kind)[:-300], "broken_image") for kind in ("JPEG", "PNG", "BMP")),
        (picture(kind="JPEG", progressive=True)[:-300], "broken_image"),
        (damaged_png(), "broken_image"),
    ],
)
def test_what_is_no_whole_picture_is_a_miss(data: bytes, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        examine(data, max_pixels=10_000)
    assert (caught.value.reason, caught.value.transient) == (reason, False)


def test_mutilated_pictures_never_crash() -> None:
    rng = random.Random(1)
    originals = [picture(kind=kind, side=12) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")]
    outcomes = set()
    for _ in range(2_000):
        data = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            kept = examine(bytes(data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data), max_pixels=10_000)
            Image.open(BytesIO(kept.data)).convert("RGB")
            outcomes.add("ok")
        except FetchError as miss:
            outcomes.add(miss.reason)
    assert {"ok", "not_an_image", "broken_image"} <= outcomes


HOSTILE = ["", ".", "..", "../x", "/abs", "a/b", "a\\b", "..\\x", ".hidden", "a.", "a ", " a", "x" * 201, "漢" * 67]
HOSTILE += ["CON", "nul.txt", "com1", "a:b", "a*b", "a?b", "<a>", "a|b", "~/../x", "a\x00b", "\x7f", "a\u0085b", "\ud83d"]


def test_item_ids_that_may_name_a_folder() -> None:
    assert not any(map(can_name_folder, HOSTILE))
    assert all(map(can_name_folder, ["B002SQJL9U", "a.b", "a..b", "-x", "CONSOLE", "x" * 200, "漢" * 66, "a b", "~"]))
