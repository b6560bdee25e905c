"""Quality side by side: QBERT4Rec's named configurations, item-kNN and RecBole's baselines on one split, several seeds.

    python benchmarks/quality.py --dataset Amazon_Scientific --data_path ../shared/data \
        --models default paper ItemKNN SASRec BERT4Rec --seeds 2026 2027 2028 --output runs/quality

Every cell (model, seed) is one JSON file with metrics and the rank of every user's test item; a cell that is there is not
run again, so the command can be stopped and repeated. Baselines are tuned first: a grid over learning rate and dropout with
the first seed, chosen on validation NDCG@10 *with the history left out* (users of these data hardly ever buy an item twice,
which QBERT4Rec learns by itself). All are reported both as RecBole evaluates and with the history left out. Ties count
against the model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import recbole_qbert  # noqa: F401  registers QBERT4Rec
from recbole_qbert import runs
from recbole_qbert.artifacts import write_json
from recbole_qbert.cooccurrence import CooccurrencePrior
from recbole_qbert.paths import properties
from recbole_qbert.ranking import rank_of
from recbole_qbert.significance import gains, paired_test
from recbole_qbert.suites.work import leave_history_out, take_history_back

GRID = {"learning_rate": [0.001, 0.0005], "hidden_dropout_prob": [0.2, 0.5]}
OURS = {"default": [], "paper": ["paper/QBERT4Rec.yaml"]}
CARE = {"eval_batch_size": 512, "stopping_step": 5, "metric_decimal_place": 6, "show_progress": False, "state": "INFO"}


def cell(args: argparse.Namespace, name: str, seed: int, point: Mapping[str, Any]) -> dict[str, Any]:
    """One trained model; read back if it was run before."""
    tag = "".join(f"-{key}={value}" for key, value in sorted({**point, **args.set}.items()))
    path = (args.output / f"{args.dataset}-{name}-length={args.max_length}{tag}-seed={seed}.json").resolve()
    if path.exists():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    folder = path.with_suffix("")
    ours = name in OURS
    files = OURS[name] if ours else ["baseline/common.yaml", f"baseline/{name}.yaml"]
    settings = {**CARE, "seed": seed, "MAX_ITEM_LIST_LENGTH": args.max_length, "checkpoint_dir": str(folder), **point}
    if ours:
        settings |= args.set
    else:
        settings |= {"eval_args": SPLIT, "metrics": ["Hit", "NDCG"], "topk": [1, 5, 10], "valid_metric": "NDCG@10"}
    started = time.perf_counter()
    result: dict[str, Any] = {"model": name, "dataset": args.dataset, "seed": seed, "settings": settings}
    with runs.inside(folder):
        run = train(args, ours, name, settings, [str(properties(file)) for file in files], result)
    result |= {"seconds": time.perf_counter() - started, "training_seconds": run.seconds["training"], "valid": run.valid}
    result |= {"epochs": len(run.trainer.train_loss_dict), "parameters": sum(p.numel() for p in run.model.parameters())}
    result |= tested(run)
    if ours:
        result["identifiers"] = run.model.identifier_figures
        result["prior"] = runs.add_prior(run)
        result |= {f"prior_{key}": value for key, value in tested(run).items()}
    os.remove(run.trainer.saved_model_file)
    write_json(path, result)
    print(
        path.stem,
        {k: round(v, 4) for k, v in result["test_history_excluded"].items()},
        round(result["seconds"]),
        "s",
        flush=True,
    )
    return result


def train(
    args: argparse.Namespace, ours: bool, name: str, settings: dict[str, Any], files: list[str], result: dict[str, Any]
) -> runs.Run:
    """Pretrain (ours, where the configuration says so) and train."""
    model = "QBERT4Rec" if ours else name
    if not ours:
        return runs.train(runs.configure(model, args.dataset, args.data_path, settings, files), prepare=leave_history_out)
    chosen = runs.configure(model, args.dataset, args.data_path, settings, files)
    if chosen["pretrain_epochs"] > 0:
        first = runs.train(runs.configure(model, args.dataset, args.data_path, settings | runs.pretraining(chosen), files))
        settings = settings | {"pretrained": first.trainer.saved_model_file}
        result["pretraining"] = {"valid": first.valid, "epochs": len(first.trainer.train_loss_dict), **first.seconds}
    return runs.train(runs.configure(model, args.dataset, args.data_path, settings, files))


def tested(run: runs.Run) -> dict[str, Any]:
    """Test figures and ranks, as RecBole evaluates and with the history left out."""
    take_history_back(run.model)
    plain, excluded = (runs.ranks(run, run.test_data, exclude_history=out) for out in (False, True))
    return {
        "test": runs.figures(plain),
        "test_history_excluded": runs.figures(excluded),
        "ranks": plain.tolist(),
        "ranks_history_excluded": excluded.tolist(),
    }


def item_knn(args: argparse.Namespace) -> dict[str, Any]:
    """Summed cosine co-occurrence with the history, from the training part; nothing is trained, no seed matters."""
    from recbole.data import create_dataset

    config = runs.configure("QBERT4Rec", args.dataset, args.data_path, {"MAX_ITEM_LIST_LENGTH": args.max_length})
    train, _, test = create_dataset(config).build()
    prior = CooccurrencePrior(train.histories, train.item_num)
    rows = test.inter_feat
    order = rows["user_id"].argsort()
    share = prior.share(rows["item_id_list"][order], rows["item_length"][order])
    history = torch.zeros_like(share).scatter_(1, rows["item_id_list"][order], 1.0).bool()
    share = share.masked_fill(history, -1.0)
    share[:, 0] = -2.0
    ranks = rank_of(share, rows["item_id"][order]).numpy()
    result = {"model": "ItemKNN", "dataset": args.dataset, "seed": None, "test_history_excluded": runs.figures(ranks)}
    return result | {"ranks_history_excluded": ranks.tolist()}


def report(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Print mean and spread of every model and the paired tests of ours against the rest."""
    lines: dict[str, tuple[Sequence[Mapping[str, Any]], str]] = {}
    for name, results in cells.items():
        lines[name] = (results, "")
        if "prior" in results[0]:
            lines[f"{name} + prior"] = (results, "prior_")
    summary: dict[str, Any] = {}
    for setting in ("test", "test_history_excluded"):
        print(f"\n{setting}: mean (standard deviation) over seeds")
        for name, (results, prefix) in lines.items():
            if prefix + setting not in results[0]:
                continue
            metrics = {
                k: [r[prefix + setting][k] for r in results] for k in ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10")
            }
            spread = {k: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0) for k, v in metrics.items()}
            summary.setdefault(setting, {})[name] = spread
            print(f"{name:<18} {len(results)} seeds  " + "  ".join(f"{k} {m:.4f} ({s:.4f})" for k, (m, s) in spread.items()))
    key = "ranks_history_excluded"
    users = {name: gains([r[prefix + key] for r in results]) for name, (results, prefix) in lines.items()}
    print("\npaired test on NDCG@10, history left out for all: p that the left is not better")
    for ours, other in itertools.product([n for n in users if n.split(" ")[0] in OURS], users):
        if ours != other and len(users[ours]) == len(users[other]):
            p = paired_test(users[ours], users[other])
            summary.setdefault("p", {})[f"{ours} > {other}"] = p
            print(f"{ours:<18} > {other:<18} difference {np.mean(users[ours] - users[other]):+.4f}  p {p:.4f}")
    return summary


SPLIT = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True, type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--models", nargs="+", default=["default", "ItemKNN", "SASRec", "BERT4Rec"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2026, 2027, 2028])
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--set", type=json.loads, default={}, help="JSON of properties for our configurations")
    parser.add_argument("--tune", action="store_true", help="tune our configurations over the baselines' grid too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--json", type=Path, help="write the summary there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    cells: dict[str, list[dict[str, Any]]] = {}
    for name in args.models:
        if name == "ItemKNN":
            cells[name] = [item_knn(args)]
            continue
        best: dict[str, Any] = {}
        if name not in OURS or args.tune:
            points = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
            best = max(points, key=lambda point: cell(args, name, args.seeds[0], point)["valid"]["ndcg@10"])
        cells[name] = [cell(args, name, seed, best) for seed in args.seeds]
    summary = report(cells)
    if args.json:
        write_json(args.json, summary)


if __name__ == "__main__":
    main()
