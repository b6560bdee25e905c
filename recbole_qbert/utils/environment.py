"""Machine, versions and revision that are stored with every measurement, and interleaved timings."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "numba", "faiss-cpu", "recbole", "recbole-qbert")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, threads, present load, GPU."""
    return {
        "processor": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_mb() -> int:
    """Return the largest resident size of this process so far, in MB of 2^20 bytes.

    On Linux not by ``getrusage``, whose figure starts from that of the process that started this one.
    """
    if high_water := _first_value(Path("/proc/self/status"), "VmHWM"):
        return round(int(high_water.split()[0]) / 2**10)
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of ``PACKAGES``; None for a package that is not installed."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def revision() -> str | None:
    """Return the last commit of code and property files in the checkout of this package; ``None`` outside of a checkout.

    A ``+`` is appended if they were changed since. Commits of results do not count.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        code = ("--", "recbole_qbert", "properties")
        return git("log", "-1", "--format=%H", *code)[:12] + "+" * bool(git("diff", "--name-only", "HEAD", *code))
    except (OSError, subprocess.SubprocessError):
        return None


def take_turns(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time alternatives in turns, so that other load on the machine affects all of them.

    Args:
        ways: name -> function to time.
        rounds: number of timed runs of each.
        warm_up: number of untimed runs of each before.
        clock: seconds; ``time.process_time`` leaves out what other processes take, but counts all threads.

    Returns:
        name -> seconds of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, run in ways.items():
            started = clock()
            run()
            if number >= 0:
                seconds[name].append(clock() - started)
    return seconds


def ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Compute how many times faster ``faster`` is: the median of the ratios of the rounds."""
    return statistics.median(one / other for one, other in zip(slower, faster, strict=True))


def _first_value(path: Path, key: str) -> str | None:
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return None
