"""Training speed beside RecBole's models: seconds an epoch, seconds to a stated validation NDCG@10, peak memory.

    python benchmarks/training.py --dataset Amazon_Instruments --data_path ../shared/data --epochs 2 --json training.json

Same width, layers, maximum length, data and cores for all; every model in a process of its own, in turns. One view of
QBERT4Rec does what SASRec (causal) or BERT4Rec (masked) does; `both` does both in every batch. An epoch is one pass over
all users: RecBole's models see every prefix of a history as a row of its own, QBERT4Rec all of them in one row. With
`--target X` training goes on until validation NDCG@10 (history left out) reaches X, `--epochs` at most.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

OURS = {"QBERT4Rec both": ["causal", "masked"], "QBERT4Rec causal": ["causal"], "QBERT4Rec masked": ["masked"]}
THEIRS = ("SASRec", "BERT4Rec", "GRU4Rec")
LOSSES = {"train_neg_sample_args": None, "loss_type": "CE"}


class ReachedError(Exception):
    """The target was reached."""


def measure_here(args: argparse.Namespace) -> dict[str, Any]:
    """Train one model in this process."""
    import torch

    import recbole_qbert  # noqa: F401  registers QBERT4Rec
    from recbole_qbert import runs
    from recbole_qbert.paths import properties

    torch.set_num_threads(args.threads)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    settings: dict[str, Any] = {
        "hidden_size": args.width, "n_layers": args.layers, "n_heads": 2, "inner_size": 256, "seed": 2026,
        "MAX_ITEM_LIST_LENGTH": args.max_length, "epochs": args.epochs, "stopping_step": args.epochs + 1,
        "eval_batch_size": 512,
        "metrics": ["Hit", "NDCG"], "topk": [1, 5, 10], "valid_metric": "NDCG@10", "metric_decimal_place": 6,
        "show_progress": False, "state": "ERROR", "checkpoint_dir": str(folder),
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    }  # fmt: skip
    ours = args.model in OURS
    if ours:
        settings |= {"views": OURS[args.model], "semantic_id_dir": str(args.folder / "ids")}
        files: list[str] = []
    else:
        settings |= LOSSES | {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
        settings |= {"num_layers": args.layers, "embedding_size": args.width} if args.model == "GRU4Rec" else {}
        files = [str(properties("baseline/common.yaml"))]
    times: list[float] = []
    reached: dict[str, float] = {}

    def prepare(model: Any) -> None:
        if not ours:  # the same right: the items of the history are put last for all
            plain = model.full_sort_predict

            def excluded(interaction: Any) -> Any:
                scores = plain(interaction).view(len(interaction), -1)[:, : model.n_items].clone()
                return scores.scatter(1, interaction[model.ITEM_SEQ], -torch.inf)

            model.full_sort_predict = excluded

    with runs.inside(folder):
        config = runs.configure("QBERT4Rec" if ours else args.model, args.dataset, args.data_path, settings, files)
        from recbole.utils import get_trainer

        trainer_class = get_trainer(config["MODEL_TYPE"], config["model"])
        train_epoch, valid_epoch = trainer_class._train_epoch, trainer_class._valid_epoch
        clock = {"start": 0.0}

        def timed(self: Any, *given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            clock["start"] = clock["start"] or started
            result = train_epoch(self, *given, **named)
            times.append(time.perf_counter() - started)
            return result

        def watched(self: Any, *given: Any, **named: Any) -> Any:
            score, result = valid_epoch(self, *given, **named)
            if args.target and score >= args.target:
                reached.update(seconds=time.perf_counter() - clock["start"], ndcg=float(score))
                raise ReachedError
            return score, result

        trainer_class._train_epoch, trainer_class._valid_epoch = timed, watched
        valid = None
        try:
            run = runs.train(config, prepare=prepare)
            valid = run.valid["ndcg@10"]
        except ReachedError:
            pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {
        "model": args.model, "epochs": len(times), "seconds_an_epoch": sorted(times)[len(times) // 2],
        "seconds_to_target": reached.get("seconds"), "valid_ndcg@10": reached.get("ndcg", valid), "peak_rss_mb": peak,
    }  # fmt: skip


def main() -> None:
    """Measure every model, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", required=True, type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--models", nargs="+", default=[*OURS, *THEIRS], choices=[*OURS, *THEIRS])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--target", type=float, default=0.0, help="stop at this validation NDCG@10")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--max_length", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/training"), help="for checkpoints and semantic IDs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", choices=[*OURS, *THEIRS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.model:
        print(json.dumps(measure_here(args)))
        return
    from benchmarks import facts

    rows = []
    for model in args.models:
        command = [sys.executable, __file__, *sys.argv[1:], "--model", model]
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{model} failed:\n{done.stderr[-3000:]}")
        rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(
            f"{model:<18}" + "  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items() if isinstance(v, (int, float))),
            flush=True,
        )
    ratios = {}
    for key in ("seconds_an_epoch", "seconds_to_target", "peak_rss_mb"):
        for ours in rows:
            for other in rows:
                if ours["model"] in OURS and other["model"] in THEIRS and ours[key] and other[key]:
                    ratios[f"{key}: {other['model']}/{ours['model']}"] = other[key] / ours[key]
    print("\n".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if args.json:
        settings = {key: str(value) for key, value in vars(args).items() if key != "json"}
        facts.write(args.json, settings, rows, ratios)


if __name__ == "__main__":
    main()
