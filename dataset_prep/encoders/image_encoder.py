"""Compute image features with a CLIP model of open_clip: OpenAI's ViT-L/14, as in the paper, or any other.

`encode_images` applies the model's own preprocessing and its image tower to the pictures `images/<item>/*` of every item.
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
from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.builtin_encoders import find_images
from recbole_qbert.data.pictures import open_picture
from recbole_qbert.utils.io import digest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_RATIO = 64  # longer to shorter side; the shorter is enlarged to the model's size before the picture is cropped


def encode_images(
    folder: str | Path,
    dataset: str,
    *,
    model: str = "ViT-L-14",
    pretrained: str = "openai",
    max_images: int = 1,
    form: AtomicFormat = RECBOLE_FORMAT,
    precision: str = "fp32",
    batch_size: int = 64,
    shard_size: int = 1024,
    device: str = "auto",
    output: str | Path | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write ``X.image.npy`` beside ``X.items.txt`` and ``X.features.json``.

    The matrix is ``[N, J, D]`` float32, where ``J`` is the largest number of images of an item, or ``[N, D]`` if that is 1;
    NaN for a missing or unreadable image. With `torchrun`, several processes or machines share the work in one folder and
    write the same bytes, given the same number of threads per process.

    Args:
        folder: folder of the data set, with ``X.item`` (or ``X.items.txt``) and ``images/<item>/*``.
        dataset: name of the data set, ``X``.
        model: an architecture of open_clip; or ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``, a folder or hub model with
            `open_clip_config.json` and weights.
        pretrained: the weights of an architecture: a tag of open_clip; ``TAG=FILE`` for the weights of that tag in a local
            file; or a FILE alone, if all tags of the architecture have the same preprocessing.
        max_images: images per item, the first by name.
        form: how ``X.item`` is written.
        precision: precision of weights and computation, ``fp32``, ``bf16`` or ``fp16``.
        batch_size: images per batch; affects memory and speed.
        shard_size: items per shard, after which the result is saved.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        output: output folder; by default ``folder``.
        rebuild: replace existing features (`sharded_encoding.encode`).
        progress: show a bar.

    Returns:
        The record of the images in ``X.features.json``.

    Raises:
        FileNotFoundError: there is neither ``X.item`` nor ``X.items.txt``.
        ValueError: an option, the model or existing files cannot be used, or there is no image.
    """
    _check(max_images, precision, batch_size)
    require_installed("open_clip", "torchvision", "PIL")
    items = read_items(Path(folder), dataset, form)
    images = [files[:max_images] for files in find_images(Path(folder) / "images", items)]
    vectors_per_item = max(map(len, images))
    if not vectors_per_item:
        raise ValueError(
            f"{Path(folder) / 'images'} holds no image of an item of {dataset}; save images as images/<item>/<name>"
        )
    torch_device = pick_device(device)
    source = clip_models.find(model, pretrained)
    network, preprocess = clip_models.load(source, precision, torch_device)
    settings = {
        "kind": "open_clip, image tower",
        "architecture": source.architecture,
        "weights": source.hashes(),
        "quick_gelu": source.quick_gelu,
        "preprocessing": network.visual.preprocess_cfg,
        "transforms": str(preprocess),
        "precision": precision,
        "images_per_item": vectors_per_item,
        # By name and size, because reading all files would take about as long as encoding them.
        "images": digest([[(path.name, _size(path)) for path in files] for files in images]),
    }
    about = {
        "encoder": f"open_clip {model}" + (f" ({pretrained})" if source.architecture else ""),
        "model": model,
        "pretrained": pretrained if source.architecture else None,
        "device": str(torch_device),
        "threads": torch.get_num_threads(),
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "open_clip_torch", "torchvision", "pillow")}
    target = Path(output) if output is not None else Path(folder)
    job = Job(target, dataset, "image", items, settings, about, versions, shard_size)

    def load() -> Encoder:
        encoder = ImageEncoder(network, preprocess, precision, vectors_per_item, batch_size)
        return lambda rows, advance: encoder([images[row] for row in rows], advance)

    return encode(job, load, rebuild=rebuild, progress=progress)


class ImageEncoder:
    """Encode images with a model and its preprocessing.

    Args:
        network: model with ``encode_image``: ``[B, 3, H, W]`` to ``[B, D]``.
        preprocess: converts a PIL image to ``[3, H, W]``.
        precision: see `encode_images`.
        vectors_per_item: ``J``.
        batch_size: images per batch.
    """

    def __init__(
        self, network: Any, preprocess: Callable[[Any], torch.Tensor], precision: str, vectors_per_item: int, batch_size: int
    ) -> None:
        self.network, self.preprocess = network, preprocess
        self.vectors_per_item, self.batch_size = vectors_per_item, batch_size
        self.dtype = PRECISIONS[precision]
        self.device = next(network.parameters()).device

    def __call__(self, images: Sequence[Sequence[Path]], advance: Callable[[int], object] = lambda done: None) -> Shard:
        """Return the vectors of the images of ``n`` items: ``[n, J, D]``, or ``[n, D]`` if J is 1."""
        indices = [(row, number) for row, files in enumerate(images) for number in range(len(files))]
        vectors: dict[tuple[int, int], np.ndarray] = {}
        problems: list[str] = []
        completed = 0
        for batch, pictures in self._pictures(indices, images):
            decoded: dict[tuple[int, int], torch.Tensor] = {}
            for (row, number), picture in zip(batch, pictures, strict=True):
                if isinstance(picture, str):
                    path = images[row][number]
                    problems.append(f"{path.parent.name}/{path.name}: {picture}")
                else:
                    decoded[row, number] = picture
            if decoded:
                vectors |= zip(decoded, self._encode(torch.stack(list(decoded.values()))), strict=True)
            advance(batch[-1][0] - completed)
            completed = batch[-1][0]
        advance(len(images) - completed)
        width = next(iter(vectors.values())).shape[0] if vectors else self._width()
        result = np.full((len(images), self.vectors_per_item, width), np.nan, np.float32)
        for index, vector in vectors.items():
            result[index] = vector
        without = sum(not files for files in images)
        counts = {"images": len(vectors), "unreadable images": len(problems), "items without image": without}
        return Shard(result[:, 0] if self.vectors_per_item == 1 else result, counts, problems)

    def _pictures(
        self, indices: list[tuple[int, int]], images: Sequence[Sequence[Path]]
    ) -> Iterator[tuple[list[tuple[int, int]], list[torch.Tensor | str]]]:
        """Yield batches of preprocessed images, or the reasons why not; the next batch is read while one is encoded."""
        chunks = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            waiting: list[list[Future[torch.Tensor | str]]] = []
            for number in range(len(chunks) + 1):
                if number < len(chunks):
                    waiting.append([pool.submit(self._picture, images[row][image]) for row, image in chunks[number]])
                if number:
                    yield chunks[number - 1], [future.result() for future in waiting.pop(0)]

    def _picture(self, path: Path) -> torch.Tensor | str:
        try:
            with open_picture(path) as image:
                width, height = image.size
                if max(width, height) > MAX_RATIO * min(width, height):
                    return f"{width} x {height} pixels are too narrow (at most {MAX_RATIO} to 1)"
                return self.preprocess(image)
        except (ValueError, OSError) as error:
            return str(error).replace(str(path), path.name)

    @torch.inference_mode()
    def _encode(self, pictures: torch.Tensor) -> np.ndarray:
        vectors = self.network.encode_image(pictures.to(self.device, self.dtype), normalize=False)
        return computed(vectors.float().cpu().numpy())

    def _width(self) -> int:
        """Determine ``D`` if there is no picture."""
        from PIL import Image

        return self._encode(self.preprocess(Image.new("RGB", (64, 64))).unsqueeze(0)).shape[1]


def _size(path: Path) -> int:
    """Return the size of a file; -1 if it cannot be opened, which is reported when it is encoded."""
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
