"""Pictures of others: which are opened, how large, and what is said of those that are not."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recbole_qbert.data import pictures
from recbole_qbert.data.builtin_encoders import describe_image, encode_images
from recbole_qbert.experiments.report.catalog import _thumbnail

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"


def noise(size: tuple[int, int] = (90, 70), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def write(path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def bomb(side: int) -> bytes:
    """A PNG of one colour, made without its pixels in memory."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    row = b"".join(packer.compress(b"\0" * (side + 1)) for _ in range(side)) + packer.flush()
    header = side.to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "PPM", "TGA", "ICO", "PDF"])
def test_other_formats_are_refused_whatever_their_name_says(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "000.png"
    path.write_bytes(POSTSCRIPT) if kind == "EPS" else noise().save(path, kind)
    with pytest.raises(ValueError, match=r"000\.png"):
        describe_image(path)
    assert _thumbnail(path) is None


def test_no_program_is_started_for_postscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "000.png").write_bytes(POSTSCRIPT)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    matrix, errors = encode_images([[tmp_path / "000.png"]], 4, 0)
    assert np.isnan(matrix).all() and "000.png" in errors[0]


@pytest.mark.parametrize("side", [9_000, 14_000, 50_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "000.png"
    path.write_bytes(bomb(side) if side < 10_000 else bomb(10)[:16] + side.to_bytes(4, "big") * 2 + bomb(10)[24:])
    if side > 10_000:  # the checksum of the header
        body = path.read_bytes()
        path.write_bytes(body[:29] + zlib.crc32(body[12:29]).to_bytes(4, "big") + body[33:])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"000\.png: .*64,000,000"):
        describe_image(path)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:20], lambda b: b"<html>"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_damaged_file_is_named(kind: str, damage: object, tmp_path: Path) -> None:
    path = write(tmp_path / "000.png", noise(), kind)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"000\.png"):
        describe_image(path)


def test_missing_files_and_folders_are_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        describe_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match="folder"):
        describe_image(tmp_path / "folder.png")


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("PNG", "L"), ("PNG", "1"), ("PNG", "LA"),
     ("JPEG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("GIF", "P"), ("MPO", "RGB")],
)  # fmt: skip
def test_a_small_picture_is_what_pillow_makes_of_it(kind: str, mode: str, tmp_path: Path) -> None:
    """Features of usual pictures are those of earlier versions: no reduced decoding, no other conversion."""
    image = noise().convert("L").convert("I;16") if mode == "I;16" else noise(mode=mode)
    path = write(tmp_path / "a", image, kind)
    with Image.open(path) as opened:
        expected = opened.convert("RGB").resize((64, 64))
    assert np.array_equal(np.asarray(pictures.shrunk_rgb(path, 64)), np.asarray(expected))


def test_of_an_animation_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    path = write(tmp_path / "a.gif", frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(pictures.shrunk_rgb(path, 8))[0, 0].tolist() == [255, 0, 0]


def test_a_large_jpeg_is_decoded_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jpg", Image.new("RGB", (4000, 3000), (200, 100, 50)), "JPEG")
    sizes = []
    resize = Image.Image.resize

    def spy(image: Image.Image, size: tuple[int, int]) -> Image.Image:
        sizes.append(image.size)
        return resize(image, size)

    monkeypatch.setattr(Image.Image, "resize", spy)
    small = pictures.shrunk_rgb(path, 64)
    assert sizes == [(500, 375)]
    assert np.abs(np.asarray(small, int) - (200, 100, 50)).max() <= 2


def test_bytes_are_opened_alike() -> None:
    stream = io.BytesIO()
    noise().save(stream, "PNG")
    with pictures.open_picture(io.BytesIO(stream.getvalue())) as image:
        assert image.size == (90, 70)
    with pytest.raises(ValueError, match="90 x 70"), pictures.open_picture(stream, max_pixels=100):
        pass
