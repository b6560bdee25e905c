"""Commands of the sequence model: pretraining, fine-tuning, all stages in order, the demo."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_qbert.cli import shared_vocabulary
from recbole_qbert.cli.common import Figures, configuration, folder_of
from recbole_qbert.config.property_files import property_file
from recbole_qbert.config.schema import MODEL
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.utils.console import print_table, say, show_stages

TITLES = {"pretrain": "stage 3 pretrain", "finetune": "stage 3 fine-tune"}


def add_commands(add: Any) -> None:
    """Declare the commands of this room; ``add(name, run, text, kind)`` makes a parser."""
    text = "make synthetic raw product data and run everything on it, next to two baselines"
    _baselines(add("demo", demo, text, kind="demo"), "Pop", "SASRec")
    text = "stage 3, first half: multi-mask pretraining, on one data set or on several with a vocabulary in common"
    command = add("pretrain", pretrain, text, kind="models")
    text = "data sets that are not trained on but take part in the vocabulary, for fine-tuning later"
    command.add_argument("--targets", nargs="*", default=[], metavar="NAME", help=text)
    command = add("finetune", finetune, "stage 3, second half: fine-tuning and evaluation")
    text = "folder that pretrain --datasets wrote: its semantic IDs and weights are used"
    command.add_argument("--vocabulary", metavar="DIR", help=text)
    _baselines(command)
    _baselines(add("train", train, "all stages in order, and a table of metrics"))


def _baselines(command: argparse.ArgumentParser, *models: str) -> None:
    text = f"RecBole models to train beside it (default: {' '.join(models) or 'none'})"
    command.add_argument("--baselines", nargs="*", default=list(models), metavar="MODEL", help=text)


def demo(args: argparse.Namespace) -> Figures:
    """Synthetic raw data, then ``train`` on its target domain."""
    from dataset_prep.demo.shops import TARGET, prepare_demo

    say("Demo: synthetic products and behaviour (made up, not real users), through the same code as real data.")
    data = Path(args.output) / "demo_data"
    started = time.perf_counter()
    prepare_demo(data)
    seconds = time.perf_counter() - started
    say(f"raw reviews, metadata and product pictures -> atomic files: {data} ({seconds:.0f} s)")
    args.dataset, args.data_path = TARGET, str(data)
    args.config_files = [str(property_file(f"dataset/{TARGET}.yaml"))]
    figures = train(args)
    figures["seconds"] = {"demo data": seconds, **figures["seconds"]}
    return figures


def pretrain(args: argparse.Namespace) -> Figures:
    """Multi-mask pretraining alone, of one data set or of several."""
    figures: Figures = {"seconds": {}}
    if args.datasets:
        shared_vocabulary.build(args, figures)
    figures["dataset"] = args.dataset
    run = train_stage(args, "pretrain", figures)
    figures |= {"seed": run.config["seed"], "valid": run.valid}
    show_stages(figures)
    print_table([("validation", run.valid)])
    say(f"checkpoint: {figures['checkpoints']['pretrain']}")
    return figures


def finetune(args: argparse.Namespace) -> Figures:
    """Fine-tuning alone, from ``--pretrained=FILE``, from ``--vocabulary DIR`` or from nothing."""
    if args.vocabulary:
        shared_vocabulary.use(args)
    figures: Figures = {"dataset": args.dataset, "seconds": {}}
    return finish(args, train_stage(args, "finetune", figures), figures)


def train(args: argparse.Namespace) -> Figures:
    """All stages."""
    figures: Figures = {"dataset": args.dataset, "seconds": {}}
    config = configuration(args)
    if config["pretrain_epochs"] > 0 and not config["pretrained"]:
        train_stage(args, "pretrain", figures)
        args.properties |= {"pretrained": figures["checkpoints"]["pretrain"], "rebuild": False}  # built by the stage before
    return finish(args, train_stage(args, "finetune", figures), figures)


def train_stage(args: argparse.Namespace, stage: str, figures: Figures) -> experiment.Run:
    """Pretrain or fine-tune once; adds seconds, identifier figures and the checkpoint's path to ``figures``."""
    folder = folder_of(args)
    args.properties.setdefault("checkpoint_file", str(folder / f"{stage}.pth"))
    config = configuration(args, train_stage=stage)
    if stage == "pretrain":
        config = configuration(args, **experiment.pretraining_settings(config))
    with experiment.working_directory(folder):
        run = experiment.train(config, TITLES[stage])
    for name, known in run.model.identifier_figures.items():
        figures.setdefault(name, known)
    for name, seconds in run.model.identifier_figures["seconds"].items():
        figures["seconds"][name] = max(seconds, figures["seconds"].get(name, 0.0))  # building, not finding it built
    figures["seconds"][stage] = run.seconds["training"]
    figures.setdefault("checkpoints", {})[stage] = args.properties.pop("checkpoint_file")
    return run


def finish(args: argparse.Namespace, run: experiment.Run, figures: Figures) -> Figures:
    """Test a fine-tuned run, train the baselines asked for, print the table and complete the figures."""
    figures |= {"seed": run.config["seed"], "valid": run.valid, "test": run.test()}
    figures["parameters"] = sum(p.numel() for p in run.model.parameters())
    if run.model.network.repeat_penalty is not None:
        figures["repeat_penalty"] = run.model.network.penalty.item()
    lines = [(MODEL, figures["test"])]
    if run.model.prior is None:
        figures["prior"] = experiment.add_prior(run)
        figures["test_with_prior"] = run.test()
        lines.append((f"{MODEL} + co-occurrence prior", figures["test_with_prior"]))
    for name in args.baselines:
        lines += train_baseline(args, run.config, name, figures)
    if figures["semantic_ids"]["code_sets"]:
        codes = run.model.network.codes[1:].cpu().numpy()
        figures["semantic_ids"] = summarise(figures["semantic_ids"]["code_sets"], codes) | figures["semantic_ids"]
    show_stages(figures)
    print_table(lines)
    say(f"checkpoint: {figures['checkpoints']['finetune']}")
    return figures


def train_baseline(
    args: argparse.Namespace, ours: Any, name: str, figures: Figures
) -> list[tuple[str, Mapping[str, float]]]:
    """One RecBole model on the same split; a line as RecBole evaluates and one with the history's items left out."""
    shared = (
        "MAX_ITEM_LIST_LENGTH",
        "eval_args",
        "metrics",
        "topk",
        "valid_metric",
        "stopping_step",
        "seed",
        "eval_batch_size",
    )
    settings = {key: ours[key] for key in shared} | {"checkpoint_dir": str(folder_of(args) / "checkpoints" / name)}
    files = [str(property_file("baseline/common.yaml"))]
    with contextlib.suppress(FileNotFoundError):  # RecBole's own defaults serve
        files.append(str(property_file(f"baseline/{name}.yaml")))
    if "epochs" in args.properties:  # a limit that a user sets is meant for every model of the table
        settings["epochs"] = args.properties["epochs"]
    config = experiment.configure(name, args.dataset, args.data_path, settings, files)
    with experiment.working_directory(folder_of(args)):
        run = experiment.train(config, name)
    test, excluded = (
        run.test(),
        experiment.metrics_from_ranks(experiment.target_ranks(run, run.test_data, exclude_history=True)),
    )
    figures["seconds"][name] = run.seconds["training"]
    figures.setdefault("baselines", {})[name] = {"valid": run.valid, "test": test, "test_history_excluded": excluded}
    return [(name, test), (f"{name}, history left out", excluded)]


def summarise(code_sets: Sequence[Mapping[str, Any]], codes: np.ndarray) -> Figures:
    """Health of whole IDs, ``codes`` ``[N, K]``: the per-level figures of all code sets in one list each."""
    joined = {key: [x for s in code_sets for x in s[key]] for key in ("levels", "usage_per_level", "perplexity_per_level")}
    return {
        "items": len(codes),
        "unique": len(np.unique(codes, axis=0)),
        "unique_before_reallocation": [s["unique_before"] for s in code_sets],
        **joined,
    }
