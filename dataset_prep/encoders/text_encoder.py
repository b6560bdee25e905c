"""Text features by a language model of the `transformers` kind: causal (LLaMA, as in the paper) or an encoder.

`encode_texts` turns the fields of every item into one text, takes the last layer's hidden states of its tokens and pools
them to one vector. The vectors are not normalised; stage 1 does that.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dataset_prep.encoders import torchvision_ops
from dataset_prep.encoders.distributed import pick_device
from dataset_prep.encoders.item_texts import DEFAULT_TEMPLATE, Template, read_texts
from dataset_prep.encoders.model_files import hashes, hub_folder, require_installed
from dataset_prep.encoders.sharded_encoding import Encoder, Job, encode
from dataset_prep.encoders.shards import Shard, computed
from recbole_qbert.utils.io import digest

DEFAULT_MODEL = "huggyllama/llama-7b"  # LLaMA, the paper's choice (section 4.1)
POOLINGS = ("mean", "last", "cls")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The files that transformers reads: safetensors where there are any, else a state dict (tensors only, never code).
SAFE_WEIGHTS, PICKLED_WEIGHTS = ["model*.safetensors"], ["pytorch_model*.bin"]
CONFIG = ["config.json"]
TOKENIZER = [
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "spiece*",
    "sentencepiece*",
]


def encode_texts(
    folder: str | Path,
    dataset: str,
    *,
    model: str = DEFAULT_MODEL,
    template: str = DEFAULT_TEMPLATE.text,
    pooling: str = "mean",
    dtype: str = "float32",
    max_tokens: int = 512,
    batch_tokens: int = 16_384,
    shard_size: int = 1024,
    device: str = "auto",
    output: str | Path | None = None,
    rebuild: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write ``X.text.npy`` ``[N, D]`` beside ``X.items.txt`` and ``X.features.json``; NaN rows for items without text.

    Start it by `torchrun` for several processes or machines that share the folder: same bytes, given the same number of
    threads a process.

    Args:
        folder: the data set's own, with ``X.item``.
        dataset: its name, ``X``.
        model: a local folder, or the name of a hub model. Code that comes with a model is never run.
        template: the text of an item (`item_table.Template`); by default all fields that are there, with labels.
        pooling: ``mean`` of all tokens, special ones among them; ``last`` token (causal models); ``cls``: the first one.
        dtype: of the weights and the computation, ``float32``, ``bfloat16`` or ``float16``. Pooled in float32; written as
            float16 for ``float16``, else as float32.
        max_tokens: longer texts are cut there, or where the model ends.
        batch_tokens: tokens a batch, with padding; a matter of memory and speed.
        shard_size: items between two savings.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        output: where to write, if not to ``folder``.
        rebuild: replace what is there (`encoding.encode`).
        progress: show a bar.

    Returns:
        The record that ``X.features.json`` holds of the text.

    Raises:
        FileNotFoundError: no ``X.item``.
        ValueError: an option, the texts, the model or the files that are there cannot be used.
    """
    _check(pooling, dtype, max_tokens, batch_tokens)
    require_installed("transformers")
    items, texts = read_texts(Path(folder) / f"{dataset}.item", Template(template))
    if not any(texts):
        raise ValueError(f"no item of {dataset} has any text in the fields of the template {template!r}")
    chosen = pick_device(device)
    files, weights = find_model(model)
    config, tokenizer, longest = load_tokenizer(files)
    max_tokens = min(max_tokens, longest)
    settings = {
        "kind": "transformers, last hidden state",
        "weights": hashes(files, weights),
        "tokenizer": hashes(files, TOKENIZER),
        "config": hashes(files, CONFIG)["config.json"],
        "pooling": pooling,
        "template": template,
        "max_tokens": max_tokens,
        "dtype": dtype,
        "texts": digest(texts),
    }
    about = {
        "encoder": f"{config.architectures[0] if config.architectures else config.model_type} ({model})",
        "model": model,
        "revision": files.name if files.parent.name == "snapshots" else None,  # of the hub
        "device": str(chosen),
        "threads": torch.get_num_threads(),
    }
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    target = Path(output) if output is not None else Path(folder)
    job = Job(target, dataset, "text", items, settings, about, versions, shard_size)

    def load() -> Encoder:
        if not progress:
            from transformers.utils import logging

            cast(Any, logging).disable_progress_bar()
        encoder = TextEncoder(
            load_network(files, config, DTYPES[dtype]).to(chosen), tokenizer, pooling, max_tokens, batch_tokens
        )
        return lambda rows, advance: encoder([texts[row] for row in rows], advance)

    return encode(job, load, rebuild=rebuild, progress=progress)


class TextEncoder:
    """A model with its tokenizer.

    Args:
        network: gives ``last_hidden_state`` ``[B, L, D]``.
        tokenizer: of transformers; which side it pads on, and whether it can, does not matter.
        pooling, max_tokens, batch_tokens: as of `encode_texts`.
    """

    def __init__(self, network: Any, tokenizer: Any, pooling: str, max_tokens: int, batch_tokens: int) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.pooling, self.max_tokens, self.batch_tokens = pooling, max_tokens, batch_tokens
        # Masked, so any token does; but some models count positions by telling it from the others.
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def __call__(self, texts: Sequence[str], advance: Callable[[int], object] = lambda done: None) -> Shard:
        """Vectors ``[n, D]`` of ``n`` texts; NaN for the empty ones."""
        given = [place for place, text in enumerate(texts) if text]
        tokens, cut = self._tokens([texts[place] for place in given])
        vectors: np.ndarray | None = None
        for batch in batches([len(row) for row in tokens], self.batch_tokens):
            made = self._encode([tokens[row] for row in batch])
            if vectors is None:
                vectors = np.full((len(texts), made.shape[1]), np.nan, made.dtype)
            vectors[[given[row] for row in batch]] = made
            advance(len(batch))
        if vectors is None:  # of this shard: the width is that of the others
            made = self._encode([[self.padding]])
            vectors = np.full((len(texts), made.shape[1]), np.nan, made.dtype)
        unread = sum(not row for row in tokens)
        advance(len(texts) - len(given) + unread)
        return Shard(vectors, {"without text": len(texts) - len(given), "without tokens": unread, "cut short": cut})

    def _tokens(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Token ids of each text, special tokens included, and how many texts were cut."""
        if not texts:
            return [], 0
        whole = self.tokenizer(texts, padding=False, truncation=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        if all(len(row) <= self.max_tokens for row in whole):
            return whole, 0
        # Once more, since special tokens at the end survive the cut.
        limit = {"truncation": True, "max_length": self.max_tokens}
        cut = self.tokenizer(texts, padding=False, return_attention_mask=False, **limit)["input_ids"]
        return cut, sum(len(row) > self.max_tokens for row in whole)

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]]) -> np.ndarray:
        """Pooled vectors ``[B, D]`` of token ids.

        Padded on the right whatever the tokenizer's own side: the first token then stands at position 0 in every kind of
        model, whether positions are counted, rotated or learned, and a causal one never sees the padding.
        """
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.padding] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        device = next(self.network.parameters()).device
        hidden = self.network(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        pooled = pool(hidden, mask.to(device), self.pooling)
        return computed(pooled.to(torch.float16 if hidden.dtype == torch.float16 else torch.float32).cpu().numpy())


def batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places of ``lengths`` in batches of similar length, longest first; places of length 0 in none.

    Args:
        lengths: tokens of each text.
        most: tokens a batch, with padding; a longer text is a batch by itself.
    """
    order = sorted((place for place, length in enumerate(lengths) if length), key=lambda place: -lengths[place])
    made: list[list[int]] = []
    for place in order:
        if made and lengths[made[-1][0]] * (len(made[-1]) + 1) <= most:
            made[-1].append(place)
        else:
            made.append([place])
    return made


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector a row, in float32, from its real tokens only, wherever the padding stands.

    Args:
        hidden: ``[B, L, D]``.
        mask: ``[B, L]``, 1 for a token and 0 for padding; a token at least in each row.
        pooling: ``mean``, ``last`` or ``cls``.

    Returns:
        ``[B, D]``.
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        # Multiplying would not do: what stands at padding may be infinite or NaN.
        return torch.where(weights > 0, hidden.float(), 0.0).sum(1) / weights.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device)
    chosen = torch.where(mask > 0, places, -1).argmax(1) if pooling == "last" else mask.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen].float()


# -------------------------------------------------------------------------------------------------------------- the model
def find_model(model: str) -> tuple[Path, list[str]]:
    """Folder with a model's files, and the patterns of its weights.

    Raises:
        ValueError: no such folder or hub model, or files are missing in it.
    """
    folder = Path(model).expanduser()
    local = folder.is_dir()
    if not local:
        folder = hub_folder(model, [*CONFIG, *TOKENIZER, *SAFE_WEIGHTS, "model*.json"])
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; a model folder is what save_pretrained or `hf download` writes")
    if any(folder.glob(SAFE_WEIGHTS[0])):
        return folder, SAFE_WEIGHTS
    if not local:
        folder = hub_folder(model, [*CONFIG, *TOKENIZER, *PICKLED_WEIGHTS, "pytorch_model*.json"])
    if not any(folder.glob(PICKLED_WEIGHTS[0])):
        raise ValueError(
            f"{folder} holds no weights ({SAFE_WEIGHTS[0]} or {PICKLED_WEIGHTS[0]}); copy the whole model folder"
        )
    return folder, PICKLED_WEIGHTS


def load_tokenizer(folder: Path) -> tuple[Any, Any, int]:
    """``(configuration, tokenizer, most tokens that the model takes)``.

    Raises:
        ValueError: transformers cannot read them, or they need code of their own.
    """
    torchvision_ops.make_importable()
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise ValueError(
            f"{folder}: transformers cannot read the configuration or the tokenizer ({error}); the folder may be "
            "incomplete, need a newer transformers, or bring code of its own, which is never run"
        ) from error
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return config, tokenizer, min(positions, tokenizer.model_max_length)


def load_network(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """The model without its head; of an encoder-decoder, the encoder.

    Raises:
        ValueError: transformers cannot read it, or weights are missing (they would be random).
    """
    from transformers import AutoModel

    try:
        network, found = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of safetensors, pickle, torch and transformers
        raise ValueError(f"{folder}: transformers cannot load the weights ({type(error).__name__}: {error})") from error
    absent = sorted(name for name in found["missing_keys"] if "pooler" not in name)  # which nothing here uses
    if absent:
        raise ValueError(
            f"{folder}: the weights hold {len(absent)} tensors too few (first: {absent[0]}); transformers would fill them "
            "with random numbers. Copy the model again, or take weights of this architecture"
        )
    network = network.get_encoder() if config.is_encoder_decoder else network
    network.config.use_cache = False  # keys and values are of no use when nothing is generated
    return network.eval()


def _check(pooling: str, dtype: str, max_tokens: int, batch_tokens: int) -> None:
    for name, value, known in (("pooling", pooling, POOLINGS), ("dtype", dtype, tuple(DTYPES))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it must be {', '.join(known[:-1])} or {known[-1]}")
    for name, number in (("max_tokens", max_tokens), ("batch_tokens", batch_tokens)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
