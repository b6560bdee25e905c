"""Weights of a pretrained T5, from a folder that transformers' ``save_pretrained`` wrote, or by a name on the hub."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_qbert.generative.t5 import T5, DecoderBlock, Stack, T5Sizes
from recbole_qbert.generative.words import read_tokenizer
from recbole_qbert.utils.failures import reading
from recbole_qbert.utils.io import read_json
from recbole_qbert.utils.tensor_file import load_tensors

#: Defaults of transformers' ``T5Config``, whose files may leave them out.
_DEFAULTS = {
    "model_type": "t5",
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
}
_NEEDED = ("model_type", "feed_forward_proj", "tie_word_embeddings")
TABLE = "shared.weight"  # of the tokens
WAY_OUT = "name a folder that transformers' save_pretrained wrote"


@dataclass(frozen=True)
class Backbone:
    """A pretrained T5.

    Attributes:
        name: folder, or name on the hub.
        config: its configuration, keys as of transformers' ``T5Config``.
        weights: name -> tensor in float32.
        tokenizer: its ``tokenizers.Tokenizer``.
    """

    name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Any

    @cached_property
    def digest(self) -> str:
        """Return the hex digest of the weights, which does not depend on where they lie."""
        total = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            total.update(f"{name} {tuple(value.shape)}".encode())
            total.update(value.contiguous().numpy().tobytes())
        return total.hexdigest()


def load_backbone(name: str) -> Backbone:
    """Load a T5 and its tokenizer from a folder, or by a name on the hub through transformers.

    Raises:
        FileNotFoundError: there is no such folder or name, or a file is missing.
        ImportError: a name is given and transformers is not installed.
        ValueError: it is another architecture; names the key that differs.
    """
    folder = Path(name)
    if folder.is_dir():
        return Backbone(name, *read_folder(folder), read_tokenizer(folder))
    require_backbone(name)
    from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

    try:
        config = _checked(AutoConfig.from_pretrained(name).to_dict(), f"backbone {name}")
        model = T5ForConditionalGeneration.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name).backend_tokenizer
    except OSError as error:
        raise FileNotFoundError(
            f"backbone is {name!r}, which is neither a folder here nor a model that transformers finds ({error}); "
            "name a folder with a saved T5, or leave backbone out to train from scratch"
        ) from error
    return Backbone(name, config, {key: value.float() for key, value in model.state_dict().items()}, tokenizer)


def require_backbone(name: str) -> None:
    """Refuse a ``backbone`` that can be neither a folder of a T5 nor a name on the hub, without reading weights.

    Raises:
        FileNotFoundError, ImportError, ValueError: as of ``load_backbone``.
    """
    folder = Path(name)
    if folder.is_dir():
        _read_config(folder)
    elif folder.exists() or folder.is_absolute() or len(folder.parts) > 2 or name.startswith((".", "~")):
        raise FileNotFoundError(f"backbone is {name!r}, which is no folder; name a folder with a saved T5")
    elif find_spec("transformers") is None:
        raise ImportError(
            f"backbone is {name!r}, which is no folder here; a name on the hub needs transformers: pip install "
            "'recbole-qbert[encoders]'"
        )


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the weights of a T5; no code of the folder is run.

    Args:
        folder: a folder with ``config.json`` and ``*.safetensors`` or ``pytorch_model.bin``.

    Returns:
        ``(configuration, name -> tensor in float32)``.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: the folder holds another architecture; names the key that differs.
    """
    config = _read_config(folder)
    weights = {name: value.float() for name, value in _tensors(folder).items()}
    if TABLE not in weights:
        raise ValueError(f"backbone is {str(folder)!r}, whose weights have no {TABLE}, so they are not of a T5; {WAY_OUT}")
    return config, weights


def _read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a T5."""
    if not folder.is_dir():
        raise FileNotFoundError(f"backbone is {str(folder)!r}, which is no folder; name a folder with a saved T5")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"backbone is {str(folder)!r}, which has no config.json; {WAY_OUT}")
    return _checked(read_json(folder / "config.json", WAY_OUT), str(folder / "config.json"))


def _checked(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Fill a configuration up with defaults, and refuse another architecture."""
    config = _DEFAULTS | config
    if config.get("num_decoder_layers") is None:
        config["num_decoder_layers"] = config.get("num_layers")
    for key in _NEEDED:
        if config[key] != _DEFAULTS[key]:
            raise ValueError(f"{where}: {key} is {config[key]!r}; the network here is a T5 with {key}: {_DEFAULTS[key]!r}")
    missing = [name for name in T5Sizes.__dataclass_fields__ if name != "dropout_rate" and name not in config]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}, so it is not of a T5; {WAY_OUT}")
    sizes = {name: config[name] for name in T5Sizes.__dataclass_fields__ if name != "dropout_rate"}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise ValueError(f"{where}: {name} is {size!r}, not a number of a T5; {WAY_OUT}")
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if files:
        tensors: dict[str, Tensor] = {}
        for file in files:
            with reading(file, WAY_OUT):
                tensors |= load_file(file)
        return tensors
    file = folder / "pytorch_model.bin"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has neither *.safetensors nor {file.name}; {WAY_OUT}")
    return load_tensors(file)


def sizes_of(config: dict[str, Any], dropout_rate: float) -> T5Sizes:
    """Return the sizes that a configuration of transformers' ``T5Config`` names."""
    names = [name for name in T5Sizes.__dataclass_fields__ if name != "dropout_rate"]
    return T5Sizes(**{name: config[name] for name in names}, dropout_rate=dropout_rate)


@torch.no_grad()
def copy_weights(network: T5, weights: dict[str, Tensor]) -> None:
    """Copy the weights of ``T5ForConditionalGeneration`` into a network.

    Rows of the network's token table beyond those of the weights stay as they are: new tokens keep the numbers that they
    were drawn with, whatever transformers would draw.

    Args:
        network: network of the same sizes, with as many tokens at least.
        weights: state of the model of transformers.

    Raises:
        ValueError: a tensor is missing, or has another shape than the network's; names it.
    """
    try:
        _copy_all(network, weights)
    except KeyError as error:
        raise ValueError(f"the weights have no tensor {error}; they are not those of a T5 of these sizes") from None


def _copy_all(network: T5, weights: dict[str, Tensor]) -> None:
    table = weights["shared.weight"]
    _copy("shared.weight", network.embedding[: len(table)], table)
    stacks: list[tuple[Stack[Any], str]] = [(network.encoder, "encoder"), (network.decoder, "decoder")]
    for stack, name in stacks:
        table = weights[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        _copy(f"{name} relative_attention_bias", stack.distance, table.T)
        _copy(f"{name}.final_layer_norm", stack.norm.weight, weights[f"{name}.final_layer_norm.weight"])
        for number, block in enumerate(stack.blocks):
            here = f"{name}.block.{number}.layer"
            _copy_attention(block.attention, weights, f"{here}.0", "SelfAttention")
            if isinstance(block, DecoderBlock):
                _copy_attention(block.cross, weights, f"{here}.1", "EncDecAttention")
            feed = f"{here}.{2 if isinstance(block, DecoderBlock) else 1}"
            _copy(f"{feed}.wi", block.feed.grow.weight, weights[f"{feed}.DenseReluDense.wi.weight"])
            _copy(f"{feed}.wo", block.feed.shrink.weight, weights[f"{feed}.DenseReluDense.wo.weight"])
            _copy(f"{feed}.layer_norm", block.feed.norm.weight, weights[f"{feed}.layer_norm.weight"])


def _copy_attention(part: Any, weights: dict[str, Tensor], layer: str, kind: str) -> None:
    query, key, value, mix = (weights[f"{layer}.{kind}.{name}.weight"] for name in "qkvo")
    if hasattr(part, "query"):
        _copy(f"{layer}.{kind}.q", part.query.weight, query)
        _copy(f"{layer}.{kind}", part.joint.weight, torch.cat([key, value]))
    else:
        _copy(f"{layer}.{kind}", part.joint.weight, torch.cat([query, key, value]))
    _copy(f"{layer}.{kind}.o", part.mix.weight, mix)
    _copy(f"{layer}.layer_norm", part.norm.weight, weights[f"{layer}.layer_norm.weight"])


def _copy(name: str, to: Tensor, value: Tensor) -> None:
    if to.shape != value.shape:
        raise ValueError(f"{name} is {tuple(value.shape)} in the weights and {tuple(to.shape)} in the network")
    to.copy_(value)
