"""What a new item starts with: the vectors of the items whose features are nearest to its own.

Semantic IDs alone place a new item too coarsely (docs/results.md): it shares a code or two with its neighbours, and most of
what the model knows of an item lies in the sum of all of its codes and its row. So a new item borrows the whole vectors of
its nearest neighbours in the space of the features, with no weight changed. Paper silent; measured in benchmarks/cold.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.utils.io import atomic_write

COUNT = 20  # chosen, with TEMPERATURE, on held-out items of Amazon_Scientific that no reported figure uses
TEMPERATURE = 0.1
HEADER = "item_id:token\tneighbours:token_seq\tweights:float_seq"


@dataclass(frozen=True)
class Neighbors:
    """Nearest old items of new ones.

    Attributes:
        items: ``N`` new items; those that share no modality with any old one are not among them.
        nearest: ``[N, k]`` tokens of old items, nearest first.
        weights: ``[N, k]`` float32, rows sum to 1.
    """

    items: tuple[str, ...]
    nearest: np.ndarray
    weights: np.ndarray

    def and_of(self, others: Neighbors) -> Neighbors:
        """These, and behind them those of other items; of two lengths ``k`` the shorter rows end in weights of 0."""
        width = max(self.nearest.shape[1], others.nearest.shape[1])
        nearest, weights = [], []
        for part in (self, others):
            more = ((0, 0), (0, width - part.nearest.shape[1]))
            nearest.append(np.pad(part.nearest, more, "edge") if part.items else np.empty((0, width), dtype="U1"))
            weights.append(np.pad(part.weights, more) if part.items else np.empty((0, width), dtype=np.float32))
        return Neighbors(self.items + others.items, np.concatenate(nearest), np.concatenate(weights))

    def save(self, path: Path) -> None:
        """Write an atomic file, one row a new item; whole or not at all."""
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(HEADER + "\n")
            for item, near, weight in zip(self.items, self.nearest, self.weights, strict=True):
                handle.write(f"{item}\t{' '.join(near)}\t{' '.join(f'{w:.6g}' for w in weight)}\n")


def neighbors_path(sid_file: Path) -> Path:
    """Where the neighbours of the new items of a ``.sid`` file lie."""
    return sid_file.with_suffix(".neighbours")


def load(path: Path) -> Neighbors:
    """Read what ``Neighbours.save`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a bad header or row.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; 'run_recbole_qbert.py add' writes it")
    items: list[str] = []
    nearest: list[list[str]] = []
    weights: list[list[float]] = []
    with open(path, encoding="utf-8") as handle:
        if (header := handle.readline().rstrip("\r\n")) != HEADER:
            raise ValueError(f"{path}:1: header is {header!r}; it must be {HEADER!r}")
        for number, line in enumerate(handle, 2):
            cells = line.rstrip("\r\n").split("\t")
            near, weight = (cells[1].split(" "), cells[2].split(" ")) if len(cells) == 3 else ([""], [])
            if len(near) != len(weight) or (nearest and len(near) != len(nearest[0])):
                raise ValueError(
                    f"{path}:{number}: not an item, its neighbours and as many weights; write the file again with add"
                )
            items.append(cells[0])
            nearest.append(near)
            weights.append([float(w) for w in weight])
    shape = len(items), len(nearest[0]) if nearest else 0
    return Neighbors(tuple(items), np.array(nearest).reshape(shape), np.array(weights, dtype=np.float32).reshape(shape))


def nearest_neighbors(
    new: ItemFeatures, old: ItemFeatures, count: int = COUNT, temperature: float = TEMPERATURE
) -> Neighbors:
    """Old items with the most similar features.

    Similarity is the mean over the modalities that both items have of the cosine of their vectors, each modality centred on
    the old items' mean (a mean of several vectors where an item has several).

    Args:
        new: ``N`` items.
        old: at least one item with features.
        count: ``k``; fewer when there are fewer old items.
        temperature: of the softmax over similarities that gives the weights.
    """
    total = np.zeros((len(new.items), len(old.items)), dtype=np.float32)
    shared = np.zeros_like(total)
    for name in old.vectors:
        if name not in new.vectors:
            continue
        base, here = _mean(old, name)
        centre = base[here].mean(0) if here.any() else 0.0
        query, there = _mean(new, name)
        both = np.outer(there, here).astype(np.float32)
        total += both * (_unit(query - centre) @ _unit(base - centre).T)
        shared += both
    there = shared.any(1)
    similar = np.where(shared > 0, total / np.maximum(shared, 1), -1.0)[there]
    rows = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    logits = np.take_along_axis(similar, rows, 1) / temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    items = tuple(item for item, has in zip(new.items, there, strict=True) if has)
    return Neighbors(items, np.array(old.items)[rows], (weights / weights.sum(1, keepdims=True)).astype(np.float32))


def _mean(features: ItemFeatures, name: str) -> tuple[np.ndarray, np.ndarray]:
    present = features.present[name]
    return features.vectors[name].sum(1) / np.maximum(present.sum(1, keepdims=True), 1), present.any(1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
