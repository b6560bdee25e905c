"""The item codes of VQRec: optimized product quantization of item vectors, built once and then read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from recbole_qbert.config.baseline_schema import ProductQuantizerConfig
from recbole_qbert.data.item_features import ItemFeatures, one_vector
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization import product_quantizer, tokenizer
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.io import digest, file_lock, write_array

log = logging.getLogger(__name__)
NO_CODE = -1


def load_or_build(
    catalog: Catalog,
    features: ItemFeatures,
    config: ProductQuantizerConfig,
    seed: int,
    output: Path,
    *,
    rebuild: bool = False,
    progress: bool = False,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Quantize the items of a catalog, or read what was written before for the same input.

    The quantizer is fitted on items of the training histories alone; then all items are encoded. Several modalities stand
    side by side, each of mean length 1 (VQ-Rec has text alone).

    Args:
        catalog: items and training histories.
        features: of the catalog's items; modalities that take part.
        config: sizes.
        seed: of the quantizer.
        output: folder; ``X.opq.codes.npy``, ``X.opq.safetensors`` and ``X.opq.manifest.json`` are written there.
        rebuild: build anew in any case.
        progress: show a progress bar.

    Returns:
        ``[N, G]`` int16 codes in ``[0, M)``, or -1 throughout for an item without a vector; and figures.

    Raises:
        ValueError: no item of the training part has a vector, or sizes do not fit (``product_quantizer.fit``).
    """
    in_training = _items_of(catalog.histories, len(catalog.items))
    inputs = {
        "items": digest(catalog.items),
        "features": features.inputs,
        "modalities": list(features.vectors),
        "training_items": digest(in_training.tolist()),
        "settings": asdict(config),
        "seed": seed,
    }
    codes_file, weights_file = (output / f"{catalog.dataset}.opq.{end}" for end in ("codes.npy", "safetensors"))

    def build() -> dict[str, Any]:
        vectors, present = _side_by_side(features)
        fitted_on = present & in_training
        if not fitted_on.any():
            raise ValueError(f"{catalog.dataset}: no item of the training part has {' or '.join(features.vectors)} features")
        quantizer = product_quantizer.fit(
            vectors[fitted_on], config.groups, config.codes, rounds=config.rounds, sample=config.sample, seed=seed,
            progress=lambda rounds: tqdm(rounds, desc="OPQ", ncols=100, disable=not progress, leave=False),
        )  # fmt: skip
        codes = np.full((len(vectors), config.groups), NO_CODE, dtype=np.int16)
        codes[present] = quantizer.encode(vectors[present]).numpy()
        write_array(codes_file, codes)
        tokenizer.save_weights(weights_file, quantizer.tensors())
        return _figures(codes, int(fitted_on.sum()), quantizer.distortion(vectors[fitted_on]))

    output.mkdir(parents=True, exist_ok=True)
    with file_lock(output):
        step = CachedStep(output, f"{catalog.dataset}.opq", inputs, [codes_file, weights_file])
        figures, reason = step.run(build, rebuild)
    log.info("OPQ codes: %s; %s", "cached output used" if reason is None else f"run ({reason})", figures)
    return np.load(codes_file, allow_pickle=False), figures


def _items_of(histories: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Mark the items that occur in histories, ``[N]`` bool."""
    occurs = np.zeros(count, dtype=bool)
    if len(histories):
        occurs[np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])] = True
    return occurs


def _side_by_side(features: ItemFeatures) -> tuple[torch.Tensor, np.ndarray]:
    """Return the vectors that are quantized, ``[N, D]`` float32, and which items have one, ``[N]`` bool."""
    parts, has = [], np.zeros(len(features.items), dtype=bool)
    for name, matrix in features.vectors.items():
        vectors, there = one_vector(matrix, features.present[name]), features.present[name].any(1)
        if len(features.vectors) > 1:
            vectors = vectors / max(float(np.sqrt(np.square(vectors[there]).sum(1).mean())) if there.any() else 1.0, 1e-12)
        parts.append(vectors)
        has |= there
    return torch.from_numpy(np.concatenate(parts, 1)), has


def _figures(codes: np.ndarray, fitted_on: int, distortion: float) -> dict[str, Any]:
    """Count what a table of results has to say of the codes: items of equal codes have equal scores."""
    coded = codes[(codes != NO_CODE).any(1)]
    distinct, counts = np.unique(coded, axis=0, return_counts=True)
    return {
        "fitted_on": fitted_on,
        "distortion": distortion,
        "without_vector": len(codes) - len(coded),
        "distinct": len(distinct),
        "items_that_share_codes": int(counts[counts > 1].sum()),
    }
