"""What each command of the command line does; ``recbole_qbert.cli`` reads the arguments."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole_qbert.config.schema import MODEL
from recbole_qbert.recbole_integration import experiment
from recbole_qbert.utils.console import progress_bars_wanted
from recbole_qbert.utils.distributed import torchrun_settings

Figures = dict[str, Any]
ARCHIVE = "folder, small enough for a repository, that finished trainings are taken from and put into, and tables"


def folder_of(args: argparse.Namespace) -> Path:
    """Where a data set's output lies."""
    return (Path(args.output) / args.dataset).resolve()


def configuration(args: argparse.Namespace, **settings: Any) -> Any:
    """RecBole's configuration of our model for a command; ``settings`` win over what the user gave."""
    folder = folder_of(args)
    base: Figures = {"semantic_id_dir": str(folder), "checkpoint_dir": str(folder / "checkpoints")}
    base |= {"show_progress": progress_bars_wanted(), **torchrun_settings()}
    return experiment.configure(MODEL, args.dataset, args.data_path, base | args.properties | settings, args.config_files)


def refuse_properties(args: argparse.Namespace) -> None:
    """Refuse ``--key=value`` where no property is read.

    Raises:
        ValueError: names them.
    """
    if args.properties:
        raise ValueError(f"{args.command} takes no properties; found {', '.join(args.properties)}")


def typed(args: argparse.Namespace, options: Iterable[str]) -> str:
    """What to type to give a command these options, and the properties it was given."""
    words = ["run_recbole_qbert.py", args.command]
    for option in options:
        if value := getattr(args, option):
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join([*words, *(f"--{key}={value}" for key, value in args.properties.items())])


def refuse_none_at_a_time(args: argparse.Namespace) -> None:
    """Refuse ``--jobs`` and ``--threads`` below 1.

    Raises:
        ValueError: names the option.
    """
    for option in ("jobs", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option} is {value}; it must be at least 1")
