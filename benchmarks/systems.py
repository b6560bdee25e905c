"""What an epoch and a ranked user cost in each system of Table 2, RecBole's, ours and the paper's baselines.

    python benchmarks/systems.py --dataset Amazon_Scientific --data_path ../shared/data --json systems.json
    python benchmarks/systems.py --dataset Amazon_Instruments --data_path ../shared/data --models QBERT4Rec TIGER --share 0.1

Names are those of the suite `table2`, with its settings. Every system has a process of its own, one after the other. Seconds
are of the process's CPU. The first epoch compiles and is not counted; an epoch is the mean of the next `--epochs`. A user is
one of the validation set, whose target is ranked among all items. With `--share`, systems of this package learn from that
share of the users, and the epoch is scaled up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks import facts
from benchmarks.memory import peak_kb

MODELS = (
    "QBERT4Rec", "SASRec (ours)", "SASRec", "GRU4Rec", "BERT4Rec", "VQRec", "MISSRec", "TIGER (reduced)",
    "MQL4GRec (reduced)", "P5CID (reduced)", "VIP5 (reduced)",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure every system, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the users that systems of this package learn from"
    )
    parser.add_argument("--max_length", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # one system, in this process
    args = parser.parse_args(arguments)
    if args.alone:
        print(json.dumps(measure(args.alone, args)))
        return
    rows: list[dict[str, Any]] = []
    for name in args.models:
        shared = ("dataset", "data_path", "epochs", "share", "max_length", "threads")
        options = [f"--{key}={getattr(args, key)}" for key in shared]
        done = subprocess.run([sys.executable, __file__, "--alone", name, *options], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{name}: failed", flush=True)
            continue
        rows.append({"system": name, **json.loads(done.stdout.splitlines()[-1])})
        row = rows[-1]
        print(
            f"{name:<20} {row['epoch_seconds']:8.1f} s an epoch, {row['ms_per_user']:7.2f} ms a user, "
            f"{row['parameters'] / 1e6:6.2f} M parameters, {row['peak_mb']} MB",
            flush=True,
        )
        if args.json:
            facts.write(args.json, vars(args), rows, ratios(rows))


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how many times as long each system takes as the first."""
    return {
        f"{figure}: {row['system']} / {rows[0]['system']}": row[figure] / rows[0][figure]
        for row in rows[1:]
        for figure in ("epoch_seconds", "ms_per_user")
    }


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and rank with one system."""
    import torch
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_logger, init_seed

    from recbole_qbert.config.property_files import property_file
    from recbole_qbert.experiments.suites import suite_spec
    from recbole_qbert.recbole_integration import experiment
    from recbole_qbert.recbole_integration.dataset import HistoryDataset

    torch.set_num_threads(args.threads)
    suite = suite_spec.load("table2")
    spec = next(one for one in suite.models if one.name == suite_spec.current_name(name))
    own = {"MAX_ITEM_LIST_LENGTH": args.max_length, "show_progress": False, "state": "ERROR", "seed": 2026}
    files = [str(property_file(file)) for file in spec.files]
    with tempfile.TemporaryDirectory() as folder, experiment.working_directory(Path(folder)):
        settings = {**suite.shared, **own, **spec.settings, "checkpoint_dir": folder}
        config = experiment.configure(spec.model, args.dataset, args.data_path, settings, files)
        init_seed(config["seed"], config["reproducibility"])
        init_logger(config)
        data = create_dataset(config)
        share = args.share if isinstance(data, HistoryDataset) else 1.0
        config["train_users"] = share
        train_data, valid_data, _ = data_preparation(config, data)
        model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer._train_epoch(train_data, 0)
        start = time.process_time()
        for epoch in range(args.epochs):
            trainer._train_epoch(train_data, 1 + epoch)
        epoch_seconds = (time.process_time() - start) / args.epochs / share
        start = time.process_time()
        trainer._valid_epoch(valid_data)
        ranking = time.process_time() - start
        return {
            "epoch_seconds": epoch_seconds,
            "ms_per_user": 1000 * ranking / len(valid_data._dataset),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "peak_mb": peak_kb() // 1024,
            "share": share,
        }


if __name__ == "__main__":
    main()
