"""Run with the arguments of RecBole's ``run_recbole.py``: ``--model=QBERT4Rec --dataset=ml-100k --epochs=3``."""

from __future__ import annotations

import argparse
import builtins
import sys
from collections.abc import Sequence
from typing import Any

from torch.multiprocessing import ProcessRaisedException

from recbole_qbert.recbole_integration.patches import quick_start
from recbole_qbert.recbole_integration.registry import require_dataset, require_model
from recbole_qbert.utils.distributed import torchrun_settings


def parser() -> argparse.ArgumentParser:
    """Return a parser of the options of RecBole's ``run_recbole.py``, with its names and defaults."""
    recbole_parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    group = recbole_parser.add_argument_group("without a command", "any property of the model follows as --key=value")
    group.add_argument("--model", "-m", metavar="NAME", default="QBERT4Rec", help="a model of ours or RecBole's")
    group.add_argument("--dataset", "-d", metavar="NAME", default="ml-100k", help="name of the data set")
    group.add_argument("--config_files", metavar="'FILE ...'", help="property files, separated by spaces")
    group.add_argument("--nproc", type=int, default=1, help="processes on this machine")
    group.add_argument("--ip", default="localhost", help="of the first machine")
    group.add_argument("--port", default="5678", help="of the first machine")
    group.add_argument("--world_size", type=int, default=-1, help="processes on all machines")
    group.add_argument("--group_offset", type=int, default=0, help="number of this machine's first process")
    return recbole_parser


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Train and test a model as RecBole's ``run_recbole.py`` does.

    Args:
        argv: the arguments. RecBole's ``Config`` reads the properties among them itself.

    Returns:
        RecBole's result: ``best_valid_score``, ``best_valid_result``, ``test_result`` and more.

    Raises:
        FileNotFoundError: a property file or the data set is missing.
        ValueError: an unknown model, an unknown property, or an argument of another form.
    """
    args, rest = parser().parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser().print_help()
        return {}
    for argument in rest:
        if not argument.startswith("--") or "=" not in argument:
            raise ValueError(f"argument {argument!r} is neither an option nor --property=value")
        if argument.count("=") > 1:
            raise ValueError(f"argument {argument!r} has a second '=', for which RecBole ignores it; use a property file")
    torchrun = torchrun_settings()
    if torchrun and args.nproc > 1:
        raise ValueError(f"--nproc={args.nproc}: torchrun has started the processes; leave the option out")
    files = args.config_files.split() if args.config_files else []
    require_model(args.model)
    # RecBole reads properties from sys.argv, here and in the processes that it starts; the options are no properties.
    before, sys.argv = sys.argv, [sys.argv[0], *rest]
    try:
        require_dataset(args.model, args.dataset, files)
        result = quick_start.run(
            args.model,
            args.dataset,
            config_file_list=files or None,
            config_dict=torchrun or None,
            nproc=args.nproc,
            world_size=args.world_size,
            ip=args.ip,
            port=args.port,
            group_offset=args.group_offset,
        )
    except ProcessRaisedException as error:
        message = str(error).strip().splitlines()[-1]
        kind = message.partition(":")[0]
        if issubclass(getattr(builtins, kind, Warning), ValueError | OSError | ImportError | MemoryError):
            raise ValueError(message) from error
        raise
    finally:
        sys.argv = before
    return dict(result or {})
