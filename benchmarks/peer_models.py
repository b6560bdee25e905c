"""SASRec and BERT4Rec of RecTools and SASRec of RePlay, trained in turns, in an environment that `training.py` makes.

They have the full softmax here, the same width, layers, heads, dropout, maximum length and batch as the other models. An
epoch is one pass over all users. Validation ranks all items but those of the history, as for the other models. RecTools
trains by its own methods. Of RePlay it is the network and the loss, in a plain loop without its Lightning module and its
files, which can only be quicker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks.training import PEERS, EnoughError, Turns, peaks

NEEDED = ("rectools[torch]==0.19.0", "replay-rec[torch]==0.22.0")
BATCH, RATE, DROPOUT = 256, 0.001, 0.2
K = 10


def main() -> None:
    """Train one model and print its row."""
    parser = argparse.ArgumentParser()
    for name in ("width", "layers", "heads", "inner", "max_length", "threads", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", choices=PEERS, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", type=Path, required=True)
    print(json.dumps(train(parser.parse_known_args()[0])), flush=True)


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Train epoch by epoch, each after the word to go on."""
    import torch
    from pytorch_lightning import seed_everything

    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    seed_everything(2026, verbose=False)
    training, valid = split(args.data_path / args.dataset / f"{args.dataset}.inter")
    epoch, score = (of_replay if args.model.startswith("RePlay") else of_rectools)(args, training, valid)
    turns = Turns()
    with contextlib.suppress(EnoughError):
        for _ in range(args.epochs):
            turns.wait()
            with contextlib.redirect_stdout(sys.stderr):
                epoch()
            turns.trained()
            with contextlib.redirect_stdout(sys.stderr):
                found = score()
            turns.validated(found)
    turns.end()
    return {
        "model": args.model, "epochs": len(turns.training), "seconds_an_epoch": statistics.median(turns.training),
        "seconds_of_epochs": turns.training, "seconds_of_turns": turns.total, "valid_of_epochs": turns.scores,
        "valid_ndcg@10": max(turns.scores), "device": "cpu", **peaks(),
    }  # fmt: skip


def of_rectools(args: argparse.Namespace, training: Any, valid: Any) -> tuple[Callable[[], Any], Callable[[], float]]:
    """Return functions that train a model of RecTools for an epoch, and that validate it."""
    import numpy as np
    import rectools.models
    from pytorch_lightning import Trainer
    from rectools.dataset import Dataset

    dataset = Dataset.construct(training.assign(datetime=training["timestamp"].astype("datetime64[s]"), weight=1.0))

    def trainer() -> Any:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return Trainer(max_epochs=args.epochs, accelerator="cpu", devices=1, **quiet)

    model = getattr(rectools.models, f"{args.model.removeprefix('RecTools ')}Model")(
        n_factors=args.width, n_blocks=args.layers, n_heads=args.heads, session_max_len=args.max_length,
        dropout_rate=DROPOUT, batch_size=BATCH, lr=RATE, epochs=args.epochs, loss="softmax", get_trainer_func=trainer,
        recommend_torch_device="cpu",
    )  # fmt: skip

    def score() -> float:
        found = model.recommend(valid["user_id"].to_numpy(), dataset, k=K, filter_viewed=True)
        hits = found.merge(valid[["user_id", "item_id"]], on=["user_id", "item_id"])
        return float((1 / np.log2(hits["rank"] + 1)).sum() / len(valid))

    return lambda: model.fit_partial(dataset, min_epochs=1, max_epochs=1), score


def of_replay(args: argparse.Namespace, training: Any, valid: Any) -> tuple[Callable[[], Any], Callable[[], float]]:
    """Return functions that train RePlay's SASRec for an epoch, and that validate it."""
    import pandas as pd
    import torch
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
    from replay.nn.sequential import SasRec

    names = pd.unique(pd.concat([training["item_id"], valid["item_id"]]))
    number, padding = {name: place for place, name in enumerate(names)}, len(names)
    feature = TensorFeatureInfo(
        "item_id", is_seq=True, feature_type=FeatureType.CATEGORICAL, embedding_dim=args.width, padding_value=padding,
        cardinality=padding, feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )  # fmt: skip
    model = SasRec.from_params(
        TensorSchema([feature]), embedding_dim=args.width, num_heads=args.heads, num_blocks=args.layers,
        max_sequence_length=args.max_length, dropout=DROPOUT, hidden_dim=args.inner,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    histories = {user: torch.tensor(rows.map(number).to_numpy()) for user, rows in training.groupby("user_id")["item_id"]}
    target = torch.tensor(valid["item_id"].map(number).to_numpy())

    def padded(of: list[torch.Tensor]) -> torch.Tensor:
        rows = torch.full((len(of), args.max_length), padding)
        for row, history in zip(rows, of, strict=True):
            newest = history[-args.max_length :]
            row[args.max_length - len(newest) :] = newest
        return rows

    learned = [history for history in histories.values() if len(history) > 1]
    inputs, answers = padded([history[:-1] for history in learned]), padded([history[1:] for history in learned])
    asked = padded([histories[user] for user in valid["user_id"]])

    def epoch() -> None:
        model.train()
        for rows in torch.randperm(len(inputs)).split(BATCH):
            optimizer.zero_grad()
            real = answers[rows] != padding
            out = model(
                {"item_id": inputs[rows]},
                real,
                positive_labels=answers[rows][:, :, None],
                target_padding_mask=real[:, :, None],
            )
            out["loss"].backward()
            optimizer.step()

    @torch.no_grad()
    def score() -> float:
        model.eval()
        total = 0.0
        for rows in torch.arange(len(asked)).split(512):
            scores = model({"item_id": asked[rows]}, asked[rows] != padding)["logits"]
            scores = torch.cat([scores, scores.new_zeros(len(rows), 1)], 1).scatter(1, asked[rows], -torch.inf)
            rank = (scores >= scores.gather(1, target[rows, None])).sum(1)
            total += float(torch.where(rank <= K, 1 / torch.log2(rank + 1.0), 0.0).sum())
        return total / len(asked)

    return epoch, score


def split(path: Path) -> tuple[Any, Any]:
    """Return training and validation interactions, leave-one-out, as the other models have them; test items are left out."""
    import pandas as pd

    table = pd.read_csv(path, sep="\t", dtype={"user_id:token": str, "item_id:token": str})
    table = table.rename(columns=lambda name: name.split(":")[0])[["user_id", "item_id", "timestamp"]]
    table = table.sort_values(["user_id", "timestamp"], kind="stable")
    count = table.groupby("user_id")["item_id"].transform("size")
    left = count - table.groupby("user_id").cumcount() - 1  # interactions after this one
    held = (count - 2).clip(0, 2)
    return table[left >= held], table[(left == 1) & (held == 2)]


if __name__ == "__main__":
    main()
