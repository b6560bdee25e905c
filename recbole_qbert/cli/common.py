"""Shared parts of the commands: reading and refusing arguments."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from typing import Any

Figures = dict[str, Any]
ARCHIVE = "folder, small enough for a repository, that finished trainings are read from and written to, with tables"


def workflow_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that every workflow takes."""
    names = ("dataset", "data_path", "output", "properties", "config_files")
    return {name: getattr(args, name) for name in names}


def refuse_properties(args: argparse.Namespace) -> None:
    """Refuse ``--key=value`` for a command that reads no properties.

    Raises:
        ValueError: names them.
    """
    if args.properties:
        raise ValueError(f"{args.command} takes no properties; found {', '.join(args.properties)}")


def typed(args: argparse.Namespace, options: Iterable[str]) -> str:
    """Return the command line of a command with these options and the properties in ``args``."""
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
