"""Find models of open_clip: the weights, and the activation and image preprocessing that belong to them.

One architecture was trained with different activations and image preprocessings. open_clip takes both from a model's
configuration, or from the tag of published weights. For a bare file it assumes OpenAI's preprocessing; and for OpenAI's
weights under the plain name of the architecture (`ViT-L-14`, `openai`) version 3 only warns that they need another
activation. The vectors are then worse without an error. Here the tag decides, and it is required for a file if the tags of
its architecture differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset_prep.encoders import torchvision_ops
from dataset_prep.encoders.model_files import hashes, hub_folder
from recbole_qbert.utils.io import sha256
from recbole_qbert.utils.spelling import did_you_mean

CONFIG = "open_clip_config.json"
CHECKPOINTS = ("*.safetensors", "*.bin", "*.pth")  # patterns that open_clip searches in a folder
HUB_CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
CONVERT_TORCHSCRIPT = (
    "torch.save({k: v for k, v in torch.jit.load(FILE, map_location='cpu').state_dict().items() if v.dim() or "
    "k == 'logit_scale'}, 'weights.pt')"
)


@dataclass(frozen=True)
class Source:
    """Files and settings of a model.

    Attributes:
        path: the weights of a named architecture; or a folder with `open_clip_config.json` and weights.
        architecture: name of the architecture; ``None`` if the folder's configuration has it.
        quick_gelu: whether the weights need QuickGELU; ``None`` if the folder's configuration has it.
        preprocessing: mean, standard deviation, interpolation and resize mode of the images, as far as they are known.
    """

    path: Path
    architecture: str | None = None
    quick_gelu: bool | None = None
    preprocessing: tuple[tuple[str, Any], ...] = ()

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of the weights; for a folder, name -> sha256 of its files."""
        if self.architecture:
            return {"file": sha256(self.path)}
        return hashes(self.path, [CONFIG, *CHECKPOINTS])


def find(model: str, pretrained: str) -> Source:
    """Find the files of a model; those of a tag or of the hub are downloaded if they are not in the cache.

    Args:
        model: architecture, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        pretrained: for an architecture: ``TAG``, ``TAG=FILE`` or ``FILE``.

    Raises:
        ValueError: there is no such model, it cannot be fetched, or a file needs a tag.
    """
    schema, _, rest = model.partition(":")
    if schema == "local-dir":
        return Source(_folder(Path(rest).expanduser()))
    if schema == "hf-hub":
        folder = hub_folder(rest, [CONFIG, HUB_CHECKPOINTS[0]])
        if not (folder / HUB_CHECKPOINTS[0]).exists():
            folder = hub_folder(rest, [CONFIG, HUB_CHECKPOINTS[1]])
        return Source(_folder(folder))
    torchvision_ops.make_importable()
    import open_clip

    name = model.replace("/", "-")
    if name not in open_clip.list_models():
        raise ValueError(
            f"model {model!r} is not an architecture of open_clip{did_you_mean(name, open_clip.list_models(), 3)}; for a "
            "folder or a hub model write local-dir:FOLDER or hf-hub:OWNER/NAME"
        )
    path, tag = _weights(name, pretrained)
    quick_gelu = bool(tag.get("quick_gelu", False) or open_clip.get_model_config(name).get("quick_gelu", False))
    preprocessing = tuple((key, tag[key]) for key in PREPROCESSING if key in tag)
    return Source(path, name, quick_gelu, preprocessing)


def load(source: Source, precision: str, device: torch.device) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """Load a model.

    Args:
        source: files of the model.
        precision: precision of the weights, as named by open_clip.
        device: device of the weights.

    Returns:
        ``(model, preprocessing)``; the latter converts a PIL image to ``[3, H, W]``.

    Raises:
        ValueError: open_clip cannot load it.
    """
    torchvision_ops.make_importable()
    import open_clip

    image_settings = {f"image_{key}": value for key, value in source.preprocessing}
    try:
        network, preprocess = open_clip.create_model_from_pretrained(
            source.architecture or f"local-dir:{source.path}",
            str(source.path) if source.architecture else None,
            precision=precision,
            device=device,
            force_quick_gelu=bool(source.quick_gelu),
            **image_settings,
        )
    except Exception as error:  # of pickle, zip, safetensors, torch and open_clip
        hint = "the file may be damaged or of another architecture"
        if "TorchScript" in str(error):
            hint = (
                f"it is TorchScript, as OpenAI published it, and code in files is never run; convert: {CONVERT_TORCHSCRIPT}"
            )
        reason = next(iter(str(error).splitlines()), "")[:300]
        raise ValueError(f"{source.path}: open_clip cannot load this ({type(error).__name__}: {reason}); {hint}") from error
    return network.eval(), preprocess


def _weights(name: str, pretrained: str) -> tuple[Path, Mapping[str, Any]]:
    """Find the file with the weights of an architecture, and the settings of its tag."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if Path(pretrained).expanduser().is_file():
        described = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
        if len({tuple(map(str, (*map(tag.get, PREPROCESSING), tag.get("quick_gelu")))) for tag in described}) > 1:
            raise ValueError(
                f"pretrained {pretrained}: the file does not name the image preprocessing and activation of its weights, "
                f"and the published weights of {name} differ in both; write TAG={pretrained} with the tag of these weights "
                f"({', '.join(tags)}), or use local-dir: with {CONFIG} beside the weights"
            )
        return Path(pretrained).expanduser(), described[0] if described else {}
    tag, equals, file = pretrained.partition("=")
    settings = open_clip.get_pretrained_cfg(name, tag)
    if not settings:
        raise ValueError(
            f"pretrained {pretrained!r} is not a file, and {name} has no weights with the tag {tag!r}; use a file or one of "
            f"{', '.join(tags) or 'no tags'}"
        )
    if equals:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"pretrained {pretrained!r}: there is no file {path}; check the path")
        return path, settings
    try:
        return Path(open_clip.download_pretrained(settings)), settings
    except Exception as error:  # networks fail with too many kinds of errors to list
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the weights {tag!r} of {name} could not be fetched ({reason}); without a network, run elsewhere "
            f"python -c \"import open_clip as o; print(o.download_pretrained(o.get_pretrained_cfg('{name}', '{tag}')))\", "
            f"copy the file that it prints and write {tag}=FILE"
        ) from error


def _folder(folder: Path) -> Path:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; copy the whole model folder, which has it beside the weights")
    if not any(path for pattern in CHECKPOINTS for path in folder.glob(pattern)):
        raise ValueError(f"{folder} holds no weights ({', '.join(CHECKPOINTS)}); copy the whole model folder")
    return folder
