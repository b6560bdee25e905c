"""Models of open_clip: where their weights are, and what belongs to the weights but does not stand in them.

The same architecture was trained with different activations and on differently prepared pictures. open_clip takes both from
a model's configuration, or from the tag of published weights; for a bare file it assumes OpenAI's preparation, and for
OpenAI's own weights under the plain name of the architecture (`ViT-L-14`, `openai`) version 3 only warns that they want
another activation. The vectors are then quietly worse. Here the tag decides, and a file whose tag matters is asked for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset_prep.encoders import torchvision_ops
from dataset_prep.encoders.model_files import hashes, hub_folder
from recbole_qbert.utils.io import sha256

CONFIG = "open_clip_config.json"
CHECKPOINTS = ("*.safetensors", "*.bin", "*.pth")  # as open_clip looks for them in a folder
HUB_CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PREPARATION = ("mean", "std", "interpolation", "resize_mode")
UNSCRIPT = (
    "torch.save({k: v for k, v in torch.jit.load(FILE, map_location='cpu').state_dict().items() if v.dim() or "
    "k == 'logit_scale'}, 'weights.pt')"
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        path: the weights of a named architecture; or a folder with `open_clip_config.json` and weights.
        architecture: its name; ``None`` where the folder says it.
        quick_gelu: which activation the weights want; ``None`` where the folder says it.
        preparation: what is known of mean, spread, interpolation and resizing of the pictures.
    """

    path: Path
    architecture: str | None = None
    quick_gelu: bool | None = None
    preparation: tuple[tuple[str, Any], ...] = ()

    def hashes(self) -> dict[str, str]:
        """sha256 of the weights; of a folder, by the names of its files."""
        if self.architecture:
            return {"file": sha256(self.path)}
        return hashes(self.path, [CONFIG, *CHECKPOINTS])


def find(model: str, pretrained: str) -> Source:
    """Files of a model, downloaded where they are a tag's or the hub's and not in the cache yet.

    Args:
        model: architecture, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        pretrained: for an architecture: ``TAG``, ``TAG=FILE`` or ``FILE``.

    Raises:
        ValueError: there is no such thing, it cannot be fetched, or a file does not say enough.
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
        close = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 3, 0.4)) or "none is near"
        raise ValueError(
            f"model {model!r} is no architecture of open_clip (near: {close}); for a folder or a hub model write "
            "local-dir:FOLDER or hf-hub:OWNER/NAME"
        )
    path, tag = _weights(name, pretrained)
    own = bool(open_clip.get_model_config(name).get("quick_gelu", False))
    preparation = tuple((key, tag[key]) for key in PREPARATION if key in tag)
    return Source(path, name, bool(tag.get("quick_gelu", False)) or own, preparation)


def load(source: Source, precision: str, device: torch.device) -> tuple[Any, Callable[[Any], torch.Tensor]]:
    """``(model, preprocessing)``: the latter from a PIL image to ``[3, H, W]``.

    Raises:
        ValueError: open_clip cannot load it.
    """
    torchvision_ops.make_importable()
    import open_clip

    known = {f"image_{key}": value for key, value in source.preparation}
    try:
        network, preprocess = open_clip.create_model_from_pretrained(
            source.architecture or f"local-dir:{source.path}",
            str(source.path) if source.architecture else None,
            precision=precision,
            device=device,
            force_quick_gelu=bool(source.quick_gelu),
            **known,
        )
    except Exception as error:  # of pickle, zip, safetensors, torch and open_clip
        hint = "the file may be damaged or of another architecture"
        if "TorchScript" in str(error):
            hint = (
                f"it is a program (TorchScript), as OpenAI published them, and programs are not run; convert it: {UNSCRIPT}"
            )
        reason = next(iter(str(error).splitlines()), "")[:300]
        raise ValueError(f"{source.path}: open_clip cannot load this ({type(error).__name__}: {reason}); {hint}") from error
    return network.eval(), preprocess


def _weights(name: str, pretrained: str) -> tuple[Path, Mapping[str, Any]]:
    """File with the weights of an architecture, and what its tag says."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if Path(pretrained).expanduser().is_file():
        described = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
        if len({tuple(map(str, (*map(tag.get, PREPARATION), tag.get("quick_gelu")))) for tag in described}) > 1:
            raise ValueError(
                f"{pretrained}: a file does not say how pictures are prepared for its weights nor which activation they "
                f"want, and the published weights of {name} differ in that; write TAG={pretrained}, with the tag they were "
                f"published under ({', '.join(tags)}), or use local-dir: with {CONFIG} beside the weights"
            )
        return Path(pretrained).expanduser(), described[0] if described else {}
    tag, equals, file = pretrained.partition("=")
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        raise ValueError(
            f"pretrained {pretrained!r} is no file here, and {name} has no weights of the tag {tag!r}; it has "
            f"{', '.join(tags) or 'none'}"
        )
    if equals:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ValueError(f"pretrained {pretrained!r}: there is no file {path}")
        return path, known
    try:
        return Path(open_clip.download_pretrained(known)), known
    except Exception as error:  # a network fails in too many ways to list
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"the weights {tag!r} of {name} could not be fetched ({reason}). Without network: where there is one run "
            f"python -c \"import open_clip as o; print(o.download_pretrained(o.get_pretrained_cfg('{name}', '{tag}')))\", "
            f"bring the file it names here and write {tag}=FILE"
        ) from error


def _folder(folder: Path) -> Path:
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; a model's folder has it beside the weights")
    if not any(path for pattern in CHECKPOINTS for path in folder.glob(pattern)):
        raise ValueError(f"{folder} holds no weights ({', '.join(CHECKPOINTS)})")
    return folder
