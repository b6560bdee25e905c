"""Does pretraining on other domains help? No pretraining, plain random masks, the paper's three masks (Table 4).

    python benchmarks/transfer.py --sources Demo_Ceramics Demo_Kitchen --target Demo_Studio --data_path runs/demo_data \
        --config_files properties/dataset/Demo_Studio.yaml --json transfer.json

For every seed: one vocabulary over all domains (the same for the three rows), pretraining on the sources, fine-tuning on the
target. Per-user ranks are kept; p-values are of the paired sign-flip test on NDCG@10, history left out.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_qbert import cli, runs
from recbole_qbert.artifacts import write_json
from recbole_qbert.significance import gains, paired_test

ROWS = {"none": None, "plain": ["random"], "multi-mask": ["span", "multi_region", "tail"]}
CARE = {"eval_batch_size": 512, "metric_decimal_place": 6, "show_progress": False, "state": "ERROR"}


def one(args: argparse.Namespace, seed: int, row: str) -> dict[str, Any]:
    """One cell; read back if it was run before."""
    path = (args.output / f"{args.target}-{row}-{seed}.json").resolve()
    if path.exists():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    folder = (args.output / f"seed-{seed}").resolve()
    settings = {"seed": seed, "MAX_ITEM_LIST_LENGTH": args.max_length, **CARE, **args.set}
    vocabulary = folder / "+".join([*args.sources, args.target])
    weights = vocabulary / f"pretrain-{row}.pth"
    masks = ROWS[row] or ROWS["multi-mask"]
    epochs = args.pretrain_epochs if ROWS[row] else 0
    given = [f"--{key}={json.dumps(value)}" for key, value in settings.items()]
    given += [f"--pretrain_masks={json.dumps(masks)}", f"--pretrain_epochs={max(epochs, 1)}"]
    files = ["--config_files", *args.config_files] if args.config_files else []
    command = ["pretrain", "--datasets", *args.sources, "--targets", args.target, "--data_path", args.data_path, *files]
    if epochs or not vocabulary.exists():
        status = cli.main([*command, "--output", str(folder), *given, "--json", str(weights.with_suffix(".json"))])
        if status:
            raise SystemExit(status)
        if epochs:
            (vocabulary / "pretrain.pth").rename(weights)
        (vocabulary / "pretrain.progress").unlink(missing_ok=True)
    base = {"semantic_id_file": str(vocabulary / f"{args.target}.sid"), "checkpoint_dir": str(folder / "checkpoints")}
    base |= {"pretrained": str(weights)} if epochs else {}
    with runs.inside(folder):
        run = runs.train(runs.configure("QBERT4Rec", args.target, args.data_path, settings | base, args.config_files))
    rank = runs.ranks(run, run.test_data, exclude_history=True)
    result = {"row": row, "seed": seed, "valid": run.valid, "test": run.test(), "ranks_history_excluded": rank.tolist()}
    result |= {"test_history_excluded": runs.figures(rank), "epochs": len(run.trainer.train_loss_dict)}
    result["seconds"] = run.seconds["training"]
    write_json(path, result)
    print(row, seed, {k: round(v, 4) for k, v in result["test_history_excluded"].items()}, flush=True)
    return result


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", nargs="+", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--data_path", required=True, type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--config_files", nargs="*", default=[], type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--seeds", type=int, nargs="+", default=[2026, 2027, 2028, 2029, 2030])
    parser.add_argument("--pretrain_epochs", type=int, default=20)
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--set", type=json.loads, default={}, help="JSON of properties")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    cells = {row: [one(args, seed, row) for seed in args.seeds] for row in ROWS}
    summary: dict[str, Any] = {"p": {}}
    for row, results in cells.items():
        found = {k: [r["test_history_excluded"][k] for r in results] for k in ("hit@10", "ndcg@10")}
        found["valid ndcg@10"] = [r["valid"]["ndcg@10"] for r in results]
        summary[row] = {k: (float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else 0.0) for k, v in found.items()}
        print(f"{row:<12}" + "  ".join(f"{k} {m:.4f} ({s:.4f})" for k, (m, s) in summary[row].items()))
    users = {row: gains([r["ranks_history_excluded"] for r in results]) for row, results in cells.items()}
    for better, worse in (("plain", "none"), ("multi-mask", "none"), ("multi-mask", "plain")):
        p = summary["p"][f"{better} > {worse}"] = paired_test(users[better], users[worse])
        print(f"{better} > {worse}: difference {np.mean(users[better] - users[worse]):+.4f}, p {p:.4f}")
    if args.json:
        write_json(args.json, summary)


if __name__ == "__main__":
    main()
