"""Commands that use a trained model: export it, and recommend with it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_qbert.cli.common import Figures, refuse_properties
from recbole_qbert.data.histories import Histories
from recbole_qbert.serving import export as exported
from recbole_qbert.serving.recommendation_files import recommendation_file
from recbole_qbert.serving.recommender import Recommendation, Recommender, Skipped
from recbole_qbert.utils.console import progress_bars_wanted, say

SHOWN = 10  # histories whose recommendations are printed where no file is asked for
BLOCK = 8  # batches that are read, answered and written at a time


def add_commands(add: Any) -> None:
    """Declare the commands of this room; ``add(name, run, text, kind)`` makes a parser."""
    text = "a trained model as a folder that needs neither RecBole nor the data"
    command = add("export", export, text, kind="plain")
    command.add_argument("--checkpoint", required=True, metavar="FILE", help="what finetune or train wrote (.pth)")
    command.add_argument("--to", required=True, metavar="DIR", help="folder to write")
    _origin(command, "semantic IDs the model was trained with (default: where training found them)")

    command = add("recommend", recommend, "items for histories: a table on the terminal, or a file", kind="plain")
    command.add_argument("--model", required=True, metavar="DIR", help="folder of export, or a checkpoint (.pth)")
    asked = command.add_mutually_exclusive_group(required=True)
    text = "histories: .inter, .tsv, .csv or .parquet with user_id, item_id and timestamp, or with history"
    asked.add_argument("--histories", metavar="FILE", help=text)
    asked.add_argument("--items", nargs="+", metavar="TOKEN", help="one history, oldest item first")
    command.add_argument("--k", type=int, default=10, help="how many items (default: 10)")
    command.add_argument("--keep_seen", action="store_true", help="recommend items of the history, too")
    command.add_argument("--batch_size", type=int, default=512, help="histories at a time (default: 512)")
    command.add_argument("--output", metavar="FILE", help=".tsv, .csv, .jsonl or .parquet file to write")
    _origin(command, "semantic IDs with those of new items behind them (what add wrote)")


def _origin(command: argparse.ArgumentParser, sid: str) -> None:
    text = "folder that holds the data set's folder (default: where it lay when the checkpoint was made)"
    command.add_argument("--data_path", metavar="DIR", help=text)
    command.add_argument("--sid", metavar="FILE", help=sid)


def export(args: argparse.Namespace) -> Figures:
    """A checkpoint as a folder that needs neither RecBole nor the data."""
    refuse_properties(args)
    model = exported.from_checkpoint(Path(args.checkpoint), _path(args.data_path), _path(args.sid))
    folder = Path(args.to)
    config = exported.write(model, folder)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    prior = config["cooccurrence_prior"]
    say(f"{folder}: {config['items']} items, {len(model.titles)} with a title, {size / 1e6:.1f} MB")
    say(f"co-occurrence prior: {'none' if prior is None else 'weight {weight:g}, epsilon {epsilon:g}'.format(**prior)}")
    return {
        "folder": str(folder),
        "dataset": model.dataset,
        "items": config["items"],
        "titles": len(model.titles),
        "levels": list(model.ids.prefixes),
        "cooccurrence_prior": prior,
        "bytes": size,
    }


def recommend(args: argparse.Namespace) -> Figures:
    """Top-k items for histories of a file or of the command line, to a file or the terminal."""
    refuse_properties(args)
    started = time.perf_counter()
    recommender = Recommender.load(args.model, data_path=args.data_path, semantic_ids=args.sid)
    loaded = time.perf_counter()
    histories = [("history", args.items)] if args.items else Histories(Path(args.histories))
    count = len(histories) if isinstance(histories, list) else histories.count
    shown = count if args.output else min(count, SHOWN)
    answered, skipped = 0, Skipped()
    with (
        recommendation_file(Path(args.output)) if args.output else nullcontext(_show) as write,
        tqdm(total=shown, desc="histories", ncols=100, unit="", disable=not progress_bars_wanted(), leave=False) as bar,
    ):
        for block in _blocks(islice(histories, shown), BLOCK * max(args.batch_size, 1)):
            ranked = recommender.recommend_arrays(
                [history for _, history in block], args.k, exclude_seen=not args.keep_seen, batch_size=args.batch_size
            )
            write([user for user, _ in block], recommender.named(ranked))
            answered, skipped = answered + len(block), skipped + ranked.skipped
            bar.update(len(block))
        if skipped.histories == answered:  # before the file gets its name
            raise ValueError(_nothing_known(args, answered, skipped))
    seconds = {"loading": loaded - started, "recommending": time.perf_counter() - loaded}
    for line in skipped.lines():
        say(line)
    if args.output:
        rate = answered / seconds["recommending"]
        say(f"{args.output}: {answered} histories in {seconds['recommending']:.1f} s, {rate:.0f} a second")
    elif shown < count:
        say(f"the first {shown} of {count} histories; for all of them name a file (--output FILE)")
    return {
        "model": args.model,
        "items": len(recommender.items),
        "histories": answered,
        "histories_without_answer": skipped.histories,
        "skipped_items": skipped.items,
        "first_unknown_items": list(skipped.first),
        "k": args.k,
        "seconds": seconds,
        "output": args.output,
    }


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _blocks(histories: Iterable[tuple[str, Sequence[str]]], size: int) -> Iterator[list[tuple[str, Sequence[str]]]]:
    each = iter(histories)
    while block := list(islice(each, size)):
        yield block


def _show(users: Sequence[str], found: Sequence[Sequence[Recommendation]]) -> None:
    for user, answers in zip(users, found, strict=True):
        say(user if answers else f"{user}: nothing")
        for rank, answer in enumerate(answers, 1):
            say(f"{rank:>4}  {answer.score:8.4f}  {answer.item}  {answer.semantic_id}  {(answer.title or '')[:60]}".rstrip())


def _nothing_known(args: argparse.Namespace, count: int, skipped: Skipped) -> str:
    where = args.histories or "--items"
    if not count or not skipped.first:
        return f"{where}: there is no item in {count} histories"
    return (
        f"{where}: the model {args.model} knows no item of {count} histories (first: {', '.join(skipped.first)}); they are "
        "of another data set, or new items, whose semantic IDs come with --sid"
    )
