"""Compute text features with a model of transformers: causal (LLaMA, as in the paper) or an encoder.

`encode_texts` builds one text from the fields of each item, and pools the last layer's hidden states of its tokens to one
vector. The vectors are not normalised; stage 1 does that.

Batching and pooling are our own, because sentence-transformers cannot replace them: it refuses a tokenizer without a padding
token (LLaMA, GPT-2), gives wrong vectors for a BERT whose tokenizer pads on the left, and NaN if an overflow stands at
padding.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dataset_prep.encoders import torchvision_ops
from dataset_prep.encoders.distributed import pick_device
from dataset_prep.encoders.item_texts import Template, read_texts, template_for
from dataset_prep.encoders.model_files import hashes, hub_folder, require_installed
from dataset_prep.encoders.sharded_encoding import Encoder, Job, encode
from dataset_prep.encoders.shards import Shard, computed
from recbole_qbert.config.property_values import check_value
from recbole_qbert.data.atomic_files import RECBOLE_FORMAT, AtomicFormat
from recbole_qbert.data.text_columns import AUTO
from recbole_qbert.utils.io import digest

DEFAULT_MODEL = "huggyllama/llama-7b"  # LLaMA, the paper's choice (section 4.1)
POOLINGS = ("mean", "last", "cls")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The files that transformers reads: safetensors if there are any, else a state dict (tensors only, never code).
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
    template: str | None = None,
    text_fields: Sequence[str] = AUTO,
    text_vectors: str = "joined",
    form: AtomicFormat = RECBOLE_FORMAT,
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
    """Write ``X.text.npy``, ``[N, D]`` or ``[N, J, D]``, beside ``X.items.txt`` and ``X.features.json``.

    Rows of items without text are NaN.
    With `torchrun`, several processes or machines share the work in one folder and write the same bytes, given the same
    number of threads per process.

    Args:
        folder: folder of the data set, with ``X.item``.
        dataset: name of the data set, ``X``.
        model: a local folder, or the name of a hub model. Code that comes with a model is never run.
        template: how an item becomes a text (`item_texts.Template`); by default all columns of ``text_fields``, with labels.
        text_fields: names of columns, or ``auto`` (`text_columns`).
        text_vectors: ``joined`` for one vector an item; ``by_column`` for one a column, without labels: ``[N, J, D]``, NaN
            where a column is empty. Counts are then of texts, not of items.
        form: how the ``.item`` file is written.
        pooling: ``mean`` of all tokens, including special ones; ``last`` token (causal models); ``cls``, the first token.
        dtype: type of weights and computation, ``float32``, ``bfloat16`` or ``float16``. Pooling is in float32; the file is
            float16 for ``float16``, else float32.
        max_tokens: largest number of tokens per text; longer texts are cut, at the latest at the model's own limit.
        batch_tokens: tokens per batch, including padding; affects memory and speed.
        shard_size: items per shard, after which the result is saved.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        output: output folder; by default ``folder``.
        rebuild: replace existing features (`sharded_encoding.encode`).
        progress: show a bar.

    Returns:
        The record of the text in ``X.features.json``.

    Raises:
        FileNotFoundError: there is no ``X.item``.
        ValueError: an option, the texts, the model or existing files cannot be used.
    """
    _check(pooling, dtype, max_tokens, batch_tokens)
    check_value("text_vectors", text_vectors)
    require_installed("transformers")
    path = Path(folder) / f"{dataset}.item"
    how = template_for(path, text_fields, form) if template is None else Template(template)
    if text_vectors == "by_column" and template is not None:
        raise ValueError(f"template {template!r} joins the columns of an item, but text_vectors is by_column; give only one")
    columns = _existing(path, how, form) if text_vectors == "by_column" else ()
    hows = [Template(f"{{{column}}}") for column in columns] or [how]
    read = [read_texts(path, one, form) for one in hows]
    items, per_item = read[0][0], len(read)
    texts = [text for of_item in zip(*(column for _, column in read), strict=True) for text in of_item]
    template = " | ".join(one.text for one in hows)
    if not any(texts):
        raise ValueError(f"no item of {dataset} has a text in the fields of the template {template!r}; name other fields")
    torch_device = pick_device(device)
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
        "device": str(torch_device),
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
            load_network(files, config, DTYPES[dtype]).to(torch_device), tokenizer, pooling, max_tokens, batch_tokens
        )
        if not columns:
            return lambda rows, advance: encoder([texts[row] for row in rows], advance)

        def by_column(rows: range, advance: Callable[[int], object]) -> Shard:
            shard = encoder(texts[rows.start * per_item : rows.stop * per_item])
            advance(len(rows))
            return replace(shard, vectors=shard.vectors.reshape(len(rows), per_item, -1))

        return by_column

    return encode(job, load, rebuild=rebuild, progress=progress)


def _existing(path: Path, how: Template, form: AtomicFormat) -> tuple[str, ...]:
    """Return the fields of a template that are columns of a file."""
    return tuple(field for field in how.fields if field in form.header(path).names)


class TextEncoder:
    """Encode texts with a model and its tokenizer.

    Args:
        network: model that returns ``last_hidden_state`` ``[B, L, D]``.
        tokenizer: tokenizer of transformers; its padding side and padding token are not used for padding.
        pooling, max_tokens, batch_tokens: see `encode_texts`.
    """

    def __init__(self, network: Any, tokenizer: Any, pooling: str, max_tokens: int, batch_tokens: int) -> None:
        self.network, self.tokenizer = network, tokenizer
        self.pooling, self.max_tokens, self.batch_tokens = pooling, max_tokens, batch_tokens
        # Padding is masked, so any token would do; but some models compute positions from the padding token.
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def __call__(self, texts: Sequence[str], advance: Callable[[int], object] = lambda done: None) -> Shard:
        """Return the vectors ``[n, D]`` of ``n`` texts; NaN for empty texts."""
        filled = [index for index, text in enumerate(texts) if text]
        tokens, cut = self._tokens([texts[index] for index in filled])
        vectors: np.ndarray | None = None
        for batch in batches([len(row) for row in tokens], self.batch_tokens):
            encoded = self._encode([tokens[row] for row in batch])
            if vectors is None:
                vectors = np.full((len(texts), encoded.shape[1]), np.nan, encoded.dtype)
            vectors[[filled[row] for row in batch]] = encoded
            advance(len(batch))
        if vectors is None:  # this shard has no text; its width must be that of the other shards
            encoded = self._encode([[self.padding]])
            vectors = np.full((len(texts), encoded.shape[1]), np.nan, encoded.dtype)
        untokenized = sum(not row for row in tokens)
        advance(len(texts) - len(filled) + untokenized)
        counts = {"without text": len(texts) - len(filled), "without tokens": untokenized, "cut short": cut}
        return Shard(vectors, counts)

    def _tokens(self, texts: list[str]) -> tuple[list[list[int]], int]:
        """Return the token ids of each text, including special tokens, and the number of texts that were cut."""
        if not texts:
            return [], 0
        whole = self.tokenizer(texts, padding=False, truncation=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        if all(len(row) <= self.max_tokens for row in whole):
            return whole, 0
        # Tokenize again: truncation by the tokenizer keeps the special tokens at the end.
        limit = {"truncation": True, "max_length": self.max_tokens}
        cut = self.tokenizer(texts, padding=False, return_attention_mask=False, **limit)["input_ids"]
        return cut, sum(len(row) > self.max_tokens for row in whole)

    @torch.inference_mode()
    def _encode(self, rows: list[list[int]]) -> np.ndarray:
        """Compute the pooled vectors ``[B, D]`` of token ids.

        Padding is on the right, whatever the tokenizer's own side: the first token is then at position 0 in every kind of
        model, whether positions are counted, rotary or learned, and a causal model never attends to the padding.
        """
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.padding] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        device = next(self.network.parameters()).device
        hidden = self.network(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        pooled = pool(hidden, mask.to(device), self.pooling)
        return computed(pooled.to(torch.float16 if hidden.dtype == torch.float16 else torch.float32).cpu().numpy())


def batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group the indices of texts into batches of similar length, longest first; texts of length 0 are left out.

    Args:
        lengths: number of tokens of each text.
        limit: tokens per batch, including padding; a longer text is a batch by itself.
    """
    order = sorted((index for index, length in enumerate(lengths) if length), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= limit:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool each row to one vector in float32, from its tokens only, wherever the padding is.

    Args:
        hidden: ``[B, L, D]``.
        mask: ``[B, L]``, 1 for a token and 0 for padding; each row has at least one token.
        pooling: ``mean``, ``last`` or ``cls``.

    Returns:
        ``[B, D]``.
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        # Not by multiplication, because the values at padding may be infinite or NaN.
        return torch.where(weights > 0, hidden.float(), 0.0).sum(1) / weights.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    chosen = torch.where(mask > 0, positions, -1).argmax(1) if pooling == "last" else mask.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), chosen].float()


# -------------------------------------------------------------------------------------------------------------- the model
def find_model(model: str) -> tuple[Path, list[str]]:
    """Find the folder with a model's files, and the patterns of its weights.

    Raises:
        ValueError: there is no such folder or hub model, or files are missing.
    """
    folder = Path(model).expanduser()
    local = folder.is_dir()
    if not local:
        folder = hub_folder(model, [*CONFIG, *TOKENIZER, *SAFE_WEIGHTS, "model*.json"])
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json; give a folder that save_pretrained or `hf download` wrote")
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
    """Load ``(configuration, tokenizer, largest number of tokens that the model accepts)``.

    Raises:
        ValueError: transformers cannot read them, or they need their own code.
    """
    torchvision_ops.make_importable()
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise ValueError(
            f"{folder}: transformers cannot read the configuration or the tokenizer ({error}); the folder may be "
            "incomplete, need a newer transformers, or need its own code, which is never run"
        ) from error
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return config, tokenizer, min(positions, tokenizer.model_max_length)


def load_network(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    """Load the model without its head; of an encoder-decoder, only the encoder.

    Args:
        folder: folder with the model's files.
        config: configuration of the model.
        dtype: type of the weights.

    Raises:
        ValueError: transformers cannot read the weights, or some are missing (they would be random).
    """
    from transformers import AutoModel

    try:
        network, loading_info = AutoModel.from_pretrained(
            folder, config=config, dtype=dtype, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # of safetensors, pickle, torch and transformers
        raise ValueError(f"{folder}: transformers cannot load the weights ({type(error).__name__}: {error})") from error
    missing = sorted(name for name in loading_info["missing_keys"] if "pooler" not in name)  # the pooler is not used
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} tensors are missing in the weights (first: {missing[0]}), and transformers would "
            "set them to random numbers; copy the model again, or use weights of this architecture"
        )
    network = network.get_encoder() if config.is_encoder_decoder else network
    network.config.use_cache = False  # nothing is generated, so keys and values are not needed
    return network.eval()


def _check(pooling: str, dtype: str, max_tokens: int, batch_tokens: int) -> None:
    for name, value, allowed in (("pooling", pooling, POOLINGS), ("dtype", dtype, tuple(DTYPES))):
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
    for name, number in (("max_tokens", max_tokens), ("batch_tokens", batch_tokens)):
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
