"""Shared parts of the commands: reading and refusing arguments."""

from __future__ import annotations

import argparse
from typing import Any

Figures = dict[str, Any]


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
