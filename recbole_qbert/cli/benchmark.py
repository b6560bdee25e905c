"""The ``benchmark`` command: suites of trainings, run, compared and reported."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recbole_qbert.cli.common import ARCHIVE, Figures, refuse_none_at_a_time, typed
from recbole_qbert.experiments.suites import result_archive, runner, suite_kinds, suite_spec, trials
from recbole_qbert.utils.console import say
from recbole_qbert.utils.spelling import did_you_mean

TYPED = ("suite", "dataset", "sources", "data_path", "archive", "tuned_on")  # what a table in an archive depends on


def add_commands(add: Any) -> None:
    """Declare the commands of this room; ``add(name, run, text, kind)`` makes a parser."""
    text = "tables and figures of the paper: models side by side, same split, same care, several seeds"
    command = add("benchmark", benchmark, text, kind="plain")
    text = f"{', '.join(suite_spec.names())}, or a suite file (.yaml) of your own"
    command.add_argument("--suite", nargs="+", required=True, metavar="NAME", help=text)
    command.add_argument("--dataset", required=True, help="name of the data set")
    command.add_argument("--data_path", required=True, help="folder that holds the data set's folder")
    text = "folder for everything written; results that are there are not run again (default: results)"
    command.add_argument("--output", default="results", help=text)
    command.add_argument("--seeds", nargs="+", type=int, default=[], help="in place of the suite's")
    command.add_argument(
        "--rows", nargs="+", default=[], metavar="ROW", help="run only these; others are shown if they have results"
    )
    command.add_argument("--archive", metavar="FOLDER", help=ARCHIVE)
    text = "use what tune chose on this data set (default: on the one of --dataset)"
    command.add_argument("--tuned_on", metavar="NAME", help=text)
    text = "line that paired tests compare all others with, in place of the suite's ('default + prior')"
    command.add_argument("--against", metavar="LINE", help=text)
    text = "pretrain on these data sets, with one vocabulary for them and the data set (table4)"
    command.add_argument("--sources", nargs="+", default=[], metavar="NAME", help=text)
    command.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    command.add_argument(
        "--threads", type=int, help="of each training, and of table6 (default: the cores divided by --jobs)"
    )
    command.add_argument("--budget", metavar="TIME", help="start no further training after 2h, 30m, 1h30m ...")
    command.add_argument("--retry", action="store_true", help="try again what failed before")
    command.add_argument("--report", action="store_true", help="write a report with plots, too")


def benchmark(args: argparse.Namespace) -> Figures:
    """Run what has no result yet, then write and print the tables; exit code 1 where a cell failed, 130 on Ctrl-C."""
    if args.report:
        from recbole_qbert.experiments.report import plots

        plots.require_matplotlib()  # not after hours of training
    budget = runner.duration(args.budget) if args.budget else None
    refuse_none_at_a_time(args)
    suites = [suite_spec.load(name) for name in args.suite]
    _refuse_unknown(args.rows, [row.name for suite in suites for row in suite.rows], "row")
    if args.against:
        for suite in suites:
            _refuse_unknown([args.against], list(suite_spec.lines(suite.rows)), "line")
        suites = [replace(suite, against=args.against) for suite in suites]
    kept = Path(args.archive) if args.archive else None
    plans = _plans(args, suites, kept)
    try:
        outcome = runner.run(
            [cell for plan in plans for cell in plan.cells if cell.row.name in plan.rows],
            jobs=args.jobs, threads=args.threads, retry=args.retry, budget=budget,
        )  # fmt: skip
    except runner.Interrupted as signal:
        say(f"stopped by {signal}; the same command goes on with what is not finished (results: {args.output})")
        return {"exit_code": 130}
    finally:
        if kept:
            result_archive.store(kept, Path(args.output), [cell for plan in plans for cell in plan.shown])
    if args.threads:
        torch.set_num_threads(args.threads)  # for what is measured here: table6
    figures: Figures = {"suites": {}, "left": len(outcome.left), "exit_code": int(bool(outcome.failed))}
    for name, plan in zip(args.suite, plans, strict=True):
        say(f"\n{suite_kinds.make(plan)}")
        say(f"written to {plan.folder}")
        figures["suites"][plan.suite.name] = str(plan.folder)
        if kept and not (args.against or args.seeds):  # the suite's own question only
            result_archive.store_table(kept, plan, typed(argparse.Namespace(**vars(args) | {"suite": name}), TYPED))
        if args.report:
            from recbole_qbert.experiments import report

            say(f"report: {report.write(plan.folder, plan.data_path)}")
    figures["failed"] = {str(folder): reason for folder, reason in outcome.failed.items()}
    return figures


def _plans(args: argparse.Namespace, suites: list[suite_spec.Suite], kept: Path | None) -> list[trials.RunPlan]:
    """Of all suites, with what the archive has of them."""
    place = (args.dataset, Path(args.data_path), Path(args.output))
    chosen: Figures = {"seeds": args.seeds, "rows": args.rows, "sources": args.sources, "tuned_on": args.tuned_on}
    if kept:
        result_archive.refuse(kept, Path(args.output), [suite.kind for suite in suites])
        if taken := result_archive.restore(kept, Path(args.output), args.dataset):
            say(f"{taken} finished cells taken from {kept}")
    plans = [trials.plan_runs(suite, *place, args.properties, **chosen) for suite in suites]
    return [replace(plan, earlier=result_archive.earlier(kept, plan)) for plan in plans] if kept else plans


def _refuse_unknown(names: list[str], known: list[str], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
