"""One RecBole baseline, trained and tested with the care our own model gets; one JSON file a cell.

``python benchmarks/baseline_cell.py --model SASRec --dataset Amazon_Scientific --data_path ../shared/data
--grid '{"learning_rate": [0.001, 0.0005], "hidden_dropout_prob": [0.2, 0.5]}' --seeds 2026 2027 2028 --output runs/quality``

The grid is searched with the first seed on validation NDCG@10; the best point is then run with every seed. Early
stopping and the choice use validation scores *with the history left out*, the setting that is best for the baseline on
data without repeats; the test ranks of both settings are kept per user, ties counted against the model.
A cell whose file is there is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

COMMON: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "metrics": ["Hit", "NDCG"],
    "topk": [1, 5, 10],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "train_neg_sample_args": None,
    "loss_type": "CE",
    "train_batch_size": 1024,
    "eval_batch_size": 512,
    "epochs": 100,
    "stopping_step": 5,
    "worker": 0,
    "show_progress": False,
    "state": "WARNING",
}
EXTRA: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 2},
    "BERT4Rec": {
        "hidden_size": 64,
        "inner_size": 256,
        "n_layers": 2,
        "n_heads": 2,
        "transform": "mask_itemseq",
        "mask_ratio": 0.3,
    },
}


def leave_history_out(model: torch.nn.Module) -> None:
    """Make ``full_sort_predict`` of any RecBole sequential model rank the items of the history last."""
    plain = model.full_sort_predict

    def excluded(interaction: Any) -> torch.Tensor:
        history = interaction[model.ITEM_SEQ]
        scores = plain(interaction).view(len(history), -1)[:, : model.n_items].clone()
        return scores.scatter(1, history, -torch.inf)

    model.plain_full_sort_predict, model.full_sort_predict = plain, excluded


@torch.no_grad()
def ranks(model: torch.nn.Module, data: Any, exclude: bool) -> np.ndarray:
    """Rank of each user's target over all items, ties against the model; ``[users]`` in the order of the loader."""
    model.eval()
    score = model.full_sort_predict if exclude else getattr(model, "plain_full_sort_predict", model.full_sort_predict)
    found = []
    for interaction, _, _, positive in data:
        scores = score(interaction.to(model.device)).view(len(interaction), -1)[:, : model.n_items].clone()
        scores[:, 0] = -torch.inf
        target = scores.gather(1, positive.to(scores.device)[:, None])
        found.append((scores >= target).sum(1).cpu().numpy())
    return np.concatenate(found)


def figures(rank: np.ndarray) -> dict[str, float]:
    """HR and NDCG at 1, 5, 10 of ranks counted from 1."""
    out = {}
    for k in (1, 5, 10):
        hit = rank <= k
        out[f"hit@{k}"] = float(hit.mean())
        out[f"ndcg@{k}"] = float((hit / np.log2(rank + 1.0)).mean())
    return out


def run_cell(name: str, dataset: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one model once; returns figures and writes them with the per-user ranks under ``folder``."""
    seed = options["seed"]
    tag = "-".join(f"{k}={options[k]}" for k in sorted(options) if k not in COMMON and k not in EXTRA.get(name, {}) and k not in ("data_path", "checkpoint_dir"))
    path = folder / f"{dataset}-{name}-{tag}.json"
    if path.exists():
        return json.loads(path.read_text())
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    config = Config(model=name, dataset=dataset, config_dict=options)
    init_seed(seed, True)
    data = create_dataset(config)
    train, valid, test = data_preparation(config, data)
    init_seed(seed, True)
    model = get_model(name)(config, train._dataset).to(config["device"])
    leave_history_out(model)
    trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
    started = time.perf_counter()
    best, valid_result = trainer.fit(train, valid, saved=True, show_progress=False)
    seconds = time.perf_counter() - started
    state = torch.load(trainer.saved_model_file, map_location="cpu", weights_only=False)
    model.load_state_dict(state["state_dict"])
    excluded, plain = ranks(model, test, True), ranks(model, test, False)
    result = {
        "model": name, "dataset": dataset, "seed": seed, "options": options, "valid": dict(valid_result),
        "test_history_excluded": figures(excluded), "test": figures(plain), "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "ranks_history_excluded": excluded.tolist(), "ranks": plain.tolist(),
    }  # fmt: skip
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result))
    os.replace(temporary, path)
    os.remove(trainer.saved_model_file)
    print(path.name, "valid", round(best, 4), "test", {k: round(v, 4) for k, v in result["test_history_excluded"].items()}, round(seconds), "s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--grid", type=json.loads, default={})
    parser.add_argument("--seeds", type=int, nargs="+", default=[2026, 2027, 2028])
    parser.add_argument("--max_length", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    args = parser.parse_args()
    sys.argv = sys.argv[:1]
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    base = {**COMMON, **EXTRA.get(args.model, {}), "data_path": str(Path(args.data_path).resolve()),
            "MAX_ITEM_LIST_LENGTH": args.max_length, "checkpoint_dir": str(args.output / "saved" / args.model)}  # fmt: skip
    points = [dict(zip(args.grid, values)) for values in itertools.product(*args.grid.values())]
    tried = [(run_cell(args.model, args.dataset, {**base, **p, "seed": args.seeds[0]}, args.output), p) for p in points]
    best = max(tried, key=lambda pair: pair[0]["valid"]["ndcg@10"])[1]
    print("best point of the grid on validation:", best, flush=True)
    for seed in args.seeds:
        run_cell(args.model, args.dataset, {**base, **best, "seed": seed}, args.output)


if __name__ == "__main__":
    main()
