"""The command line: ``run_recbole_qbert.py [command] [options] [--property=value ...]``, or RecBole's own arguments.

Any property of ``properties/model/QBERT4Rec.yaml`` or of RecBole can follow as ``--key=value``. Without a command but with
options it is RecBole's ``run_recbole.py``; without any argument, the demo.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_qbert.cli import benchmark, data, recbole_style, recommend, stages, training, tune
from recbole_qbert.cli.common import Figures
from recbole_qbert.config.property_files import parse_yaml
from recbole_qbert.utils.console import limit_threads, log_to_console
from recbole_qbert.utils.distributed import rank
from recbole_qbert.utils.failures import describe, require_writable
from recbole_qbert.utils.io import write_json

DEBUG = "RECBOLE_QBERT_DEBUG"  # environment variable
INTERRUPTED = 130
_WRITE_DATA = ("prepare", "import", "images", "encode")  # commands that write into --data_path
_WRITE_FILE = ("add", "recommend")  # commands whose --output is a file


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    A failure of an input or of the system ends in ``error: …`` on stderr, a bug in a traceback. With the environment
    variable ``RECBOLE_QBERT_DEBUG`` a failure shows its traceback, too.

    Returns:
        0; 1 when the doctor found something wrong; 2 when an input was refused or the system failed; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["demo"]
    limit_threads()
    try:
        try:
            return _run(arguments)
        finally:  # now, or the interpreter fails at its end, where nobody can catch it
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = describe(error)
        if message is None:
            raise
        if os.environ.get(DEBUG):
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename is None:
            _discard_output()
        print(f"error: {message}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    if arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        recbole_style.run(arguments)
        return 0
    args, rest = build_parser().parse_known_args(arguments)
    log_to_console()
    args.properties = parse_properties(rest)
    _require_writable(args)
    figures = args.run(args)
    if args.json and rank() == 0:
        write_json(Path(args.json), figures)
    return int(figures.get("exit_code", 0))


def _require_writable(args: argparse.Namespace) -> None:
    """Refuse places that cannot be written to before the work, not after it."""
    for option in ("json", "output", "results_cache", *(["data_path"] if args.command in _WRITE_DATA else [])):
        place = getattr(args, option, None)
        if place and (option, args.command) != ("output", "doctor"):  # which reads there
            folder = option != "json" and args.command not in _WRITE_FILE
            require_writable(Path(place), f"--{option}", folder=folder)


def _discard_output() -> None:
    """Throw away what is still to be printed if nobody can receive it: a closed pipe, a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options, in the order of the stages."""
    parser = argparse.ArgumentParser(
        description="Semantic-ID sequential recommendation on RecBole. Without a command, as RecBole's run_recbole.py: "
        "--model=QBERT4Rec --dataset=ml-100k --epochs=3. Without any argument: the demo.",
        epilog=recbole_style.parser().format_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="command")

    def add(
        name: str, run: Callable[[argparse.Namespace], Figures], text: str, kind: str = "model"
    ) -> argparse.ArgumentParser:
        """Add a command with the options of its kind.

        Args:
            name: name of the command.
            run: function that runs it.
            text: its help.
            kind: ``plain``: only ``--json``; ``demo``: also an output folder; ``one``: also a data set; ``written``: a data
                set that is created; ``model``: a data set and properties; ``models``: the same for one or several data sets.
        """
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--json", metavar="FILE", help="write the printed figures there")
        if kind == "plain":
            return command
        command.add_argument("--output", default="runs", help="folder for everything written (default: runs)")
        if kind == "demo":
            return command
        created = " to write" if kind == "written" else ""
        which = command.add_mutually_exclusive_group(required=True) if kind == "models" else command
        which.add_argument("--dataset", required=kind != "models", help=f"name of the data set{created}")
        if kind == "models":
            which.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="names of several data sets")
        text = "folder to write the data set's folder into" if created else "folder that holds the data set's folder"
        command.add_argument("--data_path", required=True, help=text)
        if kind in ("model", "models"):
            command.add_argument("--config_files", nargs="+", default=[], metavar="FILE", help="property files")
        return command

    for module in (data, stages, training, recommend, tune, benchmark):
        module.add_commands(add)
    return parser


def parse_properties(rest: Sequence[str]) -> dict[str, Any]:
    """Return ``--key=value`` arguments as a mapping; values are read as YAML, but a lone sign (``,``) is that sign.

    Raises:
        ValueError: an argument of another form, or a value that is not YAML.
    """
    properties = {}
    for argument in rest:
        key, equals, value = argument.partition("=")
        if not key.startswith("--") or not equals or len(key) < 3:
            raise ValueError(f"argument {argument!r} is neither an option nor --property=value")
        try:
            properties[key[2:]] = value if is_sign(value) else parse_yaml(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{argument!r} is not YAML after the '=': {error}") from None
    return properties


def is_sign(value: str) -> bool:
    """Tell whether a value is one sign that YAML would take for a part of its grammar, such as a separator of columns."""
    return len(value) == 1 and not value.isalnum() and value != "~"
