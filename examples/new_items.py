"""Give items that arrive after training a semantic ID, and recommend them. No weight changes.

python examples/new_items.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from own_features import QUICK, make_data

from recbole_qbert import Recommender
from recbole_qbert.cli import main as command


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
    settings = [f"--{key}={value}" for key, value in QUICK.items()]
    command(["train", "--dataset=Toys", f"--data_path={data}", f"--output={runs}", *settings])
    command(["export", f"--checkpoint={runs}/Toys/finetune.pth", f"--to={folder}/exported"])

    add_rows(data / "Toys", folder / "with_new", ["new0", "new1"])
    sid = f"{folder}/more.sid"
    command(["add", "--dataset=Toys", f"--vocabulary={runs}/Toys", f"--features={folder}/with_new", f"--to={sid}"])

    model = Recommender.load(folder / "exported", semantic_ids=sid)
    for answer in model.recommend([["t008", "t009"]], k=10)[0]:
        print(f"{answer.score:7.3f}  {answer.item:5} {answer.semantic_id}")
