"""SASRec and BERT4Rec of RecTools, trained in turns; `training.py` starts this file in an environment of its own.

RecTools has the full softmax here, the same width, layers, heads, dropout, maximum length and batch as the other models. An
epoch is one pass over all users. Validation ranks all items but those of the history, as for the other models.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks.training import EnoughError, Turns, peaks

MODELS = {"RecTools SASRec": "SASRecModel", "RecTools BERT4Rec": "BERT4RecModel"}
RECTOOLS = "rectools[torch]==0.19.0"
K = 10


def main() -> None:
    """Train one model and print its row."""
    parser = argparse.ArgumentParser()
    for name in ("width", "layers", "heads", "max_length", "threads", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", type=Path, required=True)
    print(json.dumps(train(parser.parse_known_args()[0])), flush=True)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train epoch by epoch, each after the word to go on."""
    import rectools.models
    import torch
    from pytorch_lightning import Trainer, seed_everything
    from rectools.dataset import Dataset

    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    seed_everything(2026, verbose=False)
    training, valid = split(args.data_path / args.dataset / f"{args.dataset}.inter")
    dataset = Dataset.construct(training)

    def trainer() -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return Trainer(max_epochs=args.epochs, accelerator="cpu", devices=1, **quiet)

    model = getattr(rectools.models, MODELS[args.model])(
        n_factors=args.width, n_blocks=args.layers, n_heads=args.heads, session_max_len=args.max_length, dropout_rate=0.2,
        batch_size=256, lr=0.001, epochs=args.epochs, loss="softmax", get_trainer_func=trainer, recommend_torch_device="cpu",
    )  # fmt: skip
    turns = Turns()
    with contextlib.suppress(EnoughError):
        for _ in range(args.epochs):
            turns.wait()
            with contextlib.redirect_stdout(sys.stderr):
                model.fit_partial(dataset, min_epochs=1, max_epochs=1)
            turns.trained()
            with contextlib.redirect_stdout(sys.stderr):
                found = model.recommend(valid["user_id"].to_numpy(), dataset, k=K, filter_viewed=True)
            turns.validated(ndcg(found, valid))
    turns.end()
    return {
        "model": args.model, "epochs": len(turns.training), "seconds_an_epoch": statistics.median(turns.training),
        "seconds_of_epochs": turns.training, "seconds_of_turns": turns.total, "valid_of_epochs": turns.scores,
        "valid_ndcg@10": max(turns.scores), "device": "cpu", **peaks(),
    }  # fmt: skip


def split(path: Path) -> tuple[Any, Any]:
    """Return training and validation interactions, leave-one-out, as the other models have them; test items are left out."""
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype={"user_id:token": str, "item_id:token": str})
    table = table.rename(columns=lambda name: name.split(":")[0])[["user_id", "item_id", "timestamp"]]
    table = table.sort_values(["user_id", "timestamp"], kind="stable")
    count = table.groupby("user_id")["item_id"].transform("size")
    left = count - table.groupby("user_id").cumcount() - 1  # interactions after this one
    held = (count - 2).clip(0, 2)
    table["datetime"] = pd.to_datetime(table["timestamp"], unit="s")
    table["weight"] = 1.0
    return table[left >= held].drop(columns="timestamp"), table[(left == 1) & (held == 2)]


def ndcg(found: Any, valid: Any) -> float:
    """Return NDCG@10 of recommendations ``user_id, item_id, rank`` with one relevant item a user."""
    import numpy as np

    hits = found.merge(valid[["user_id", "item_id"]], on=["user_id", "item_id"])
    return float((1 / np.log2(hits["rank"] + 1)).sum() / len(valid))


if __name__ == "__main__":
    main()
