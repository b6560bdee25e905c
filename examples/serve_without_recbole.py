"""Export a trained model and recommend with it where neither RecBole nor the data are installed.

    python examples/serve_without_recbole.py [folder]

The exported folder holds tensors and text, no pickles. In a service only the last lines are needed; ``recbole_qbert`` itself
is installed there, RecBole need not be.
"""

from __future__ import annotations

import sys
from pathlib import Path

from own_features import QUICK, make_data

from recbole_qbert import Recommender, export_model, train

if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example_data")
    data, runs = make_data(folder), folder / "runs"
    train("Toys", data, runs, QUICK)
    export_model(runs / "Toys" / "finetune.pth", folder / "exported")

    model = Recommender.load(folder / "exported")
    for answers in model.recommend([["t008", "t009"], ["t030"]], k=3):
        print([(answer.item, round(answer.score, 3), answer.title) for answer in answers])
