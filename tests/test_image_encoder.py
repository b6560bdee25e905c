"""A tiny open_clip model with known weights: vectors, broken pictures, several an item, which weights go with what."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_prep.encoders import clip_models, torchvision_ops
from dataset_prep.encoders.image_encoder import ImageEncoder, encode_images
from recbole_qbert.data import item_features as features
from recbole_qbert.utils.io import sha256
from tests.helpers import files
from tests.helpers_encoding import Journal, end, killed_at, run, together

torchvision_ops.make_importable()
open_clip = pytest.importorskip("open_clip", reason="the extra 'encoders' is not installed")

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = ["red", "green", "blue", "white", "black", "yellow"]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny architecture, known to open_clip by the name `tiny`, and a file of its weights."""
    from open_clip import factory

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    known = factory._MODEL_CONFIG_PATHS.copy()
    open_clip.add_model_config(folder / "tiny.json")
    torch.manual_seed(5)
    torch.save(open_clip.create_model("tiny").state_dict(), folder / "tiny.pt")
    yield folder / "tiny.pt"
    factory._MODEL_CONFIG_PATHS[:] = known
    factory._rescan_model_configs()


def draw(path: Path, colour: str = "red", size: tuple[int, int] = (40, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.paste("grey", (0, 0, size[0] // 2, size[1] // 3))
    image.save(path)
    return path


def shop(folder: Path, counts: tuple[int, ...] = (1, 0, 3, 2, 1, 1)) -> Path:
    """A data set in which item n has so many pictures."""
    for number, count in enumerate(counts):
        for place in range(count):
            draw(folder / "images" / f"i{number}" / f"{place:03d}.png", COLOURS[(number + place) % 6])
    rows = "".join(f"i{number}\tItem {number}\n" for number in range(len(counts)))
    (folder / "toy.item").write_text(f"item_id:token\ttitle:token_seq\n{rows}")
    return folder


def make(folder: Path, weights: Path | str, **options: Any) -> dict[str, Any]:
    given = {"model": "tiny", "pretrained": str(weights), "shard_size": 2, "progress": False, **options}
    return encode_images(folder, "toy", **given)


def by_hand(weights: Path, path: Path, **options: Any) -> np.ndarray:
    """One picture through open_clip as its documentation has it."""
    network, preprocess = open_clip.create_model_from_pretrained("tiny", str(weights), **options)
    with torch.no_grad(), Image.open(path) as image:
        return network.eval().encode_image(preprocess(image).unsqueeze(0))[0].numpy()


def test_one_image_an_item(tmp_path: Path, weights: Path) -> None:
    folder = shop(tmp_path)
    record = make(folder, weights)
    vectors = np.load(folder / "toy.image.npy")
    assert vectors.shape == (6, 12) and vectors.dtype == np.float32
    for number in (0, 2, 5):
        alone = by_hand(weights, folder / "images" / f"i{number}" / "000.png")
        np.testing.assert_allclose(vectors[number], alone, atol=1e-5)
    assert np.ptp(vectors[[0, 2, 3]], axis=0).max() > 1e-3
    network, _ = clip_models.load(clip_models.find("tiny", str(weights)), "fp32", torch.device("cpu"))
    assert not network.training  # as open_clip makes them, they are
    assert np.isnan(vectors).all(1).tolist() == [False, True] + [False] * 4
    assert record["counts"] == {"images": 5, "unreadable images": 0, "items without image": 1}
    assert record["coverage"] == pytest.approx(5 / 6) and record["problems"] == []
    assert json.loads((folder / "toy.features.json").read_text()) == {"image": record}


def test_an_overflow_is_not_taken_for_no_image(tmp_path: Path) -> None:
    class Overflow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode_image(self, pictures: torch.Tensor, normalize: bool) -> torch.Tensor:
            return torch.full((len(pictures), 4), torch.nan)

    encoder = ImageEncoder(Overflow(), lambda image: torch.zeros(3, 8, 8), "fp32", 1, 2)
    vectors = encoder([[draw(tmp_path / "a.png")], []]).vectors
    assert np.isinf(vectors[0]).all() and np.isnan(vectors[1]).all()


def test_several_images_an_item(tmp_path: Path, weights: Path) -> None:
    folder = shop(tmp_path)
    for batch_size in (1, 2, 64):
        record = make(folder, weights, max_images=4, batch_size=batch_size, rebuild=True)
        assert record["shape"] == [6, 3, 12]  # no item has four
        there = ~np.isnan(np.load(folder / "toy.image.npy")).all(2)
        assert there.sum(1).tolist() == [1, 0, 3, 2, 1, 1] and there[3].tolist() == [True, True, False]
        third = by_hand(weights, folder / "images" / "i2" / "002.png")
        np.testing.assert_allclose(np.load(folder / "toy.image.npy")[2, 2], third, atol=1e-5)
    loaded = features.load(folder, "toy", ["i2"], ["image"])
    assert loaded.vectors["image"].shape == (1, 3, 12)
    assert make(folder, weights, max_images=2, rebuild=True)["shape"] == [6, 2, 12]


def png_bomb(side: int) -> bytes:
    """A file of some bytes that says it is so many pixels wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_broken_images_are_missing_with_a_reason(tmp_path: Path, weights: Path) -> None:
    folder = shop(tmp_path, (1,) * 10)
    places = [folder / "images" / f"i{number}" / "000.png" for number in range(10)]
    places[1].write_bytes(places[1].read_bytes()[:60])
    places[2].write_text("<html>not found</html>")
    places[3].write_bytes(b"")
    places[4].write_bytes(png_bomb(9_000))
    places[8].write_bytes(png_bomb(50_000))
    draw(places[5], size=(2, 400))
    places[6].write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    places[7].unlink()
    places[7].symlink_to(tmp_path / "gone.png")
    record = make(folder, weights)
    there = ~np.isnan(np.load(folder / "toy.image.npy")).all(1)
    assert there.tolist() == [True] + [False] * 8 + [True]
    assert record["counts"] == {"images": 2, "unreadable images": 8, "items without image": 0}
    reasons = dict(line.split(": ", 1) for line in record["problems"])
    assert list(reasons) == [f"i{number}/000.png" for number in range(1, 9)]
    assert "cannot identify" in reasons["i2/000.png"] and "cannot identify" in reasons["i6/000.png"]
    assert "9000 x 9000" in reasons["i4/000.png"] and "too large" in reasons["i8/000.png"]
    assert "2 x 400 pixels are too narrow" in reasons["i5/000.png"]
    assert "No such file" in reasons["i7/000.png"]
    assert str(tmp_path) not in json.dumps(record["problems"])


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_pictures_of_every_mode(tmp_path: Path, weights: Path, mode: str) -> None:
    folder = shop(tmp_path, (1, 1))
    path = folder / "images" / "i0" / ("000.jpg" if mode == "CMYK" else "000.png")
    Image.new("RGB", (40, 40), "orange").convert("L" if mode == "I;16" else mode).convert(mode).save(path)
    record = make(folder, weights)
    assert record["counts"]["images"] + record["counts"]["unreadable images"] == 2
    if mode != "I;16":  # whether Pillow can resize these depends on its version
        assert record["coverage"] == 1


def test_shards_without_a_picture(tmp_path: Path, weights: Path) -> None:
    make(shop(tmp_path, (0, 0, 1, 0, 0)), weights)
    assert np.load(tmp_path / "toy.image.npy").shape == (5, 12)
    (tmp_path / "images" / "i2" / "000.png").write_bytes(b"broken")
    record = make(tmp_path, weights, rebuild=True)
    assert record["coverage"] == 0 and record["shape"] == [5, 12]


def test_weights_and_preprocessing_are_recorded_and_never_mixed(tmp_path: Path, weights: Path) -> None:
    folder = shop(tmp_path / "data")
    settings = make(folder, weights)["settings"]
    assert settings["weights"] == {"file": sha256(weights)} and settings["architecture"] == "tiny"
    assert settings["preprocessing"]["size"] == [32, 32] and settings["preprocessing"]["interpolation"] == "bicubic"
    assert settings["preprocessing"]["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    assert "Resize(size=32" in settings["transforms"] and "0x" not in settings["transforms"]
    before = files(folder)
    torch.manual_seed(6)
    torch.save(open_clip.create_model("tiny").state_dict(), tmp_path / "other.pt")
    refused = pytest.raises(ValueError, match=r"toy\.image\.npy.* open_clip tiny")
    with refused:
        make(folder, tmp_path / "other.pt")
    for options in ({"precision": "bf16"}, {"max_images": 2}):
        with refused:
            make(folder, weights, **options)
    assert files(folder) == before
    draw(folder / "images" / "i1" / "000.png")
    with pytest.raises(ValueError, match="images: "):
        make(folder, weights)
    assert make(folder, weights, rebuild=True)["coverage"] == 1


def test_precision(tmp_path: Path, weights: Path) -> None:
    exact = make(shop(tmp_path / "fp32"), weights) and np.load(tmp_path / "fp32" / "toy.image.npy")
    make(shop(tmp_path / "bf16"), weights, precision="bf16")
    rough = np.load(tmp_path / "bf16" / "toy.image.npy")
    assert rough.dtype == np.float32 and 0 < np.nanmax(np.abs(rough - exact)) < 0.1


def test_text_first_then_images(tmp_path: Path, weights: Path) -> None:
    folder = shop(tmp_path)
    features.save(
        folder, "toy", [f"i{n}" for n in range(6)], {"text": np.ones((6, 2), np.float32)}, {"text": {"by": "hand"}}
    )
    record = make(folder, weights)
    assert json.loads((folder / "toy.features.json").read_text()) == {"text": {"by": "hand"}, "image": record}
    (folder / "toy.item").unlink()  # the list of items does as well
    assert make(folder, weights) == record
    (folder / "toy.items.txt").write_text("".join(f"i{n}\n" for n in range(5, -1, -1)))
    (folder / "toy.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tx\n" for n in range(6)))
    with pytest.raises(ValueError, match=r"line 1 .*toy\.text\.npy"):
        make(folder, weights, rebuild=True)


def test_killed_and_started_again(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(shop(tmp_path / "calm"), weights, max_images=3)
    journal, encode = Journal(tmp_path / "journal"), ImageEncoder.__call__

    def watched(self: ImageEncoder, images: Any, advance: Any) -> Any:
        shard = encode(self, images, advance)
        journal([[f"{path.parent.name}/{path.name}" for path in paths] for paths in images])
        return shard

    monkeypatch.setattr(ImageEncoder, "__call__", watched)

    def doomed() -> None:
        monkeypatch.setattr(ImageEncoder, "_encode", killed_at(3, ImageEncoder._encode))
        make(shop(tmp_path / "hit"), weights, max_images=3)

    assert run(doomed) == -9
    assert len(journal.lines()) == 2
    make(tmp_path / "hit", weights, max_images=3)
    assert len(journal.lines()) == len(set(journal.lines())) == 3  # every shard once
    assert files(tmp_path / "hit") == files(tmp_path / "calm")


def test_two_processes_make_what_one_makes(tmp_path: Path, weights: Path) -> None:
    make(shop(tmp_path / "one"), weights)
    folder = shop(tmp_path / "two")
    works = [lambda: make(folder, weights)] * 2
    assert [end(process) for process in together(*works)] == [0, 0]
    assert files(folder) == files(tmp_path / "one")


# --------------------------------------------------------------------------------------------------- which weights
SHARP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "resize_mode": "squash", "quick_gelu": True}
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def publish(monkeypatch: pytest.MonkeyPatch, **tags: Any) -> None:
    from open_clip import pretrained

    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", tags)


def test_a_tag_brings_preprocessing_and_activation(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, sharp={**SHARP, "file": str(weights)}, plain={**PLAIN, "file": str(weights)})
    folder = shop(tmp_path, (1, 1))
    path = folder / "images" / "i0" / "000.png"
    look = {
        "image_mean": (0.5,) * 3,
        "image_std": (0.5,) * 3,
        "image_interpolation": "bilinear",
        "image_resize_mode": "squash",
    }
    expected = by_hand(weights, path, force_quick_gelu=True, **look)
    assert np.abs(expected - by_hand(weights, path, **look)).max() > 1e-3  # the activation matters
    for pretrained in ("sharp", f"sharp={weights}"):
        record = make(folder, pretrained, rebuild=True)
        np.testing.assert_allclose(np.load(folder / "toy.image.npy")[0], expected, atol=1e-5)
        assert record["settings"]["quick_gelu"] is True and record["settings"]["preprocessing"]["mean"] == [0.5] * 3
    assert make(folder, "plain", rebuild=True)["settings"]["quick_gelu"] is False
    with pytest.raises(ValueError, match=r"TAG=.*sharp, plain"):
        make(folder, weights, rebuild=True)
    publish(monkeypatch, sharp=SHARP, same=SHARP)
    assert make(folder, weights, rebuild=True)["settings"]["quick_gelu"] is True  # no doubt about this one


def test_the_papers_weights_get_their_activation(weights: Path) -> None:
    """open_clip only warns that OpenAI's weights, under the plain name of the architecture, want QuickGELU."""
    source = clip_models.find("ViT-L-14", f"openai={weights}")
    assert source.quick_gelu is True and dict(source.preprocessing)["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert clip_models.find("ViT-L-14-quickgelu", f"openai={weights}").quick_gelu is True
    assert clip_models.find("ViT-L-14", f"laion2b_s32b_b82k={weights}").quick_gelu is False
    with pytest.raises(ValueError, match=f"TAG={weights}"):
        clip_models.find("ViT-L-14", str(weights))


def test_a_folder_of_its_own(tmp_path: Path, weights: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": PLAIN}))
    folder = shop(tmp_path / "data", (1, 1))
    with pytest.raises(ValueError, match=r"\*\.safetensors"):
        make(folder, "", model=f"local-dir:{model}")
    torch.save(torch.load(weights), model / "open_clip_pytorch_model.bin")
    record = make(folder, "", model=f"local-dir:{model}")
    look = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    expected = by_hand(weights, folder / "images" / "i1" / "000.png", **look)
    np.testing.assert_allclose(np.load(folder / "toy.image.npy")[1], expected, atol=1e-5)
    assert record["settings"]["weights"] == {path.name: sha256(path) for path in sorted(model.iterdir(), reverse=False)}
    assert record["pretrained"] is None and record["settings"]["preprocessing"]["std"] == [1.0] * 3
    with pytest.raises(ValueError, match=r"open_clip_config\.json"):
        make(folder, "", model=f"local-dir:{tmp_path}")


def test_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("Failed to download file. Last error: no route")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    said = r"'openai' of ViT-L-14 .*Failed to .*download_pretrained.*ViT-L-14.* openai=FILE"
    with pytest.raises(ValueError, match=said):
        make(shop(tmp_path), "openai", model="ViT-L-14")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_weights_that_cannot_be_loaded(tmp_path: Path, weights: Path) -> None:
    folder = shop(tmp_path / "data", (1, 1))
    part = torch.load(weights)
    del part["visual.proj"]
    torch.save(part, tmp_path / "part.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name in ("part.pt", "junk.pt"):
        with pytest.raises(ValueError, match=f"{name}: open_clip"):
            make(folder, tmp_path / name)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(ValueError, match=r"program\.pt: .* TorchScript.* torch\.save\("):
        make(folder, tmp_path / "program.pt")
    assert not (folder / "toy.image.npy").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_openais_archives_can_be_converted_as_the_message_says(tmp_path: Path, weights: Path) -> None:
    """They hold three numbers besides the weights."""

    class Archive(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in torch.load(weights).items():
                self.register_buffer(name.replace(".", "__"), value)
            self.register_buffer("input_resolution", torch.tensor(32))

        def forward(self) -> int:
            return 0

    torch.jit.save(torch.jit.script(Archive()), tmp_path / "program.pt")
    line = clip_models.CONVERT_TORCHSCRIPT.replace("FILE", repr(str(tmp_path / "program.pt")))
    exec(line.replace("'weights.pt'", repr(str(tmp_path / "weights.pt"))), {"torch": torch})
    converted = torch.load(tmp_path / "weights.pt")
    assert {name.replace("__", ".") for name in converted} == set(torch.load(weights))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_images": 0}, "max_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "int8"}, "precision is 'int8'.*fp32, bf16, fp16"),
        ({"model": "ViT-L-41"}, "'ViT-L-41'.*'ViT-L-14'"),
        ({"model": "ViT-L-14", "pretrained": "openia"}, "ViT-L-14 .*'openia'"),
        ({"model": "ViT-L-14", "pretrained": "openai=/no/file"}, "/no/file"),
        ({"pretrained": "/no/file"}, "/no/file.*tiny"),
        ({"model": "hf-hub:../x"}, "'../x'"),
    ],
)
def test_bad_options(tmp_path: Path, weights: Path, options: dict[str, Any], message: str) -> None:
    folder = shop(tmp_path)
    before = files(folder)
    with pytest.raises(ValueError, match=message):
        make(folder, **{"weights": weights, **{"weights" if k == "pretrained" else k: v for k, v in options.items()}})
    assert files(folder) == before


def test_no_image_at_all(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ValueError, match=r"images .*toy"):
        make(shop(tmp_path, (0, 0)), weights)
    with pytest.raises(FileNotFoundError, match=r"toy\.item"):
        make(tmp_path / "nowhere", weights)


# ------------------------------------------------------------------------------------------------------ torchvision
def fake_torchvision(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Ask the room to import a torchvision that consists of the given lines."""
    (folder / "torchvision").mkdir(exist_ok=True)
    (folder / "torchvision" / "__init__.py").write_text(body)
    script = (
        "import sys\nfrom dataset_prep.encoders import torchvision_ops as room\n"
        "try:\n    print(room.make_importable(), room.make_importable(), len(room._declared), 'torch' in sys.modules)\n"
        "except Exception as error:\n    print(type(error).__name__, error, len(room._declared))\n"
    )
    path = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True, env=path)


def test_a_torchvision_that_works_is_left_alone(tmp_path: Path) -> None:
    assert fake_torchvision(tmp_path, "").stdout == "False False 0 False\n"


@pytest.mark.parametrize(
    "error", ["RuntimeError('operator torchvision::roi_align does not exist')", "ImportError('no libjpeg')", "OSError('no')"]
)
def test_other_errors_of_torchvision_are_not_touched(tmp_path: Path, error: str) -> None:
    kind, text = error[:-2].split("('")
    assert fake_torchvision(tmp_path, f"raise {error}").stdout == f"{kind} {text} 0\n"


@pytest.mark.pipeline
def test_missing_operators_are_declared(tmp_path: Path) -> None:
    """As PyPI's CUDA build behaves beside a CPU torch, wherever this is run."""
    body = (
        "import torch\n"
        "for name in ('nms', 'qnms'):\n"
        "    torch.library.register_fake(f'torchvision::{name}', lambda dets, scores, iou_threshold: dets)\n"
    )
    assert fake_torchvision(tmp_path, body).stdout == "True False 1 True\n"


def test_the_installed_torchvision_can_be_used() -> None:
    import torchvision

    assert torchvision.transforms.Resize(4)(Image.new("RGB", (8, 8))).size == (4, 4)
    assert torchvision_ops.make_importable() is False  # the second time, there is nothing to do
