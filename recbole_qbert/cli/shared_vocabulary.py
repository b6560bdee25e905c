"""One vocabulary for several data sets: what ``pretrain --datasets`` does before it trains, and ``finetune`` after."""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_qbert.cli.common import Figures, configuration, folder_of
from recbole_qbert.data.multi_domain import write_union
from recbole_qbert.pipeline import stages
from recbole_qbert.recbole_integration import experiment, patches
from recbole_qbert.utils.console import progress_bars_wanted, say
from recbole_qbert.utils.distributed import first_before_others, join_torchrun_group, rank


def name_of(datasets: list[str]) -> str:
    """Name of the union of data sets."""
    return "+".join(datasets)


def build(args: argparse.Namespace, figures: Figures) -> None:
    """Stages 1 and 2 over the union of ``args.datasets`` and ``args.targets``; points ``args`` at the union to pretrain on.

    Writes ``<output>/<union>/<data set>.sid`` for every data set, all from one quantizer.
    """
    everything = [*args.datasets, *(name for name in args.targets if name not in args.datasets)]
    unions, data_path = Path(args.output) / "unions", Path(args.data_path)
    args.dataset, args.data_path = name_of(everything), str(unions)
    folder = folder_of(args)
    join_torchrun_group()
    with first_before_others():
        write_union(everything, data_path, unions, args.dataset)
        config = configuration(args)
        with experiment.working_directory(folder):
            catalog = experiment.load_catalog(config)
        settings = stages.stage_settings(patches.ConfigValues(config))
        rebuild = bool(config["rebuild"]) and rank() == 0
        ids, built = stages.Builder(catalog, settings, folder, rebuild=rebuild, progress=progress_bars_wanted()).build()
        figures |= built
        for dataset in everything:
            ids.of_domain(dataset).save(folder / f"{dataset}.sid")
        if len(everything) > len(args.datasets):
            write_union(args.datasets, data_path, unions, name_of(args.datasets))
    say(f"vocabulary of {', '.join(everything)}: {folder}")
    args.properties |= {
        "semantic_id_file": str(folder / f"{args.dataset}.sid"),
        "checkpoint_file": str(folder / "pretrain.pth"),
        "domains": args.datasets,
        "rebuild": False,
    }
    args.dataset = name_of(args.datasets)


def use(args: argparse.Namespace) -> None:
    """Point ``args`` at a vocabulary of ``pretrain --datasets``: its IDs, and its weights unless others are named.

    Raises:
        FileNotFoundError: the vocabulary does not cover the data set.
    """
    folder = Path(args.vocabulary).resolve()
    ids, weights = folder / f"{args.dataset}.sid", folder / "pretrain.pth"
    if not ids.exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.sid"))) or "none"
        raise FileNotFoundError(
            f"{ids} is missing: the vocabulary covers {known}; name {args.dataset} among --datasets or --targets of pretrain"
        )
    args.properties = {"semantic_id_file": str(ids), "pretrained": str(weights)} | args.properties
