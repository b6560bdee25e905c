"""Commands of the sequence model: pretraining, fine-tuning, all stages in order, the demo."""

from __future__ import annotations

import argparse
from typing import Any

from recbole_qbert.cli.common import Figures, workflow_arguments
from recbole_qbert.experiments.report.training_page import metric_rows, write_training_page
from recbole_qbert.recbole_integration import workflows
from recbole_qbert.utils.console import print_table, say, show_stages
from recbole_qbert.utils.distributed import rank


def add_commands(add: Any) -> None:
    """Declare these commands; ``add(name, run, text, kind)`` makes a parser."""
    text = "make synthetic raw product data and run everything on it, with two baselines"
    _add_baselines(add("demo", demo, text, kind="demo"), "Pop", "SASRec")
    text = "stage 3, first half: multi-mask pretraining, on one data set or on several with a shared vocabulary"
    command = add("pretrain", pretrain, text, kind="models")
    text = "data sets that are not trained on but take part in the vocabulary, for fine-tuning later"
    command.add_argument("--targets", nargs="*", default=[], metavar="NAME", help=text)
    command = add("finetune", finetune, "stage 3, second half: fine-tuning and evaluation")
    text = "folder that pretrain --datasets wrote: its semantic IDs and weights are used"
    command.add_argument("--vocabulary", metavar="DIR", help=text)
    _add_baselines(command)
    _add_report(command)
    command = add("train", train, "all stages in order, and a table of metrics")
    _add_baselines(command)
    _add_report(command)


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument("--report", action="store_true", help="write one HTML page on the training, too")


def _add_baselines(command: argparse.ArgumentParser, *models: str) -> None:
    text = f"RecBole models to train for comparison (default: {' '.join(models) or 'none'})"
    command.add_argument("--baselines", nargs="*", default=list(models), metavar="MODEL", help=text)


def demo(args: argparse.Namespace) -> Figures:
    """Run ``workflows.demo``."""
    say("Demo: synthetic products and behavior (made up, not real users), through the same code as real data.")
    figures = _show(workflows.demo(args.output, args.properties, args.baselines))
    say(f"report: {write_training_page(figures, figures['data'])}")
    return figures


def pretrain(args: argparse.Namespace) -> Figures:
    """Run ``workflows.pretrain``."""
    arguments = workflow_arguments(args) | {"dataset": args.datasets or args.dataset, "targets": args.targets}
    figures = show_stages(workflows.pretrain(**arguments))
    if "vocabulary" in figures:
        say(f"vocabulary: {figures['vocabulary']}")
    print_table([("validation", figures["valid"])])
    say(f"checkpoint: {figures['checkpoints']['pretrain']}")
    return figures


def finetune(args: argparse.Namespace) -> Figures:
    """Run ``workflows.finetune``."""
    arguments = workflow_arguments(args) | {"vocabulary": args.vocabulary, "baselines": args.baselines}
    return _report(args, _show(workflows.finetune(**arguments)))


def train(args: argparse.Namespace) -> Figures:
    """Run ``workflows.train``."""
    return _report(args, _show(workflows.train(**workflow_arguments(args), baselines=args.baselines)))


def _report(args: argparse.Namespace, figures: Figures) -> Figures:
    """Write the page if it is wanted; its path is the last line."""
    if args.report and rank() == 0:
        try:
            say(f"report: {write_training_page(figures, args.data_path)}")
        except ValueError as error:  # a model without semantic IDs; its figures are not lost
            say(f"no report: {error}")
    return figures


def _show(figures: Figures) -> Figures:
    """Print stages, metrics and the checkpoint; return the figures."""
    show_stages(figures)
    print_table(metric_rows(figures))
    say(f"checkpoint: {figures['checkpoints']['finetune']}")
    return figures
