"""Cold start: a new item gets the vectors of the items whose features are nearest to its own.

Semantic IDs alone are too coarse for a new item (docs/results.md): it shares a code or two with similar items, while most of
what the model has learned about an item is in the sum of all of its codes and its embedding. So a new item takes the vectors
of its nearest neighbors in feature space; no weight is changed. The paper is silent; measured in benchmarks/cold.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.utils.io import atomic_write, sha256

COUNT = 20  # chosen, with TEMPERATURE, on held-out items of Amazon_Scientific that no reported result uses
TEMPERATURE = 0.1
DIGEST = "neighbours_sha256"  # in the .sid.json file
HEADER = "item_id:token\tneighbours:token_seq\tweights:float_seq"


@dataclass(frozen=True)
class Neighbors:
    """Nearest old items of new ones.

    Attributes:
        items: ``N`` new items, without those that share no modality with any old one.
        nearest: ``[N, k]`` tokens of old items, nearest first.
        weights: ``[N, k]`` float32, rows sum to 1.
    """

    items: tuple[str, ...]
    nearest: np.ndarray
    weights: np.ndarray

    def followed_by(self, others: Neighbors) -> Neighbors:
        """Append the neighbors of other items; the shorter rows are padded with weights of 0."""
        width = max(self.nearest.shape[1], others.nearest.shape[1])
        nearest, weights = [], []
        for part in (self, others):
            more = ((0, 0), (0, width - part.nearest.shape[1]))
            nearest.append(np.pad(part.nearest, more, "edge") if part.items else np.empty((0, width), dtype="U1"))
            weights.append(np.pad(part.weights, more) if part.items else np.empty((0, width), dtype=np.float32))
        return Neighbors(self.items + others.items, np.concatenate(nearest), np.concatenate(weights))

    def save(self, path: Path) -> None:
        """Write an atomic file with one row for each new item, atomically."""
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
            handle.write(HEADER + "\n")
            for item, near, weight in zip(self.items, self.nearest, self.weights, strict=True):
                handle.write(f"{item}\t{' '.join(near)}\t{' '.join(f'{w:.6g}' for w in weight)}\n")


def neighbors_path(sid_file: Path) -> Path:
    """Path of the file with the neighbors of the new items of a ``.sid`` file."""
    return sid_file.with_suffix(".neighbours")


def load(path: Path) -> Neighbors:
    """Read a file that ``Neighbors.save`` wrote.

    Raises:
        FileNotFoundError: the file is missing.
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
            fields = line.rstrip("\r\n").split("\t")
            near, weight = (fields[1].split(" "), fields[2].split(" ")) if len(fields) == 3 else ([""], [])
            if len(near) != len(weight) or (nearest and len(near) != len(nearest[0])):
                raise ValueError(
                    f"{path}:{number}: expected an item, its neighbors and as many weights; write the file again with add"
                )
            try:
                weights.append([float(w) for w in weight])
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}; write the file again with add") from None
            if not np.isfinite(weights[-1]).all():
                raise ValueError(f"{path}:{number}: the weights {fields[2]!r} are not all numbers; write it again with add")
            items.append(fields[0])
            nearest.append(near)
    shape = len(items), len(nearest[0]) if nearest else 0
    return Neighbors(tuple(items), np.array(nearest).reshape(shape), np.array(weights, dtype=np.float32).reshape(shape))


def load_beside(sid_file: Path) -> Neighbors | None:
    """Read the neighbors of the new items of a ``.sid`` file; ``None`` if it has none.

    Raises:
        FileNotFoundError: ``add`` wrote the file, and it is missing.
        ValueError: the file is not the one that ``add`` wrote, or a row is bad.
    """
    path = neighbors_path(sid_file)
    expected = semantic_ids.read_details(sid_file).get(DIGEST)
    if expected is None and not path.exists():  # no digest: before version 0.2, or an .sid file of other software
        return None
    neighbors = load(path)
    if expected not in (None, sha256(path)):
        raise ValueError(f"{path} is not the file that 'run_recbole_qbert.py add' wrote with {sid_file}; write both again")
    return neighbors


def nearest_neighbors(
    new: ItemFeatures, old: ItemFeatures, count: int = COUNT, temperature: float = TEMPERATURE
) -> Neighbors:
    """Find the old items with the most similar features.

    Similarity is the cosine of the items' vectors, averaged over the modalities that both have. Each modality is centered on
    the mean of the old items; several vectors of an item are averaged first. The paper is silent.

    Args:
        new: features of ``N`` items.
        old: features of old items, at least one.
        count: ``k``; fewer if there are fewer old items.
        temperature: temperature of the softmax over similarities that gives the weights.
    """
    total = np.zeros((len(new.items), len(old.items)), dtype=np.float32)
    shared = np.zeros_like(total)
    for name in old.vectors:
        if name not in new.vectors:
            continue
        old_vectors, old_has = _mean(old, name)
        center = old_vectors[old_has].mean(0) if old_has.any() else 0.0
        new_vectors, new_has = _mean(new, name)
        both = np.outer(new_has, old_has).astype(np.float32)
        total += both * (_unit(new_vectors - center) @ _unit(old_vectors - center).T)
        shared += both
    comparable = shared.any(1)
    similar = np.where(shared > 0, total / np.maximum(shared, 1), -1.0)[comparable]
    rows = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    logits = np.take_along_axis(similar, rows, 1) / temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    items = tuple(item for item, has in zip(new.items, comparable, strict=True) if has)
    return Neighbors(items, np.array(old.items)[rows], (weights / weights.sum(1, keepdims=True)).astype(np.float32))


def _mean(features: ItemFeatures, name: str) -> tuple[np.ndarray, np.ndarray]:
    present = features.present[name]
    return features.vectors[name].sum(1) / np.maximum(present.sum(1, keepdims=True), 1), present.any(1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
