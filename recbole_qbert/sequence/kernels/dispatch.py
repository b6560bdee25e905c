"""How compiled kernels are called: for which tensors, with which random numbers, on how many threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMBERS = 1 << 32  # of an element, by which a kernel drops it or not (``network_kernels._number``)
WORTH = 1 << 15  # elements of work that a thread of its own is worth
_switched_off = False


def can_use_kernels(values: Tensor) -> bool:
    """Whether kernels can read a tensor: on a CPU, in a type that numpy has."""
    return not _switched_off and values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64)


@contextmanager
def without_kernels() -> Iterator[None]:
    """Let torch do the work in the block, as it does on a GPU: to compare, and to count its operations."""
    global _switched_off
    before, _switched_off = _switched_off, True
    try:
        yield
    finally:
        _switched_off = before


def dropout_state(rate: float) -> tuple[np.uint64, np.uint64, np.uint64]:
    """What a kernel has to know of a dropout: the limit below which an element's number drops it, and two seeds.

    The seeds come from torch's global generator; without dropout, none are drawn.
    """
    limit = round(rate * NUMBERS)
    low, high = torch.randint(NUMBERS, (2,)).tolist() if limit else (0, 0)
    return np.uint64(limit), np.uint64(low), np.uint64(high)


def split_work(end: np.ndarray) -> list[int]:
    """Bounds of runs of rows with about the same work, a run for each of torch's threads that is worth it.

    Args:
        end: ``[R]`` work of the rows up to and with each.

    Returns:
        One bound more than runs; the first is 0 and the last ``R``.
    """
    total = int(end[-1]) if len(end) else 0
    runs = max(1, min(torch.get_num_threads(), total // WORTH))
    inner = np.searchsorted(end, [total * run // runs for run in range(1, runs)], side="right")
    return [0, *inner.tolist(), len(end)]


def call(
    kernel: Callable[..., None], arguments: Sequence[Any], bounds: Sequence[int], own: np.ndarray | None = None
) -> None:
    """Call a kernel for each run of rows, at the same time where there are several.

    Args:
        kernel: takes ``arguments``, a part of ``own`` if there is one, and the first and last row of a run.
        arguments: the same for all runs.
        bounds: of ``shares``.
        own: ``[runs, ...]`` what each run writes apart from the others.
    """
    calls = [
        (*arguments, *([] if own is None else [own[run]]), first, last) for run, (first, last) in enumerate(pairwise(bounds))
    ]
    others = [_pool(os.getpid()).submit(kernel, *one) for one in calls[1:]]
    kernel(*calls[0])
    for other in others:
        other.result()


@lru_cache(1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of this process: those of its parent are not there after a fork."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"kernels-{process}")
