"""The ``benchmark`` command: arguments of ``recbole_qbert.experiments.benchmark``."""

from __future__ import annotations

import argparse
from typing import Any

from recbole_qbert.experiments import benchmark
from recbole_qbert.experiments.suites import suite_spec

RESULTS_CACHE = "folder, small enough for a repository, that finished trials are read from and added to, and tables"
TIME_LIMIT = "start no further training after 2h, 30m, 1h30m ...; 0s: none"


def add_commands(add: Any) -> None:
    """Declare the command; ``add(name, run, text, kind)`` makes a parser."""
    text = "tables and figures of the paper: models side by side, one evaluation protocol, several seeds"
    command = add("benchmark", _benchmark, text, kind="plain")
    text = f"{', '.join(suite_spec.names())}, or a suite file (.yaml) of your own"
    command.add_argument("--suite", nargs="+", required=True, metavar="NAME", help=text)
    command.add_argument("--dataset", required=True, help="name of the data set")
    command.add_argument("--data_path", required=True, help="folder that holds the data set's folder")
    text = "folder for everything written; finished trials there are not run again (default: results)"
    command.add_argument("--output", default="results", help=text)
    command.add_argument("--seeds", nargs="+", type=int, default=[], help="in place of the suite's")
    text = "run only these; others are shown if they have results (old name: --rows)"
    command.add_argument("--models", "--rows", nargs="+", default=[], metavar="MODEL", help=text)
    command.add_argument("--results_cache", "--archive", metavar="FOLDER", help=f"{RESULTS_CACHE} (old name: --archive)")
    text = "use what tune chose on this data set (default: on the one of --dataset; old name: --tuned_on)"
    command.add_argument("--settings_from", "--tuned_on", metavar="NAME", help=text)
    text = "table row that paired tests compare all others with, in place of the suite's (old name: --against)"
    command.add_argument("--reference", "--against", metavar="ROW", help=text)
    text = "pretrain on these data sets, with one vocabulary for them and the data set (table4)"
    command.add_argument("--sources", nargs="+", default=[], metavar="NAME", help=text)
    command.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    text = "of each training, and of table6 (default: the cores divided by --jobs)"
    command.add_argument("--threads", type=int, help=text)
    command.add_argument("--time_limit", "--budget", metavar="TIME", help=f"{TIME_LIMIT} (old name: --budget)")
    command.add_argument("--retry", action="store_true", help="run again what failed before")
    command.add_argument("--report", action="store_true", help="write a report with plots, too")


def _benchmark(args: argparse.Namespace) -> dict[str, Any]:
    options = (
        "output", "seeds", "models", "results_cache", "settings_from", "reference", "sources", "jobs", "threads",
        "time_limit", "retry", "report", "properties",
    )  # fmt: skip
    return benchmark(args.suite, args.dataset, args.data_path, **{name: getattr(args, name) for name in options})
