"""What the person at the terminal sees: lines, tables, progress bars or none, and whose log messages."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_qbert.utils.distributed import rank


def say(text: str) -> None:
    """One line, at once."""
    if rank() == 0:
        print(text, flush=True)


def show_stages(figures: dict[str, Any]) -> dict[str, Any]:
    """Print what the stages did; returns the figures."""
    for name, known in figures.get("features", {}).get("modalities", {}).items():
        shape = "x".join(map(str, known["shape"]))
        say(f"features   {name:<9} {shape:<14} {known['coverage']:.1%} of items")
    if "injection" in figures:
        depth = figures["injection"]["depth"]
        say("stage 1    depth     " + "  ".join(f"{number}: {share:.1%}" for number, share in enumerate(depth, 1)))
    for known in figures.get("semantic_ids", {}).get("code_sets", []):
        usage = " ".join(
            f"{level}:{share:.0%}" for level, share in zip(known["levels"], known["usage_per_level"], strict=True)
        )
        perplexity = " ".join(f"{value:.0f}" for value in known["perplexity_per_level"])
        say(
            f"stage 2    {known['code_set']:<9} {known['unique']}/{known['items']} unique "
            f"(before reallocation {known['unique_before']}), codes used {usage}, perplexity {perplexity}"
        )
    if figures.get("seconds"):
        say("seconds    " + "  ".join(f"{name} {value:.1f}" for name, value in figures["seconds"].items()))
    return figures


def print_table(lines: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """Metrics of several models, one line each."""
    names = list(lines[0][1])
    width = max(len(title) for title, _ in lines)
    say(" " * width + "".join(f"{name:>9}" for name in names))
    for title, metrics in lines:
        say(f"{title:<{width}}" + "".join(f"{metrics[name]:9.4f}" for name in names))


def to_plain_values(value: Any) -> Any:
    """Figures with paths and tuples turned into what JSON and YAML know."""
    if isinstance(value, Mapping):
        return {str(key): to_plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain_values(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def progress_bars_wanted() -> bool:
    """Progress bars belong on a terminal, not into a log."""
    return sys.stderr.isatty() and rank() == 0


def log_to_console() -> None:
    """Our own messages and everyone's warnings; RecBole's own lines go to its log file only."""
    handler = logging.StreamHandler(sys.stderr)
    ours = ("recbole_qbert", "dataset_prep")
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(ours))
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if rank() == 0 else logging.ERROR, handlers=[handler])
    # RecBole 1.2.1 on today's pandas and torch warns of what will change in versions that setup.py excludes.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")


def limit_threads() -> None:
    """One thread a core, shared among the processes of a machine: more make small networks slower."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), os.cpu_count() or 1) // here))
