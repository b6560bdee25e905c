"""Commands that make and check data sets."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import yaml

from dataset_prep.amazon import convert
from recbole_qbert.commands import Figures, refuse_properties
from recbole_qbert.terminal import plain


def prepare(args: argparse.Namespace) -> Figures:
    """Raw Amazon files to atomic files."""
    refuse_properties(args)
    report = convert(
        Path(args.reviews),
        Path(args.metadata),
        args.dataset,
        Path(args.data_path),
        min_user_interactions=args.min_user,
        min_item_interactions=args.min_item,
    )
    figures: Figures = plain(asdict(report))
    print(yaml.safe_dump(figures, sort_keys=False, allow_unicode=True))
    return figures
