"""Shared parts of the commands: reading and refusing arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recbole_qbert.config.property_files import read_properties
from recbole_qbert.data.atomic_files import FORMAT_PROPERTIES
from recbole_qbert.utils.spelling import did_you_mean

Figures = dict[str, Any]


def workflow_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that every workflow takes."""
    names = ("dataset", "data_path", "output", "properties", "config_files")
    return {name: getattr(args, name) for name in names}


def add_config_files(command: argparse.ArgumentParser) -> None:
    """Declare ``--config_files`` for a command that reads atomic files."""
    text = "property files; properties such as --ITEM_ID_FIELD=NAME may follow as well"
    command.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help=text)


def file_properties(args: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Return the properties on how atomic files are written, of property files and of the command line.

    Args:
        args: the arguments; those of a command without ``--config_files`` do.
        more: names of further properties that the command reads.

    Raises:
        FileNotFoundError: a property file is missing.
        ValueError: names properties of the command line that the command does not read.
    """
    known = (*FORMAT_PROPERTIES, *more)
    if other := [name for name in args.properties if name not in known]:
        hint = did_you_mean(other[0], known)
        raise ValueError(f"{args.command} reads the properties {', '.join(known)}; found {', '.join(other)}{hint}")
    values: dict[str, Any] = {}
    for file in getattr(args, "config_files", ()):
        values |= read_properties(Path(file))
    return {name: value for name, value in {**values, **args.properties}.items() if name in known}


def refuse_properties(args: argparse.Namespace) -> None:
    """Refuse ``--key=value`` for a command that reads no properties.

    Raises:
        ValueError: names them.
    """
    if args.properties:
        raise ValueError(f"{args.command} takes no properties; found {', '.join(args.properties)}")
