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
from recbole_qbert.commands import Figures, stages, training
from recbole_qbert.commands import data as data_commands
from recbole_qbert.terminal import limit_threads, log_to_console


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 when the doctor found something wrong; 2 when an input was refused (the message is on stderr).
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
    return int(figures.get("exit_code", 0))


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="command")

    def add(
        name: str, run: Callable[[argparse.Namespace], Figures], text: str, data: str = "model"
    ) -> argparse.ArgumentParser:
        """A command. ``data``: ``none``, ``one`` (a data set), ``written`` (one to be made), ``model`` (with properties)."""
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", metavar="FILE", help="write the printed figures there")
        command.add_argument("--output", default="runs", help="folder for everything written (default: runs)")
        if data != "none":
            made = " to write" if data == "written" else ""
            command.add_argument("--dataset", required=True, help=f"name of the data set{made}")
            text = "folder to write the data set's folder into" if made else "folder that holds the data set's folder"
            command.add_argument("--data_path", required=True, help=text)
        if data == "model":
            command.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="property files")
        return command

    text = "make synthetic raw product data and run everything on it, next to two baselines"
    demo_command = add("demo", training.demo, text, data="none")
    data_commands.add_commands(add)
    add("features", stages.features, "text and image features by the built-in encoders, where the data bring none")
    add("inject", stages.inject, "stage 1: fuse the modalities of every item into one vector")
    add("quantize", stages.quantize, "stage 2: semantic IDs, a .sid file (runs stage 1 first where it is needed)")
    add("pretrain", training.pretrain, "stage 3, first half: multi-mask pretraining")
    finetune_command = add("finetune", training.finetune, "stage 3, second half: fine-tuning and evaluation")
    train_command = add("train", training.train, "all stages in order, and a table of metrics")
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
