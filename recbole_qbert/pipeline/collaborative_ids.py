"""The item IDs of P5CID: spectral clustering of training co-occurrence, run once and then read."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.config.sentences import CollaborativeConfig
from recbole_qbert.data import cooccurrence
from recbole_qbert.pipeline.catalog import Catalog
from recbole_qbert.quantization.spectral_ids import spectral_ids
from recbole_qbert.utils.cached_step import CachedStep
from recbole_qbert.utils.io import digest, file_lock, write_array

log = logging.getLogger(__name__)


def load_or_build(
    catalog: Catalog, config: CollaborativeConfig, output: Path, *, rebuild: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """Make the IDs of a catalog, or read what was written before for the same histories.

    Only training histories are read. Signs and order of eigenvectors differ between platforms, so a checkpoint belongs to
    the IDs that it was trained with; that is why these are written. The seed of a training does not matter.

    Args:
        catalog: items and training histories.
        config: sizes of the tree.
        output: folder; ``X.cid.npy`` and ``X.cid.manifest.json`` are written there.
        rebuild: run in any case.

    Returns:
        ``[N, K]`` int64 tokens from 0 on, -1 behind the end of an ID; and figures, with the number of ``tokens``.

    Raises:
        ValueError: the settings do not fit each other.
    """
    inputs = {
        "items": digest(catalog.items),
        "histories": digest([np.asarray(history).tolist() for history in catalog.histories]),
        "settings": asdict(config),
    }
    file = output / f"{catalog.dataset}.cid.npy"

    def build() -> dict[str, Any]:
        # RecBole numbers items as they first occur in the file, held-out interactions included: tokens carry no such order.
        order = np.argsort(np.array(catalog.items))
        count = cooccurrence.counts(catalog.histories, len(catalog.items))[order][:, order]
        made = spectral_ids(count, config.clusters, config.leaf, config.levels)
        ids = np.empty_like(made.ids)
        ids[order] = made.ids
        write_array(file, ids)
        length, items = np.unique((ids >= 0).sum(1), return_counts=True)
        return {
            "tokens": made.tokens,
            "clusters": made.clusters,
            "leaves": made.leaves,
            "largest_leaf": made.largest,
            "items_alone": made.alone,
            "items_by_length": dict(zip(map(str, length.tolist()), items.tolist(), strict=True)),
        }

    output.mkdir(parents=True, exist_ok=True)
    with file_lock(output):
        figures, reason = CachedStep(output, f"{catalog.dataset}.cid", inputs, [file]).run(build, rebuild)
    log.info("collaborative IDs: %s; %s", "cached output used" if reason is None else f"run ({reason})", figures)
    return np.load(file, allow_pickle=False), figures
