"""Commands of the stages before the sequence model: features, stage 1, stage 2."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_qbert import compat, newcomers, pipeline, runs
from recbole_qbert import features as features_files
from recbole_qbert.commands import Figures, configuration, folder_of, refuse_properties
from recbole_qbert.terminal import say, show_bars, show_stages
from recbole_qbert.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def add_commands(command: Any) -> None:
    """Declare the commands of this room; ``command(name, run, text, kind)`` makes a parser."""
    command("features", features, "text and image features by the built-in encoders, where the data bring none")
    command("inject", inject, "stage 1: fuse the modalities of every item into one vector")
    command("quantize", quantize, "stage 2: semantic IDs, a .sid file (runs stage 1 first where it is needed)")
    new = command("add", add, "semantic IDs for new items: weights and existing IDs stay as they are", kind="plain")
    new.add_argument("--dataset", required=True, help="name of the data set")
    text = "folder that quantize, train or pretrain --datasets wrote"
    new.add_argument("--vocabulary", required=True, metavar="DIR", help=text)
    text = "folder with <dataset>.items.txt and <dataset>.<modality>.npy of the new items and of the old"
    new.add_argument("--features", required=True, metavar="DIR", help=text)
    text = ".sid file to write: the existing IDs, then the new ones; neighbours of the new items go beside it"
    new.add_argument("--to", required=True, metavar="FILE", help=text)


def features(args: argparse.Namespace) -> Figures:
    """Features alone."""
    builder = builder_of(args)
    figures: Figures = {"dataset": args.dataset}
    _, figures["features"] = builder.features()
    return show_stages(figures)


def inject(args: argparse.Namespace) -> Figures:
    """Stage 1 alone."""
    builder = builder_of(args)
    figures: Figures = {"dataset": args.dataset}
    loaded, figures["features"] = builder.features()
    figures["injection"] = builder.inject(loaded)
    return show_stages(figures)


def quantize(args: argparse.Namespace) -> Figures:
    """Stages 1 and 2 alone."""
    _, figures = builder_of(args).build()
    say(f"semantic IDs: {folder_of(args) / (args.dataset + '.sid')}")
    return show_stages({"dataset": args.dataset, **figures})


def add(args: argparse.Namespace) -> Figures:
    """IDs for items that came after the vocabulary was made; weights and existing IDs stay as they are."""
    refuse_properties(args)
    tokenizer = Tokenizer.load(Path(args.vocabulary))
    folder = Path(args.features)
    listed = tuple(features_files.read_item_list(folder / f"{args.dataset}.items.txt"))
    of_union = any(item.startswith(f"{args.dataset}/") for item in tokenizer.ids.items)
    known = tokenizer.ids.of_domain(args.dataset) if of_union else tokenizer.ids
    already = set(known.items)
    new = [item for item in listed if item not in already]
    if not new:
        raise ValueError(f"{folder / args.dataset}.items.txt lists no item without a semantic ID: nothing to add")
    loaded = features_files.load(folder, args.dataset, new, features_files.available(folder, args.dataset))
    if of_union:
        loaded = replace(loaded, items=tuple(f"{args.dataset}/{item}" for item in new))
    ids = tokenizer.add(loaded)
    ids = ids.of_domain(args.dataset) if of_union else ids
    target = Path(args.to)
    described = [item for item in listed if item in already]
    if described:
        old = features_files.load(folder, args.dataset, described, tuple(loaded.vectors))
        near = newcomers.neighbours(replace(loaded, items=tuple(new)), old)
        near.save(newcomers.beside(target))
    else:
        log.warning(
            "%s lists none of the existing items: new items are ranked by their codes alone, which is coarser", folder
        )
    ids.save(target)
    say(f"{len(new)} new IDs after {len(known.items)}: {target}")
    for item in new[:5]:
        say(f"  {item}  {ids.text(ids.items.index(item))}")
    return {"dataset": args.dataset, "existing": len(known.items), "new": len(new), "semantic_ids": str(target)}


def builder_of(args: argparse.Namespace) -> pipeline.Builder:
    """The stages of a command's data set."""
    config = configuration(args)
    with runs.inside(folder_of(args)):
        catalogue = runs.catalogue_of(config)
    settings = pipeline.stage_settings(compat.ConfigValues(config))
    rebuild = bool(config["rebuild"])
    return pipeline.Builder(catalogue, settings, folder_of(args), rebuild=rebuild, progress=show_bars())
