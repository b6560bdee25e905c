"""The command line: ``python run_recbole_qbert.py [command] [options] [--property=value ...]``.

Any property of ``properties/model/QBERT4Rec.yaml`` or of RecBole can follow as ``--key=value``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_qbert.artifacts import write_json
from recbole_qbert.commands import Figures, data, recommend, stages, training
from recbole_qbert.processes import rank
from recbole_qbert.terminal import limit_threads, log_to_console


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
    if args.json and rank() == 0:
        write_json(Path(args.json), figures)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="command")

    def add(
        name: str,
        run: Callable[[argparse.Namespace], Figures],
        text: str,
        has_data: bool = True,
        several: bool = False,
        has_output: bool = True,
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", metavar="FILE", help="write the printed figures there")
        if has_output:
            command.add_argument("--output", default="runs", help="folder for everything written (default: runs)")
        if has_data:
            one = command.add_mutually_exclusive_group(required=True) if several else command
            one.add_argument("--dataset", required=not several, help="name of the data set")
            if several:
                one.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="names of several data sets")
            command.add_argument("--data_path", required=True, help="folder that holds the data set's folder")
            command.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="property files")
        return command

    text = "make synthetic raw product data and run everything on it, next to two baselines"
    demo_command = add("demo", training.demo, text, has_data=False)
    prepare_command = add("prepare", data.prepare, "raw Amazon-2018 files to RecBole atomic files", has_data=False)
    for option, text in (("reviews", "reviews, JSON lines, .gz or plain"), ("metadata", "product metadata, likewise")):
        prepare_command.add_argument(f"--{option}", required=True, metavar="FILE", help=text)
    prepare_command.add_argument("--dataset", required=True, help="name of the data set to write")
    prepare_command.add_argument("--data_path", required=True, help="folder to write the data set's folder into")
    prepare_command.add_argument("--min_user", type=int, default=5, help="least interactions of a user (default: 5)")
    prepare_command.add_argument("--min_item", type=int, default=5, help="least interactions of an item (default: 5)")
    add("features", stages.features, "text and image features by the built-in encoders, where the data bring none")
    add("inject", stages.inject, "stage 1: fuse the modalities of every item into one vector")
    add("quantize", stages.quantize, "stage 2: semantic IDs, a .sid file (runs stage 1 first where it is needed)")
    text = "semantic IDs for new items: weights and existing IDs stay as they are"
    add_command = add("add", stages.add, text, has_data=False)
    add_command.add_argument("--dataset", required=True, help="name of the data set")
    for option, text in (
        ("vocabulary", "folder that quantize, train or pretrain --datasets wrote"),
        (
            "features",
            "folder with <dataset>.items.txt and <dataset>.<modality>.npy of the new items and of the old",
        ),
        ("to", ".sid file to write: the existing IDs, then the new ones"),
    ):
        add_command.add_argument(f"--{option}", required=True, metavar="FILE" if option == "to" else "DIR", help=text)
    text = "stage 3, first half: multi-mask pretraining, on one data set or on several with a vocabulary in common"
    pretrain_command = add("pretrain", training.pretrain, text, several=True)
    text = "data sets that are not trained on but take part in the vocabulary, for fine-tuning later"
    pretrain_command.add_argument("--targets", nargs="*", default=[], metavar="NAME", help=text)
    finetune_command = add("finetune", training.finetune, "stage 3, second half: fine-tuning and evaluation")
    text = "folder that pretrain --datasets wrote: its semantic IDs and weights are used"
    finetune_command.add_argument("--vocabulary", metavar="DIR", help=text)
    train_command = add("train", training.train, "all stages in order, and a table of metrics")
    for command, models in ((demo_command, ["Pop", "SASRec"]), (finetune_command, []), (train_command, [])):
        text = f"RecBole models to train beside it (default: {' '.join(models) or 'none'})"
        command.add_argument("--baselines", nargs="*", default=models, metavar="MODEL", help=text)
    text = "a trained model as a folder that needs neither RecBole nor the data"
    export_command = add("export", recommend.export, text, has_data=False, has_output=False)
    export_command.add_argument("--checkpoint", required=True, metavar="FILE", help="what finetune or train wrote (.pth)")
    export_command.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    text = "items for histories: a table on the terminal, or a file"
    recommend_command = add("recommend", recommend.recommend, text, has_data=False, has_output=False)
    recommend_command.add_argument("--model", required=True, metavar="DIR", help="folder of export, or a checkpoint (.pth)")
    asked = recommend_command.add_mutually_exclusive_group(required=True)
    text = "histories: .inter, .tsv, .csv or .parquet with user_id, item_id and timestamp, or with history"
    asked.add_argument("--histories", metavar="FILE", help=text)
    asked.add_argument("--items", nargs="+", metavar="TOKEN", help="one history, oldest item first")
    recommend_command.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    recommend_command.add_argument("--keep_seen", action="store_true", help="recommend items of the history, too")
    recommend_command.add_argument("--batch_size", type=int, default=512, help="histories at a time (default: 512)")
    text = ".tsv, .csv, .jsonl or .parquet file to write"
    recommend_command.add_argument("--output", metavar="FILE", help=text)
    text = "folder that holds the data set's folder (default: where it lay when the checkpoint was made)"
    for command, sid in (
        (export_command, "semantic IDs the model was trained with (default: where training found them)"),
        (recommend_command, "semantic IDs with those of new items behind them (what add wrote)"),
    ):
        command.add_argument("--data_path", metavar="DIR", help=text)
        command.add_argument("--sid", metavar="FILE", help=sid)
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
