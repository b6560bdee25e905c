"""Commands of the stages before the sequence model: features, stage 1, stage 2, new items."""

from __future__ import annotations

import argparse
from typing import Any

from recbole_qbert.cli.common import Figures, refuse_properties, workflow_arguments
from recbole_qbert.recbole_integration import workflows
from recbole_qbert.serving.add_items import add_items
from recbole_qbert.utils.console import say, show_stages


def add_commands(add_command: Any) -> None:
    """Declare these commands; ``add_command(name, run, text, kind)`` makes a parser."""
    add_command("features", features, "text and image features by the built-in encoders, if the data set has none")
    add_command("inject", inject, "stage 1: fuse the modalities of every item into one vector")
    add_command("quantize", quantize, "stage 2: semantic IDs, a .sid file (runs stage 1 first if needed)")
    new = add_command("add", add, "semantic IDs for new items: weights and existing IDs stay as they are", kind="plain")
    new.add_argument("--dataset", required=True, help="name of the data set")
    text = "folder that quantize, train or pretrain --datasets wrote"
    new.add_argument("--vocabulary", required=True, metavar="DIR", help=text)
    text = "folder with <dataset>.items.txt and <dataset>.<modality>.npy of the new items and of the old"
    new.add_argument("--features", required=True, metavar="DIR", help=text)
    text = ".sid file to write: the existing IDs, then the new ones; neighbors of the new items are written next to it"
    new.add_argument("--output", "--to", dest="output", required=True, metavar="FILE", help=text)
    new.add_argument("--sid", metavar="FILE", help=".sid file of an earlier add to continue from; its IDs stay")


def features(args: argparse.Namespace) -> Figures:
    """Run ``workflows.encode_features``."""
    return show_stages(workflows.encode_features(**workflow_arguments(args)))


def inject(args: argparse.Namespace) -> Figures:
    """Run ``workflows.inject``."""
    return show_stages(workflows.inject(**workflow_arguments(args)))


def quantize(args: argparse.Namespace) -> Figures:
    """Run ``workflows.build_semantic_ids``."""
    figures = workflows.build_semantic_ids(**workflow_arguments(args))
    say(f"semantic IDs: {figures['file']}")
    return show_stages(figures)


def add(args: argparse.Namespace) -> Figures:
    """Run ``serving.add_items``."""
    refuse_properties(args)
    figures = add_items(args.dataset, args.vocabulary, args.features, args.output, args.sid)
    say(f"{figures['new']} new IDs after {figures['existing']}: {figures['semantic_ids']}")
    for item, text in figures.pop("first").items():
        say(f"  {item}  {text}")
    return figures
