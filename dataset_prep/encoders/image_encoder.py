"""Image features by a CLIP model of the `open_clip` kind: ViT-L/14 by OpenAI, as in the paper, or any other.

`encode_images` takes the pictures `images/<item>/*` of every item through the model's own preprocessing and its image tower.
The vectors are not normalised; stage 1 does that.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset_prep.encoders import clip_models
from dataset_prep.encoders.distributed import pick_device
from dataset_prep.encoders.item_texts import read_items
from dataset_prep.encoders.model_files import require_installed
from dataset_prep.encoders.sharded_encoding import Encoder, Job, encode
from dataset_prep.encoders.shards import Shard, computed
from recbole_qbert.data.builtin_encoders import find_images
from recbole_qbert.utils.io import digest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # told by content; for others Pillow may start programs (PostScript)
MAX_PIXELS = 64_000_000  # larger pictures are not decoded: a file of some kilobytes can be one of gigabytes
MAX_RATIO = 64  # of the longer side to the shorter, which is enlarged to the model's size before the picture is cropped


def encode_images(
    folder: str | Path,
    dataset: str,
    *,
    model: str = "ViT-L-14",
    pretrained: str = "openai",
    max_images: int = 1,
    precision: str = "fp32",
    batch_size: int = 64,
    shard_size: int = 1024,
    device: str = "auto",
    output: str | Path | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write ``X.image.npy`` beside ``X.items.txt`` and ``X.features.json``.

    It is ``[N, J, D]`` float32, ``J`` the most images of an item, or ``[N, D]`` when that is 1; NaN where there is no image
    or it cannot be read. Start it by `torchrun` for several processes or machines that share the folder: same bytes, given
    the same number of threads a process.

    Args:
        folder: the data set's own, with ``X.item`` (or ``X.items.txt``) and ``images/<item>/*``.
        dataset: its name, ``X``.
        model: an architecture that open_clip knows; or ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``, a folder or hub model
            with `open_clip_config.json` and weights.
        pretrained: the weights of an architecture: a tag that open_clip knows; ``TAG=FILE`` for those of that tag in a local
            file; or a FILE alone, where its preprocessing is not in doubt.
        max_images: images an item, the first by name.
        precision: of the weights and the computation, ``fp32``, ``bf16`` or ``fp16``.
        batch_size: images a batch; a matter of memory and speed.
        shard_size: items between two savings.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        output: where to write, if not to ``folder``.
        rebuild: replace what is there (`encoding.encode`).
        progress: show a bar.

    Returns:
        The record that ``X.features.json`` holds of the images.

    Raises:
        FileNotFoundError: no ``X.item`` and no ``X.items.txt``.
        ValueError: an option, the model or the files that are there cannot be used, or there is no image.
    """
    _check(max_images, precision, batch_size)
    require_installed("open_clip", "torchvision", "PIL")
    items = read_items(Path(folder), dataset)
    images = [files[:max_images] for files in find_images(Path(folder) / "images", items)]
    most = max(map(len, images))
    if not most:
        raise ValueError(
            f"{Path(folder) / 'images'} holds no image of an item of {dataset}; put them at images/<item>/<name>"
        )
    chosen = pick_device(device)
    source = clip_models.find(model, pretrained)
    network, preprocess = clip_models.load(source, precision, chosen)
    settings = {
        "kind": "open_clip, image tower",
        "architecture": source.architecture,
        "weights": source.hashes(),
        "quick_gelu": source.quick_gelu,
        "preprocessing": network.visual.preprocess_cfg,
        "transforms": str(preprocess),
        "precision": precision,
        "images_per_item": most,
        # By name and size: to read them all once more would take about as long as to encode them.
        "images": digest([[(path.name, _size(path)) for path in files] for files in images]),
    }
    about = {
        "encoder": f"open_clip {model}" + (f" ({pretrained})" if source.architecture else ""),
        "model": model,
        "pretrained": pretrained if source.architecture else None,
        "device": str(chosen),
        "threads": torch.get_num_threads(),
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "open_clip_torch", "torchvision", "pillow")}
    target = Path(output) if output is not None else Path(folder)
    job = Job(target, dataset, "image", items, settings, about, versions, shard_size)

    def load() -> Encoder:
        encoder = ImageEncoder(network, preprocess, precision, most, batch_size)
        return lambda rows, advance: encoder([images[row] for row in rows], advance)

    return encode(job, load, rebuild=rebuild, progress=progress)


class ImageEncoder:
    """A model with its preprocessing.

    Args:
        network: has ``encode_image``: ``[B, 3, H, W]`` to ``[B, D]``.
        preprocess: PIL image to ``[3, H, W]``.
        precision: as of `encode_images`.
        most: ``J``, vectors an item.
        batch_size: images a batch.
    """

    def __init__(
        self, network: Any, preprocess: Callable[[Any], torch.Tensor], precision: str, most: int, batch_size: int
    ) -> None:
        self.network, self.preprocess, self.most, self.batch_size = network, preprocess, most, batch_size
        self.dtype = PRECISIONS[precision]
        self.device = next(network.parameters()).device

    def __call__(self, images: Sequence[Sequence[Path]], advance: Callable[[int], object] = lambda done: None) -> Shard:
        """Vectors of the images of ``n`` items, ``[n, J, D]``, or ``[n, D]`` when J is 1."""
        places = [(row, place) for row, files in enumerate(images) for place in range(len(files))]
        found: dict[tuple[int, int], np.ndarray] = {}
        problems: list[str] = []
        seen = 0
        for batch, pictures in self._pictures(places, images):
            good: dict[tuple[int, int], torch.Tensor] = {}
            for (row, place), picture in zip(batch, pictures, strict=True):
                if isinstance(picture, str):
                    path = images[row][place]
                    problems.append(f"{path.parent.name}/{path.name}: {picture}")
                else:
                    good[row, place] = picture
            if good:
                found |= zip(good, self._encode(torch.stack(list(good.values()))), strict=True)
            advance(batch[-1][0] - seen)
            seen = batch[-1][0]
        advance(len(images) - seen)
        width = next(iter(found.values())).shape[0] if found else self._width()
        result = np.full((len(images), self.most, width), np.nan, np.float32)
        for where, vector in found.items():
            result[where] = vector
        without = sum(not files for files in images)
        counts = {"images": len(found), "unreadable images": len(problems), "items without image": without}
        return Shard(result[:, 0] if self.most == 1 else result, counts, problems)

    def _pictures(
        self, places: list[tuple[int, int]], images: Sequence[Sequence[Path]]
    ) -> Iterator[tuple[list[tuple[int, int]], list[torch.Tensor | str]]]:
        """Batches of images as the model wants them, or why not; the next batch is read while one is encoded."""
        chunks = [places[start : start + self.batch_size] for start in range(0, len(places), self.batch_size)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            waiting: list[list[Future[torch.Tensor | str]]] = []
            for number in range(len(chunks) + 1):
                if number < len(chunks):
                    waiting.append([pool.submit(self._picture, images[row][place]) for row, place in chunks[number]])
                if number:
                    yield chunks[number - 1], [future.result() for future in waiting.pop(0)]

    def _picture(self, path: Path) -> torch.Tensor | str:
        from PIL import Image

        try:
            with Image.open(path, formats=FORMATS) as image:  # reads the head of the file only
                width, height = image.size
                if width * height > MAX_PIXELS:
                    return f"{width} x {height} pixels are too many to decode (at most {MAX_PIXELS})"
                if max(width, height) > MAX_RATIO * min(width, height):
                    return f"{width} x {height} pixels are too narrow for a picture (at most {MAX_RATIO} to 1)"
                return self.preprocess(image)
        except MemoryError:
            raise
        except Exception as error:  # damaged files make Pillow's readers fail in every way there is
            return f"{type(error).__name__}: {str(error).replace(str(path), path.name)}"

    @torch.inference_mode()
    def _encode(self, pictures: torch.Tensor) -> np.ndarray:
        made = self.network.encode_image(pictures.to(self.device, self.dtype), normalize=False)
        return computed(made.float().cpu().numpy())

    def _width(self) -> int:
        """``D``, where there was no picture to tell it."""
        from PIL import Image

        return self._encode(self.preprocess(Image.new("RGB", (64, 64))).unsqueeze(0)).shape[1]


def _size(path: Path) -> int:
    """Bytes of a file, -1 where it cannot be opened: that will be said of it when its turn comes."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _check(max_images: int, precision: str, batch_size: int) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; it must be {', '.join(PRECISIONS)}")
    for name, number in (("max_images", max_images), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
