"""The ``tune`` command: the best of a few declared settings, for every model out of as many."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recbole_qbert.cli.common import ARCHIVE, Figures, refuse_none_at_a_time, typed
from recbole_qbert.experiments import tuning
from recbole_qbert.experiments.suites import result_archive, runner, suite_spec
from recbole_qbert.utils.console import say
from recbole_qbert.utils.formatting import format_properties

# What the header of the file of settings tells to type: what a result depends on.
TYPED = ("model", "suite", "dataset", "data_path", "output", "space", "trials", "files")


def add_commands(add: Any) -> None:
    """Declare the command; ``add(name, run, text, kind)`` makes a parser."""
    text = f"choose settings on validation out of at most {tuning.BUDGET}, the same number for every model"
    command = add("tune", tune, text, kind="plain")
    text = "row of the suite (SASRec, default, ...), which is then tuned as it stands there; or any model"
    command.add_argument("--model", required=True, metavar="NAME", help=text)
    command.add_argument("--suite", default="table2", help="where rows and shared properties come from (default: table2)")
    command.add_argument("--dataset", required=True, help="name of the data set")
    command.add_argument("--data_path", required=True, help="folder that holds the data set's folder")
    command.add_argument("--output", default="results", help="folder of all results, as of benchmark (default: results)")
    command.add_argument("--archive", metavar="FOLDER", help=ARCHIVE)
    text = "lines 'property: [values]' (default: properties/tuning/<model>.yaml)"
    command.add_argument("--space", metavar="FILE", help=text)
    command.add_argument("--trials", type=int, help="only so many points of the space, drawn at random (default: all)")
    command.add_argument("--files", nargs="+", default=[], metavar="FILE", help="property files in place of the row's")
    command.add_argument("--jobs", type=int, default=1, help="trials at a time (default: 1)")
    command.add_argument("--threads", type=int, help="of each trial (default: the cores divided by --jobs)")
    command.add_argument("--budget", metavar="TIME", help="start no further trial after 2h, 30m, 1h30m ...")
    command.add_argument("--retry", action="store_true", help="try again what failed before")


def tune(args: argparse.Namespace) -> Figures:
    """Run the trials that have no result yet, print all, write the best; exit code 1 where one failed, 130 on Ctrl-C.

    Raises:
        ValueError: the space, a name or a property is refused, or no trial came to a result.
    """
    refuse_none_at_a_time(args)
    budget = runner.duration(args.budget) if args.budget else None
    suite, output = suite_spec.load(args.suite), Path(args.output)
    row = tuning.find_model(args.model, suite, args.files)
    space = tuning.read_space(Path(args.space) if args.space else tuning.space_file(row.model))
    grid = tuning.points(space, args.trials)
    kept = Path(args.archive) if args.archive else None
    if kept:
        result_archive.refuse(kept, output, [])
        result_archive.restore(kept, output, args.dataset)
    trials = tuning.plan(row, suite, grid, args.dataset, Path(args.data_path), output, args.properties)
    cells = [trial.cell for trial in trials]
    try:
        outcome = runner.run(cells, jobs=args.jobs, threads=args.threads, retry=args.retry, budget=budget)
    except runner.Interrupted as signal:
        say(f"stopped by {signal}; the same command goes on with the trials that are not finished (results: {output})")
        return {"exit_code": 130}
    finally:
        if kept:
            result_archive.store(kept, output, cells)
    chosen = tuning.best(trials)
    if chosen is None:
        reason = next(iter(outcome.failed.values()), f"the budget of {args.budget}, before it was started")
        raise ValueError(f"no trial came to a result; the first one ended with: {reason}")
    _print(trials, chosen)
    path = tuning.write(row.name, trials, output, args.dataset, f"python {typed(args, TYPED)}")
    say(f"written to {path}")
    if kept:
        result_archive.store(kept, output, [], [path])
    return {
        "model": row.model,
        "dataset": args.dataset,
        "file": str(path),
        "chosen": chosen.point,
        f"valid {tuning.METRIC}": chosen.score,
        "trials": len(trials),
        "left": len(outcome.left),
        "exit_code": int(bool(outcome.failed)),
    }


def _print(trials: list[tuning.TuningTrial], chosen: tuning.TuningTrial) -> None:
    """A line a trial, in the order of running."""
    titles = [format_properties(trial.point) for trial in trials]
    width = max(map(len, titles))
    say(f"{'':<{width}}  validation {tuning.METRIC}")
    for title, trial in zip(titles, trials, strict=True):
        score = trial.state if trial.score is None else f"{trial.score:.4f}"
        say(f"{title:<{width}}  {score}{'  <- chosen' if trial is chosen else ''}")
