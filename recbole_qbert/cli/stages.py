"""Commands of the stages before the sequence model: features, stage 1, stage 2."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole_qbert.cli.common import Figures, configuration, folder_of, refuse_properties
from recbole_qbert.data import item_features as features_files
from recbole_qbert.data.item_features import ItemFeatures
from recbole_qbert.pipeline import stages
from recbole_qbert.quantization import semantic_ids
from recbole_qbert.quantization.semantic_ids import SemanticIDs
from recbole_qbert.quantization.tokenizer import Tokenizer
from recbole_qbert.recbole_integration import experiment, patches
from recbole_qbert.serving import cold_start
from recbole_qbert.utils.console import progress_bars_wanted, say, show_stages

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
    new.add_argument("--sid", metavar="FILE", help=".sid file of an earlier add to go on from; its IDs stay")


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
    folder, target = Path(args.features), Path(args.to)
    list_file = folder / f"{args.dataset}.items.txt"
    listed = tuple(features_files.read_item_list(list_file))
    domain = args.dataset if any(item.startswith(f"{args.dataset}/") for item in tokenizer.ids.items) else ""

    def of_data_set(ids: SemanticIDs) -> SemanticIDs:
        return ids.of_domain(domain) if domain else ids

    trained = set(of_data_set(tokenizer.ids).items)
    if args.sid:
        tokenizer = tokenizer.extended(semantic_ids.load(Path(args.sid)), args.sid, domain)
    known = of_data_set(tokenizer.ids).items
    already = set(known)
    new = tuple(item for item in listed if item not in already)
    if not new:
        raise ValueError(f"{list_file} lists no item without a semantic ID: nothing to add")
    loaded = features_files.load(folder, args.dataset, new, features_files.available(folder, args.dataset))
    named = tuple(f"{domain}/{item}" for item in new) if domain else new
    ids = of_data_set(tokenizer.add(replace(loaded, items=named)))
    _require_kept(ids, target)
    near = _neighbours(args, replace(loaded, items=new), [item for item in listed if item in trained])
    if near is not None:
        near.save(cold_start.neighbors_path(target))
    ids.save(target)
    say(f"{len(new)} new IDs after {len(known)}: {target}")
    for item in new[:5]:
        say(f"  {item}  {ids.text(ids.items.index(item))}")
    return {"dataset": args.dataset, "existing": len(known), "new": len(new), "semantic_ids": str(target)}


def _require_kept(ids: SemanticIDs, target: Path) -> None:
    """Refuse to take an ID from an item that has it in the file that would be replaced."""
    if not target.exists():
        return
    there = semantic_ids.load(target)
    row_of = {item: row for row, item in enumerate(ids.items)}
    moved = [item for row, item in enumerate(there.items) if item not in row_of or ids.text(row_of[item]) != there.text(row)]
    if moved:
        raise ValueError(
            f"{len(moved)} items would lose the ID that they have in {target}, or get another (first: {moved[0]}): go on "
            f"from it with --sid {target}, or name another file with --to"
        )


def _neighbours(args: argparse.Namespace, new: ItemFeatures, described: Sequence[str]) -> cold_start.Neighbors | None:
    """Of new items among ``described`` ones of the training, behind those of an earlier ``add``; ``None`` for none."""
    folder = Path(args.features)
    earlier = cold_start.neighbors_path(Path(args.sid)) if args.sid else None
    before = cold_start.load(earlier) if earlier and earlier.exists() else None
    if not described:
        log.warning(
            "%s lists none of the existing items: new items are ranked by their codes alone, which is coarser", folder
        )
        return before
    near = cold_start.nearest_neighbors(new, features_files.load(folder, args.dataset, described, tuple(new.vectors)))
    if len(near.items) < len(new.items):
        log.warning("%d new items have no features: they are ranked by their codes alone", len(new.items) - len(near.items))
    return before.and_of(near) if before else near


def builder_of(args: argparse.Namespace) -> stages.Builder:
    """The stages of a command's data set."""
    config = configuration(args)
    with experiment.working_directory(folder_of(args)):
        catalog = experiment.load_catalog(config)
    settings = stages.stage_settings(patches.ConfigValues(config))
    rebuild = bool(config["rebuild"])
    return stages.Builder(catalog, settings, folder_of(args), rebuild=rebuild, progress=progress_bars_wanted())
