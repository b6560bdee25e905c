"""Seconds and memory until a data set is split: plain RecBole, RecBole under this package, and this package.

    python benchmarks/loading.py --interactions 1000000 10000000 --json loading.json

Interactions are made up: users with 8 each, items by Zipf's law, rows in random order. *RecBole* is RecBole alone, with
the names that it needs of older numpy; *patched* is the same data set (one row a prefix of a history) with this package
imported, whose reader serves RecBole's models, too; *ours* is the data set of QBERT4Rec (one row a user). Every one has a
process of its own; times are of the process's CPU, memory is what the process needs beyond its imports.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks in benchmarks/ only

from benchmarks import facts
from benchmarks.memory import peak_kb

NAME, LENGTH = "Made", 8
WAYS = ("RecBole", "patched", "ours")
SETTINGS: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_neg_sample_args": None, "state": "ERROR",
    "MAX_ITEM_LIST_LENGTH": 20,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure every size and way, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="for the files (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)  # one way, in this process
    args = parser.parse_args(arguments)
    if args.alone:
        print(json.dumps(measure(args.alone, args.folder)))
        return
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for interactions in args.interactions:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write(Path(folder), interactions)
            for way in args.ways:
                command = [sys.executable, __file__, "--alone", way, "--folder", folder]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                row = {"interactions": interactions, "way": way, **json.loads(done.stdout.splitlines()[-1])}
                rows.append(row)
                first = next(one for one in rows if one["interactions"] == interactions)
                for figure in ("cpu_seconds", "peak_mb"):
                    ratios[f"{interactions} {figure}: {way} / {first['way']}"] = row[figure] / first[figure]
                print(f"{interactions:>10} {way:<8} {row['cpu_seconds']:7.1f} CPU s, {row['peak_mb']:6.0f} MB", flush=True)
    if args.json:
        facts.write(args.json, vars(args), rows, ratios)


def write(folder: Path, interactions: int) -> None:
    """Write ``interactions`` rows of made-up users and items in random order."""
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(-(-interactions // LENGTH)), LENGTH)[:interactions]
    items = random.zipf(1.2, interactions) % (interactions // 10)
    order = random.permutation(interactions)
    table = {
        "user_id:token": [f"A{user:08d}" for user in users[order]],
        "item_id:token": [f"B{item:08d}" for item in items[order]],
        "timestamp:float": 1.5e9 + order,
    }
    (folder / NAME).mkdir()
    pd.DataFrame(table).to_csv(folder / NAME / f"{NAME}.inter", sep="\t", index=False)


def measure(way: str, folder: Path) -> dict[str, float]:
    """Load and split one data set."""
    settings = {**SETTINGS, "data_path": str(folder), "checkpoint_dir": str(folder)}
    if way == "ours":
        experiment = importlib.import_module("recbole_qbert.recbole_integration.experiment")
        config = experiment.configure("QBERT4Rec", NAME, str(folder), {**settings, "semantic_ids": "none"})
    else:
        if way == "patched":
            importlib.import_module("recbole_qbert")
        types = {"bool": bool, "float": float, "int": int, "object": object, "long": int, "complex": complex}
        for name, value in {**types, "str": str, "unicode": str}.items():  # as numpy before 1.20
            setattr(np, name, value)
        config = importlib.import_module("recbole.config").Config(model="SASRec", dataset=NAME, config_dict=settings)
    create = importlib.import_module("recbole.data").create_dataset
    before, start = peak_kb(), time.process_time()
    create(config).build()
    return {"cpu_seconds": time.process_time() - start, "peak_mb": (peak_kb() - before) / 1024}


if __name__ == "__main__":
    main()
