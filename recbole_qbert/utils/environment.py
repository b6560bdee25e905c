"""What every figure is written with (machine, versions, revision of the code), and timings that take turns."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "numba", "faiss-cpu", "recbole", "recbole-qbert")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, threads, load at the moment, GPU."""
    return {
        "processor": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    """Python and what the figures depend on; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def revision() -> str | None:
    """Last commit of code or property files, of the checkout that this package runs from; ``None`` outside of one.

    With ``+`` behind it where these differ from it. Results in the repository (``--archive``) change nothing.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*words: str) -> str:
        ask = ["git", "-C", str(folder), *words]
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        code = ("--", "recbole_qbert", "properties")
        return git("log", "-1", "--format=%H", *code)[:12] + "+" * bool(git("diff", "--name-only", "HEAD", *code))
    except (OSError, subprocess.SubprocessError):
        return None


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each way in each round. Ways take turns within a round, so that a busy machine is busy for all of them.

    Args:
        ways: name -> what to time.
        rounds: how often.
        warm_up: how often each runs before, untimed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """How many times faster: the median of the rounds' own ratios."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))


def _first_value(path: Path, key: str) -> str | None:
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return None
