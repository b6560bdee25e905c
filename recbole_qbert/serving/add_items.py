"""Add semantic IDs for new items to a vocabulary. Weights and existing IDs do not change."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_qbert.data import item_features
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.quantization.tokenizer import Tokenizer
from recbole_qbert.serving import cold_start
from recbole_qbert.utils.io import sha256

log = logging.getLogger(__name__)
PathLike = str | os.PathLike[str]


def add_items(
    dataset: str, vocabulary: PathLike, features: PathLike, output: PathLike, earlier: PathLike | None = None
) -> dict[str, Any]:
    """Give new items semantic IDs and neighbors among the old items.

    Args:
        dataset: name of the data set.
        vocabulary: folder with the output of stages 1 and 2, of one data set or of several.
        features: folder with ``<dataset>.items.txt`` and ``<dataset>.<modality>.npy`` of new and old items.
        output: ``.sid`` file to write: the existing IDs, then the new ones. The neighbors are written next to it.
        earlier: ``.sid`` file of an earlier call to continue from; its IDs do not change.

    Returns:
        ``dataset``, ``existing`` and ``new`` (numbers of items), ``semantic_ids`` (the file) and ``first``, a few new items
        with their IDs.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no new item, an item would lose its ID, or the features do not fit the vocabulary.
    """
    tokenizer = Tokenizer.load(Path(vocabulary))
    folder, target = Path(features), Path(output)
    list_file = folder / f"{dataset}.items.txt"
    listed = tuple(item_features.read_item_list(list_file))
    domain = dataset if any(item.startswith(f"{dataset}/") for item in tokenizer.ids.items) else ""

    def of_dataset(ids: SemanticIDs) -> SemanticIDs:
        return ids.of_domain(domain) if domain else ids

    trained = set(of_dataset(tokenizer.ids).items)
    if earlier:
        tokenizer = tokenizer.extended(semantic_ids.load(Path(earlier)), str(earlier), domain)
    existing = of_dataset(tokenizer.ids).items
    with_id = set(existing)
    new = tuple(item for item in listed if item not in with_id)
    if not new:
        raise ValueError(f"{list_file} lists no item without a semantic ID: nothing to add")
    loaded = item_features.load(folder, dataset, new, item_features.available(folder, dataset))
    qualified = tuple(f"{domain}/{item}" for item in new) if domain else new
    ids = of_dataset(tokenizer.add(replace(loaded, items=qualified)))
    _require_unchanged(ids, target)
    described = [item for item in listed if item in trained]
    neighbors = _neighbors(dataset, folder, replace(loaded, items=new), described, earlier)
    near_file = cold_start.neighbors_path(target)
    semantic_ids.details_path(target).unlink(missing_ok=True)  # written last, so that it never describes other files
    if neighbors is None:
        near_file.unlink(missing_ok=True)
        ids.save(target)
    else:
        neighbors.save(near_file)
        ids.save(target, **{cold_start.DIGEST: sha256(near_file)})
    first = {item: ids.text(ids.items.index(item)) for item in new[:5]}
    return {
        "dataset": dataset,
        "existing": len(existing),
        "new": len(new),
        "semantic_ids": str(target),
        "first": first,
    }


def _require_unchanged(ids: SemanticIDs, target: Path) -> None:
    """Refuse to take an ID from an item that has it in the file that would be replaced."""
    if not target.exists():
        return
    there = semantic_ids.load(target)
    row_of = {item: row for row, item in enumerate(ids.items)}
    moved = [item for row, item in enumerate(there.items) if item not in row_of or ids.text(row_of[item]) != there.text(row)]
    if moved:
        raise ValueError(
            f"{len(moved)} items would lose the ID that they have in {target}, or get another (first: {moved[0]}): continue "
            f"from it with --sid {target}, or name another file with --output"
        )


def _neighbors(
    dataset: str, folder: Path, new: ItemFeatures, described: Sequence[str], earlier: PathLike | None
) -> cold_start.Neighbors | None:
    """Return the neighbors of new items among ``described`` ones of the training, after those of an earlier call."""
    before = cold_start.load_beside(Path(earlier)) if earlier else None
    if not described:
        log.warning(
            "%s lists none of the existing items: new items are ranked by their codes alone, which is coarser", folder
        )
        return before
    near = cold_start.nearest_neighbors(new, item_features.load(folder, dataset, described, tuple(new.vectors)))
    if len(near.items) < len(new.items):
        log.warning("%d new items have no features: they are ranked by their codes alone", len(new.items) - len(near.items))
    return before.followed_by(near) if before else near
