"""The ``tune`` command: arguments of ``recbole_qbert.experiments.tune``."""

from __future__ import annotations

import argparse
from typing import Any

from recbole_qbert.cli.benchmark import RESULTS_CACHE, TIME_LIMIT
from recbole_qbert.experiments import tune, tuning


def add_commands(add: Any) -> None:
    """Declare the command; ``add(name, run, text, kind)`` makes a parser."""
    text = f"choose settings on validation out of at most {tuning.BUDGET}, the same number for every model"
    command = add("tune", _tune, text, kind="plain")
    text = "model of the suite (SASRec, QBERT4Rec, ...), tuned with its settings there; or any registered model"
    command.add_argument("--model", required=True, metavar="NAME", help=text)
    command.add_argument("--suite", default="table2", help="suite of models and shared properties (default: table2)")
    command.add_argument("--dataset", required=True, help="name of the data set")
    command.add_argument("--data_path", required=True, help="folder that holds the data set's folder")
    command.add_argument("--output", default="results", help="folder of all results, as of benchmark (default: results)")
    command.add_argument("--results_cache", "--archive", metavar="FOLDER", help=f"{RESULTS_CACHE} (old name: --archive)")
    text = "lines 'property: [values]' (default: properties/tuning/<model>.yaml)"
    command.add_argument("--space", metavar="FILE", help=text)
    command.add_argument("--trials", type=int, help="this many points of the space, drawn at random (default: all)")
    command.add_argument("--files", nargs="+", default=[], metavar="FILE", help="property files in place of the model's")
    command.add_argument("--jobs", type=int, default=1, help="trials at a time (default: 1)")
    command.add_argument("--threads", type=int, help="of each trial (default: the cores divided by --jobs)")
    command.add_argument("--time_limit", "--budget", metavar="TIME", help=f"{TIME_LIMIT} (old name: --budget)")
    command.add_argument("--retry", action="store_true", help="run again what failed before")


def _tune(args: argparse.Namespace) -> dict[str, Any]:
    options = (
        "output", "suite", "results_cache", "space", "files", "jobs", "threads", "time_limit", "retry", "properties"
    )  # fmt: skip
    chosen = {name: getattr(args, name) for name in options}
    return tune(args.model, args.dataset, args.data_path, max_trials=args.trials, **chosen)
