"""What the benchmarks share: timings that take turns, and the file they are written to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_qbert.artifacts import write_json
from recbole_qbert.facts import machine, versions

PLACES = ("data_path", "folder", "json", "output")


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each way in each round. Ways take turns within a round, so that a busy machine is busy for all of them.

    Args:
        ways: name -> what to time.
        rounds: how often.
        warm_up: run each once before, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1 if warm_up else 0, rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times faster: the median of the rounds' own ratios."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))


def write(path: Path, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], ratios: Mapping[str, float]) -> None:
    """One JSON file: ``machine``, ``versions``, ``settings`` (no paths), ``rows`` (one a measurement) and ``ratios``."""
    write_json(
        path,
        {
            "machine": machine(),
            "versions": versions(),
            "settings": {key: value for key, value in settings.items() if key not in PLACES and not isinstance(value, Path)},
            "rows": list(rows),
            "ratios": dict(ratios),
        },
    )
