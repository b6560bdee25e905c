"""Commands that use a trained model: export it, and recommend with it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from recbole_qbert.cli.common import Figures, add_config_files
from recbole_qbert.serving.export import FORMATS, export_model
from recbole_qbert.serving.recommend_file import recommend as recommend_histories
from recbole_qbert.serving.recommender import Recommendation
from recbole_qbert.utils.console import progress_bars_wanted, say

SHOWN = 10  # number of histories whose recommendations are printed if no file is named


def add_commands(add: Any) -> None:
    """Declare these commands; ``add(name, run, text, kind)`` makes a parser."""
    text = "a trained model as a folder that needs neither RecBole nor the data"
    command = add("export", export, text, kind="plain")
    command.add_argument("--checkpoint", required=True, metavar="FILE", help="what finetune or train wrote (.pth)")
    command.add_argument("--output", "--to", dest="output", required=True, metavar="DIR", help="folder to write")
    text = "folder: safetensors and text, what recommend reads (default); onnx: also an ONNX file that scores histories"
    command.add_argument("--format", choices=FORMATS, default="folder", help=text)
    _add_origin(command, "semantic IDs the model was trained with (default: where training found them)")

    command = add("recommend", recommend, "items for histories: a table on the terminal, or a file", kind="plain")
    command.add_argument("--model", required=True, metavar="DIR", help="folder of export, or a checkpoint (.pth)")
    source = command.add_mutually_exclusive_group(required=True)
    text = "histories: .inter, .tsv, .csv or .parquet with user_id, item_id and timestamp, or with history"
    source.add_argument("--histories", metavar="FILE", help=text)
    source.add_argument("--items", nargs="+", metavar="TOKEN", help="one history, oldest item first")
    command.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    command.add_argument("--keep_seen", action="store_true", help="recommend items of the history, too")
    command.add_argument("--batch_size", type=int, default=512, help="histories at a time (default: 512)")
    command.add_argument("--output", metavar="FILE", help=".tsv, .csv, .jsonl or .parquet file to write")
    _add_origin(command, "semantic IDs with those of new items behind them (what add wrote)")


def _add_origin(command: argparse.ArgumentParser, sid: str) -> None:
    text = "folder that holds the data set's folder (default: where it lay when the checkpoint was made)"
    command.add_argument("--data_path", metavar="DIR", help=text)
    command.add_argument("--sid", metavar="FILE", help=sid)
    add_config_files(command)


def export(args: argparse.Namespace) -> Figures:
    """Run ``serving.export.export_model``."""
    origin = (args.data_path, args.sid, args.properties, args.config_files)
    figures = export_model(args.checkpoint, args.output, *origin, format=args.format)
    prior = figures["cooccurrence_prior"]
    megabytes = figures["bytes"] / 1e6
    say(f"{figures['folder']}: {figures['items']} items, {figures['titles']} with a title, {megabytes:.1f} MB")
    say(f"co-occurrence prior: {'none' if prior is None else 'weight {weight:g}, epsilon {epsilon:g}'.format(**prior)}")
    return figures


def recommend(args: argparse.Namespace) -> Figures:
    """Run ``serving.recommend_file.recommend``."""
    figures = recommend_histories(
        args.model,
        [args.items] if args.items else args.histories,
        args.output or _show,
        args.k,
        exclude_seen=not args.keep_seen,
        batch_size=args.batch_size,
        limit=None if args.output else SHOWN,
        data_path=args.data_path,
        semantic_ids=args.sid,
        progress=progress_bars_wanted(),
        properties=args.properties,
        config_files=args.config_files,
    )
    for note in figures.pop("notes"):
        say(note)
    if args.output:
        seconds = figures["seconds"]["recommending"]
        rate = figures["histories"] / seconds
        say(f"{args.output}: {figures['histories']} histories in {seconds:.1f} s, {rate:.0f} a second")
    elif figures["total_histories"] > figures["histories"]:
        shown, total = figures["histories"], figures["total_histories"]
        say(f"the first {shown} of {total} histories; for all of them name a file (--output FILE)")
    return figures


def _show(users: Sequence[str], recommendations: Sequence[Sequence[Recommendation]]) -> None:
    for user, items in zip(users, recommendations, strict=True):
        say(user if items else f"{user}: nothing")
        for rank, item in enumerate(items, 1):
            say(f"{rank:>4}  {item.score:8.4f}  {item.item}  {item.semantic_id}  {(item.title or '')[:60]}".rstrip())
