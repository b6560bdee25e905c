"""Give items that arrive after training a semantic ID, and recommend them. No weight changes.

python examples/new_items.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from own_features import QUICK, make_data

from recbole_qbert import Recommender, add_items, export_model, train


def add_rows(path: Path, target: Path, new: list[str]) -> None:
    """Copy the features of ``Toys`` and append those of new items, here like those of the first items."""
    target.mkdir(exist_ok=True)
    items = (path / "Toys.items.txt").read_text().split()
    (target / "Toys.items.txt").write_text("".join(f"{item}\n" for item in [*items, *new]))
    for modality in ("text", "image"):
        matrix = np.load(path / f"Toys.{modality}.npy")
        np.save(target / f"Toys.{modality}.npy", np.concatenate([matrix, matrix[10 : 10 + len(new)]]))


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example_data")
    data, runs = make_data(folder), folder / "runs"
    train("Toys", data, runs, QUICK)
    export_model(runs / "Toys" / "finetune.pth", folder / "exported")

    add_rows(data / "Toys", folder / "with_new", ["new0", "new1"])
    add_items("Toys", vocabulary=runs / "Toys", features=folder / "with_new", output=folder / "more.sid")

    model = Recommender.load(folder / "exported", semantic_ids=folder / "more.sid")
    for answer in model.recommend([["t008", "t009"]], k=10)[0]:
        print(f"{answer.score:7.3f}  {answer.item:5} {answer.semantic_id}")
