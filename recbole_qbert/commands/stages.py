"""Commands of the stages before the sequence model: features, stage 1, stage 2."""

from __future__ import annotations

import argparse

from recbole_qbert import compat, pipeline, runs
from recbole_qbert.commands import Figures, configuration, folder_of
from recbole_qbert.terminal import say, show_bars, show_stages


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


def builder_of(args: argparse.Namespace) -> pipeline.Builder:
    """The stages of a command's data set."""
    config = configuration(args)
    with runs.inside(folder_of(args)):
        catalogue = runs.catalogue_of(config)
    settings = pipeline.stage_settings(compat.ConfigValues(config))
    rebuild = bool(config["rebuild"])
    return pipeline.Builder(catalogue, settings, folder_of(args), rebuild=rebuild, progress=show_bars())
