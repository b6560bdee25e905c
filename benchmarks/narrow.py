"""Copies of data sets whose features have one width, so that a union can be made of them.

    python benchmarks/narrow.py --datasets Amazon_Scientific Amazon_Instruments --data_path ../shared/data --width 128 \
        --output runs/narrow

Features of different encoders are different spaces, and this does not make them one: each matrix is rotated to its own
principal axes and cut (PCA), then scaled to a mean square of 1. What such a union can share is the sequence model, not the
meaning of a code. Say so wherever figures of it are shown.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np

from recbole_qbert.data import item_features as features


def narrow(dataset: str, data_path: Path, width: int, output: Path) -> None:
    """Write one data set; its interactions and texts are copied as they are.

    Raises:
        FileNotFoundError: the data set or a feature file is missing.
        ValueError: a matrix has fewer columns than ``width``.
    """
    source, target = data_path / dataset, output / dataset
    target.mkdir(parents=True, exist_ok=True)
    for end in (".inter", ".item"):
        if (source / f"{dataset}{end}").exists():
            shutil.copyfile(source / f"{dataset}{end}", target / f"{dataset}{end}")
    items = list(features.read_item_list(source / f"{dataset}.items.txt"))
    found = features.load(source, dataset, items, features.available(source, dataset))
    matrices = {}
    for modality, vectors in found.vectors.items():
        there = found.present[modality]
        known = vectors[there].astype(np.float64)
        if known.shape[1] < width:
            raise ValueError(f"{dataset}.{modality}.npy has {known.shape[1]} columns; --width {width} is more than that")
        known -= known.mean(0)
        axes = np.linalg.svd(known, full_matrices=False)[2][:width]
        turned = known @ axes.T
        matrix = np.full((*there.shape, width), np.nan, dtype=np.float32)
        matrix[there] = turned / np.sqrt((turned**2).mean())
        matrices[modality] = matrix[:, 0] if matrix.shape[1] == 1 else matrix
        kept = float((turned**2).sum() / (known**2).sum())
        print(f"{dataset} {modality}: {known.shape[1]} -> {width} columns, {kept:.1%} of the variance")
    features.save(target, dataset, items, matrices, {"made": "benchmarks/narrow.py", "width": width, **found.inputs})


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--data_path", required=True, type=Path)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/narrow"))
    args = parser.parse_args()
    for dataset in args.datasets:
        narrow(dataset, args.data_path, args.width, args.output)


if __name__ == "__main__":
    main()
