"""The command line: ``python run_recbole_qbert.py [command] [options] [--property=value ...]``.

Any property of ``properties/model/QBERT4Rec.yaml`` or of RecBole can follow as ``--key=value``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_qbert.artifacts import write_json

Figures = dict[str, Any]
MODEL = "QBERT4Rec"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 when an input was refused (the message is on stderr).
    """
    parser = build_parser()
    given = list(sys.argv[1:] if argv is None else argv)
    args, rest = parser.parse_known_args(given or ["demo"])
    log_to_console()
    limit_threads()
    try:
        args.properties = parse_properties(rest)
        figures = args.run(args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        write_json(Path(args.json), figures)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="command")

    def add(
        name: str, run: Callable[[argparse.Namespace], Figures], text: str, data: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", metavar="FILE", help="write the printed figures there")
        command.add_argument("--output", default="runs", help="folder for everything written (default: runs)")
        if data:
            command.add_argument("--dataset", required=True, help="name of the data set")
            command.add_argument("--data_path", required=True, help="folder that holds the data set's folder")
            command.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="property files")
        return command

    text = "make synthetic raw product data and run everything on it, next to two baselines"
    demo_command = add("demo", demo, text, data=False)
    prepare_command = add("prepare", prepare, "raw Amazon-2018 files to RecBole atomic files", data=False)
    for option, text in (("reviews", "reviews, JSON lines, .gz or plain"), ("metadata", "product metadata, likewise")):
        prepare_command.add_argument(f"--{option}", required=True, metavar="FILE", help=text)
    prepare_command.add_argument("--dataset", required=True, help="name of the data set to write")
    prepare_command.add_argument("--data_path", required=True, help="folder to write the data set's folder into")
    prepare_command.add_argument("--min_user", type=int, default=5, help="least interactions of a user (default: 5)")
    prepare_command.add_argument("--min_item", type=int, default=5, help="least interactions of an item (default: 5)")
    add("features", features, "text and image features by the built-in encoders, where the data bring none")
    add("inject", inject, "stage 1: fuse the modalities of every item into one vector")
    add("quantize", quantize, "stage 2: semantic IDs, a .sid file (runs stage 1 first where it is needed)")
    add("pretrain", pretrain, "stage 3, first half: multi-mask pretraining")
    finetune_command = add("finetune", finetune, "stage 3, second half: fine-tuning and evaluation")
    train_command = add("train", train, "all stages in order, and a table of metrics")
    for command, models in ((demo_command, ["Pop", "SASRec"]), (finetune_command, []), (train_command, [])):
        text = f"RecBole models to train beside it (default: {' '.join(models) or 'none'})"
        command.add_argument("--baselines", nargs="*", default=models, metavar="MODEL", help=text)
    return parser


def parse_properties(rest: Sequence[str]) -> dict[str, Any]:
    """``--key=value`` arguments as a mapping; values are read as YAML.

    Raises:
        ValueError: an argument of another form.
    """
    found = {}
    for argument in rest:
        key, equals, value = argument.partition("=")
        if not key.startswith("--") or not equals or len(key) < 3:
            raise ValueError(f"argument {argument!r} is neither an option nor --property=value")
        found[key[2:]] = yaml.safe_load(value)
    return found


# ---------------------------------------------------------------------------------------------------------- commands
def demo(args: argparse.Namespace) -> Figures:
    """Synthetic raw data, then ``train`` on its target domain."""
    from dataset_prep.demo import TARGET, prepare_demo
    from recbole_qbert.paths import properties

    say("Demo: synthetic products and behaviour (made up, not real users), through the same code as real data.")
    data = Path(args.output) / "demo_data"
    started = time.perf_counter()
    prepare_demo(data)
    seconds = time.perf_counter() - started
    say(f"raw reviews, metadata and product pictures -> atomic files: {data} ({seconds:.0f} s)")
    args.dataset, args.data_path = TARGET, str(data)
    args.config_files = [str(properties(f"dataset/{TARGET}.yaml"))]
    figures = train(args)
    figures["seconds"] = {"demo data": seconds, **figures["seconds"]}
    return figures


def prepare(args: argparse.Namespace) -> Figures:
    """Raw Amazon files to atomic files."""
    from dataclasses import asdict

    from dataset_prep.amazon import convert

    refuse_properties(args)
    report = convert(
        Path(args.reviews),
        Path(args.metadata),
        args.dataset,
        Path(args.data_path),
        min_user_interactions=args.min_user,
        min_item_interactions=args.min_item,
    )
    figures = asdict(report)
    print(yaml.safe_dump(_plain(figures), sort_keys=False, allow_unicode=True))
    return _plain(figures)


def features(args: argparse.Namespace) -> Figures:
    """Features alone."""
    from recbole_qbert import pipeline

    catalogue, settings, output, bars, rebuild = stages_of(args)
    folder = pipeline.prepare_features(catalogue, settings, output, rebuild, bars)
    loaded = pipeline.load_features(catalogue, settings, folder)
    figures = {"dataset": args.dataset, "features": pipeline.describe(loaded, folder, args.dataset)}
    return show_stages(figures)


def inject(args: argparse.Namespace) -> Figures:
    """Stage 1 alone."""
    from recbole_qbert import pipeline

    catalogue, settings, output, bars, rebuild = stages_of(args)
    folder = pipeline.prepare_features(catalogue, settings, output, rebuild, bars)
    loaded = pipeline.load_features(catalogue, settings, folder)
    report = pipeline.inject(catalogue, loaded, settings, output, rebuild, bars)
    figures = {"dataset": args.dataset, "features": pipeline.describe(loaded, folder, args.dataset), "injection": report}
    return show_stages(figures)


def quantize(args: argparse.Namespace) -> Figures:
    """Stages 1 and 2 alone."""
    from recbole_qbert import pipeline

    catalogue, settings, output, bars, rebuild = stages_of(args)
    _, figures = pipeline.build(catalogue, settings, output, rebuild=rebuild, progress=bars.show)
    say(f"semantic IDs: {output / (args.dataset + '.sid')}")
    return show_stages({"dataset": args.dataset, **figures})


def pretrain(args: argparse.Namespace) -> Figures:
    """Multi-mask pretraining alone."""
    figures: Figures = {"dataset": args.dataset, "seconds": {}}
    run = train_stage(args, "pretrain", figures)
    figures |= {"seed": run.config["seed"], "valid": run.valid}
    show_stages(figures)
    print_table([("validation", run.valid)])
    say(f"checkpoint: {figures['checkpoints']['pretrain']}")
    return figures


def finetune(args: argparse.Namespace) -> Figures:
    """Fine-tuning alone, from ``--pretrained=FILE`` or from nothing."""
    figures: Figures = {"dataset": args.dataset, "seconds": {}}
    return finish(args, train_stage(args, "finetune", figures), figures)


def train(args: argparse.Namespace) -> Figures:
    """All stages."""
    figures: Figures = {"dataset": args.dataset, "seconds": {}}
    if configuration(args)["pretrain_epochs"] > 0 and not args.properties.get("pretrained"):
        train_stage(args, "pretrain", figures)
        args.properties["pretrained"] = figures["checkpoints"]["pretrain"]
        args.properties.pop("rebuild", None)  # done by the stage before
    return finish(args, train_stage(args, "finetune", figures), figures)


# ------------------------------------------------------------------------------------------------------------- parts
def folder_of(args: argparse.Namespace) -> Path:
    """Where a data set's output lies."""
    return (Path(args.output) / args.dataset).resolve()


def configuration(args: argparse.Namespace, **settings: Any) -> Any:
    """RecBole's configuration of our model for a command."""
    from recbole_qbert import runs

    folder = folder_of(args)
    base = {"semantic_id_dir": str(folder), "show_progress": False, "checkpoint_dir": str(folder / "checkpoints")}
    return runs.configure(MODEL, args.dataset, args.data_path, base | args.properties | settings, args.config_files)


def stages_of(args: argparse.Namespace) -> tuple[Any, Any, Path, Any, bool]:
    """Catalogue, settings, output folder, progress bars and ``rebuild`` for the commands of stages 1 and 2."""
    from recbole_qbert import compat, pipeline, runs

    config = configuration(args)
    with runs.inside(folder_of(args)):
        catalogue = runs.catalogue_of(config)
    settings = pipeline.stage_settings(compat.ConfigValues(config))
    return catalogue, settings, folder_of(args), pipeline.Progress(show_bars()), bool(config["rebuild"])


def train_stage(args: argparse.Namespace, stage: str, figures: Figures) -> Any:
    """Pretrain or fine-tune once; adds seconds, identifier figures and the checkpoint's path to ``figures``."""
    from recbole_qbert import compat, pipeline, runs

    config = configuration(args, train_stage=stage)
    if stage == "pretrain":
        config = configuration(args, **runs.pretraining(config))
    folder = folder_of(args)
    if not config["semantic_id_file"] and not (Path(config["data_path"]) / f"{args.dataset}.sid").exists():
        # Here rather than inside the model, for the progress bars and the seconds of each stage.
        with runs.inside(folder):
            catalogue = runs.catalogue_of(config)
        _, built = pipeline.build(
            catalogue,
            pipeline.stage_settings(compat.ConfigValues(config)),
            folder,
            rebuild=bool(config["rebuild"]),
            progress=show_bars(),
        )
        for name, seconds in built["seconds"].items():
            figures["seconds"][name] = figures["seconds"].get(name, 0.0) + seconds
        figures |= {name: value for name, value in built.items() if name != "seconds"}
        config["rebuild"] = False
    with runs.inside(folder):
        run = runs.train(config, {"pretrain": "stage 3 pretrain", "finetune": "stage 3 fine-tune"}[stage])
    figures.setdefault("semantic_ids", run.model.identifier_figures["semantic_ids"])
    figures["seconds"][stage] = run.seconds["training"]
    kept = folder / f"{stage}.pth"
    os.replace(run.trainer.saved_model_file, kept)
    run.trainer.saved_model_file = str(kept)
    figures.setdefault("checkpoints", {})[stage] = str(kept)
    return run


def finish(args: argparse.Namespace, run: Any, figures: Figures) -> Figures:
    """Test a fine-tuned run, train the baselines asked for, print the table and complete the figures."""
    from recbole_qbert import runs

    figures |= {"seed": run.config["seed"], "valid": run.valid, "test": run.test()}
    figures["parameters"] = sum(p.numel() for p in run.model.parameters())
    if run.model.network.repeat_penalty is not None:
        figures["repeat_penalty"] = run.model.network.penalty.item()
    lines = [(MODEL, figures["test"])]
    if run.model.prior is None:
        figures["prior"] = runs.add_prior(run)
        figures["test_with_prior"] = run.test()
        lines.append((f"{MODEL} + co-occurrence prior", figures["test_with_prior"]))
    for name in args.baselines:
        lines += train_baseline(args, run.config, name, figures)
    summary = summarise(figures["semantic_ids"]["code_sets"])
    figures["semantic_ids"] = summary | figures["semantic_ids"]
    show_stages(figures)
    print_table(lines)
    say(f"checkpoint: {figures['checkpoints']['finetune']}")
    return figures


def train_baseline(
    args: argparse.Namespace, ours: Any, name: str, figures: Figures
) -> list[tuple[str, Mapping[str, float]]]:
    """One RecBole model on the same split; a line as RecBole evaluates and one with the history's items left out."""
    from recbole_qbert import runs
    from recbole_qbert.paths import properties

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
    files = [str(properties("baseline/common.yaml"))]
    with contextlib.suppress(FileNotFoundError):  # RecBole's own defaults serve
        files.append(str(properties(f"baseline/{name}.yaml")))
    if "epochs" in args.properties:  # a limit that a user sets is meant for every model of the table
        settings["epochs"] = args.properties["epochs"]
    config = runs.configure(name, args.dataset, args.data_path, settings | {"show_progress": False}, files)
    with runs.inside(folder_of(args)):
        run = runs.train(config, name)
    test, excluded = run.test(), runs.figures(runs.ranks(run, run.test_data, exclude_history=True))
    figures["seconds"][name] = run.seconds["training"]
    figures.setdefault("baselines", {})[name] = {"valid": run.valid, "test": test, "test_history_excluded": excluded}
    return [(name, test), (f"{name}, history left out", excluded)]


def summarise(code_sets: Sequence[Mapping[str, Any]]) -> Figures:
    """Health of whole IDs: the per-level figures of all code sets in one list each."""
    joined = {key: [x for s in code_sets for x in s[key]] for key in ("levels", "usage_per_level", "perplexity_per_level")}
    # Every code set is unique by itself, so whole IDs are; the weakest set is what can be said without them.
    return {
        "items": max(s["items"] for s in code_sets),
        "unique": max(s["unique"] for s in code_sets),
        "unique_before_reallocation": [s["unique_before"] for s in code_sets],
        **joined,
    }


# -------------------------------------------------------------------------------------------------------- what it says
def say(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, flush=True)


def show_stages(figures: Figures) -> Figures:
    """Print what the stages did; returns the figures."""
    for name, known in figures.get("features", {}).get("modalities", {}).items():
        shape = "x".join(map(str, known["shape"]))
        say(f"features   {name:<9} {shape:<14} {known['coverage']:.1%} of items")
    if "injection" in figures:
        depth = figures["injection"]["depth"]
        say("stage 1    depth     " + "  ".join(f"{number}: {share:.1%}" for number, share in enumerate(depth, 1)))
    for known in figures.get("semantic_ids", {}).get("code_sets", []):
        usage = " ".join(
            f"{level}:{share:.0%}" for level, share in zip(known["levels"], known["usage_per_level"], strict=True)
        )
        perplexity = " ".join(f"{value:.0f}" for value in known["perplexity_per_level"])
        say(
            f"stage 2    {known['code_set']:<9} {known['unique']}/{known['items']} unique "
            f"(before reallocation {known['unique_before']}), codes used {usage}, perplexity {perplexity}"
        )
    if figures.get("seconds"):
        say("seconds    " + "  ".join(f"{name} {value:.1f}" for name, value in figures["seconds"].items()))
    return figures


def print_table(lines: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """Metrics of several models, one line each."""
    names = list(lines[0][1])
    width = max(len(title) for title, _ in lines)
    say(" " * width + "".join(f"{name:>9}" for name in names))
    for title, metrics in lines:
        say(f"{title:<{width}}" + "".join(f"{metrics[name]:9.4f}" for name in names))


def refuse_properties(args: argparse.Namespace) -> None:
    """Refuse ``--key=value`` where no property is read.

    Raises:
        ValueError: names them.
    """
    if args.properties:
        raise ValueError(f"{args.command} takes no properties; found {', '.join(args.properties)}")


def show_bars() -> bool:
    """Progress bars belong on a terminal, not into a log."""
    return sys.stderr.isatty()


def log_to_console() -> None:
    """Our own messages and everyone's warnings; RecBole's own lines go to its log file only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("recbole_qbert"))
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # RecBole 1.2.1 on today's pandas and torch warns of what will change in versions that setup.py excludes.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")


def limit_threads() -> None:
    """One thread a core: more make small networks slower."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), os.cpu_count() or 1))


def _plain(value: Any) -> Any:
    """Figures with paths and tuples turned into what JSON and YAML know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
