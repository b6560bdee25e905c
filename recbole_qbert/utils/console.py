"""Output on the terminal: lines, tables, progress bars and log messages."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_qbert.utils.distributed import rank


def say(text: str) -> None:
    """Print a line immediately, in the first process only."""
    if rank() == 0:
        print(text, flush=True)


def show_stages(figures: dict[str, Any]) -> dict[str, Any]:
    """Print the figures of the stages and return them."""
    for name, modality in figures.get("features", {}).get("modalities", {}).items():
        shape = "x".join(map(str, modality["shape"]))
        say(f"features   {name:<9} {shape:<14} {modality['coverage']:.1%} of items")
    if "depth" in figures.get("injection", {}):
        depth = figures["injection"]["depth"]
        say("stage 1    depth     " + "  ".join(f"{number}: {share:.1%}" for number, share in enumerate(depth, 1)))
        if test := figures["injection"].get("depth_test"):
            common = f"{test['fixed'][test['common'] - 1]:.4f} at depth {test['common']} for all"
            say(
                f"{'':<21}held-out loss {test['learned']:.4f} at the learned depth, {test['permuted']:.4f} "
                f"({test['permuted_sd']:.4f}) at the same dealt out at random, {common}, {test['oracle']:.4f} by an oracle"
            )
    elif "injection" in figures:
        say(f"stage 1    concatenation, {figures['injection']['width']} columns")
    for code_set in figures.get("semantic_ids", {}).get("code_sets", []):
        usage = " ".join(
            f"{level}:{share:.0%}" for level, share in zip(code_set["levels"], code_set["usage_per_level"], strict=True)
        )
        perplexity = " ".join(f"{value:.0f}" for value in code_set["perplexity_per_level"])
        say(
            f"stage 2    {code_set['code_set']:<9} {code_set['unique']}/{code_set['items']} unique "
            f"(before reallocation {code_set['unique_before']}), codes used {usage}, perplexity {perplexity}"
        )
        if "explained_per_level" in code_set:
            explained = " ".join(f"{share:.0%}" for share in code_set["explained_per_level"])
            kept = code_set["neighbors_kept"]
            neighbors = "" if kept is None else f", {kept:.0%} of the nearest neighbors kept"
            say(f"{'':<21}variance explained by the levels so far {explained}{neighbors}")
    if "semantic_id_choice" in figures:
        choice = figures["semantic_id_choice"]
        tried = ", ".join(f"{kind} {one['score']:.4f} ({one['epochs']} epochs)" for kind, one in choice["tried"].items())
        say(f"{'':<10} semantic_ids auto: {choice['chosen']}; on validation {tried}")
    if figures.get("seconds"):
        say("seconds    " + "  ".join(f"{name} {value:.1f}" for name, value in figures["seconds"].items()))
    return figures


def print_table(lines: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    """Print a table of metrics, one line a model: ``(title, metric -> value)``."""
    names = list(lines[0][1])
    width = max(len(title) for title, _ in lines)
    say(" " * width + "".join(f"{name:>9}" for name in names))
    for title, metrics in lines:
        say(f"{title:<{width}}" + "".join(f"{metrics[name]:9.4f}" for name in names))


def to_plain_values(value: Any) -> Any:
    """Convert paths, tuples and other values into types that JSON and YAML can represent."""
    if isinstance(value, Mapping):
        return {str(key): to_plain_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain_values(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def progress_bars_wanted() -> bool:
    """Tell whether to show progress bars: on a terminal, but not in a log file."""
    return sys.stderr.isatty() and rank() == 0


def log_to_console() -> None:
    """Log this package's messages and all warnings to the terminal; RecBole's messages go to its log file only."""
    handler = logging.StreamHandler(sys.stderr)
    ours = ("recbole_qbert", "dataset_prep")
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith(ours))
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if rank() == 0 else logging.ERROR, handlers=[handler])
    # RecBole 1.2.1 causes warnings about changes in versions of pandas and torch that setup.py excludes.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")


def limit_threads() -> None:
    """Limit torch to one thread a core, divided among the processes of a machine; more make small networks slower."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, min(torch.get_num_threads(), os.cpu_count() or 1) // processes))
